"""`halka advise`: the metric that it scores by, before it probes."""

from __future__ import annotations

from pathlib import Path

from commands import failure

TASK = """
from dataclasses import replace
from halka.data.metric import Metric
from halka.data.task import load_task

def task():
    own = Metric("own", "", lambda answer, references: {}, lambda sums: 0)
    return replace(load_task("support"), metrics=(own,), primary="own")
"""


def test_a_metric_that_is_named_is_the_metric(here: Path):
    assert "unknown metric 'nonsense'" in failure("advise --base base --data data.jsonl --metric nonsense")


def test_a_task_with_a_function_as_its_metric_needs_the_name_of_another(here: Path):
    Path("own.py").write_text(TASK)
    refused = failure("advise --base base --task own.py")
    assert "is scored by a function of its own, 'own'" in refused
    assert refused.endswith("name another metric with --metric")
    assert "unknown metric 'nonsense'" in failure("advise --base base --task own.py --metric nonsense")
