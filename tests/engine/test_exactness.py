"""A small version of `benchmarks/engine_exactness.py`: adapters replaced, changed and damaged while requests run."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.parametrize("base", ["llama", "gemma2", "gpt2"])
def test_every_answer_is_the_one_that_its_adapter_gives_alone(base, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    exactness = importlib.import_module("engine_exactness")
    counts = exactness.answered(base, tmp_path, count=150, kinds=50, seed=1)
    assert counts["wrong"] == []
    assert len(counts["ties"]) <= 2
    assert counts["preempted"]
    assert {*counts["errors"]} <= {"damaged", "removed", *exactness.EXPECTED}
