"""`Metric.code`: what of a metric's code changes it."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys

import pytest

from halka.data.metric import Metric

NAMING = """
WORDS = {"one": 1, "two": 2}
STOP = {"a", "the", "of"}
RULES = {"lower": lambda text: text.lower()}

def norm(text):
    return " ".join(word for word in text.split() if word not in STOP)

def shortened(text):
    return text[:9]

def value(answer, references):
    exact = any(norm(answer) == norm(reference) for reference in references)
    return exact + max([0, *(WORDS.get(word, 0) for word in answer.split())]) + len(RULES["lower"](answer))
"""


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("if word not in STOP", ""),  # of a function that is named in a generator alone
        ('"one": 1, "two": 2', '"one": 2, "two": 1'),
        (', "of"', ""),
        ("text.lower()", "text.upper()"),
    ],
)
def test_a_metrics_code_is_all_that_its_functions_name(tmp_path, old, new):
    def code(name: str, text: str) -> str:
        (path := tmp_path / f"{name}.py").write_text(text)
        return Metric.mean("m", "", runpy.run_path(str(path))["value"]).code()

    assert code("own", NAMING) == code("same", NAMING.replace("def shortened", "def unused"))
    assert code("own", NAMING) != code("changed", NAMING.replace(old, new))


def test_a_metrics_code_is_the_same_in_every_process(tmp_path):
    (tmp_path / "own.py").write_text(f"{NAMING}\nfrom halka.data.metric import Metric\n")
    code = "import own; print(own.Metric.mean('m', '', own.value).code())"
    codes = {
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=tmp_path,
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join([*sys.path, "."])},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in "12"
    }
    assert len(codes) == 1
