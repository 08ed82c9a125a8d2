"""`halka train --many`: several runs of one file, trained together."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from commands import TRAIN, failure, halka, parsed, stopped

MANY = """
base: base
data: data.jsonl
dtype: float32
validation: 0.2
train: {steps: 4}
runs:
  - {out: many/eight, rank: 8}
  - {out: many/two, rank: 2, train: {lr: 0.01, steps: 6}}
  - {out: many/prefix, method: prefix, length: 3, train: {seed: 1}}
"""


def test_several_are_trained_together_as_each_would_be_alone(here):
    Path("runs.yaml").write_text(MANY)
    found = parsed("train --many runs.yaml --batch-size 4")
    assert [(each["folder"], each["method"]["name"], each["steps"]) for each in found] == [
        ("many/eight", "lora", 4),
        ("many/two", "lora", 6),
        ("many/prefix", "prefix", 4),
    ]
    halka(f"train {TRAIN} --validation 0.2 --rank 2 --lr 0.01 --steps 6 --batch-size 4 -o alone")
    one, other = (load_file(f"{each}/adapter/adapter_model.safetensors") for each in ("many/two", "alone"))
    for key, tensor in other.items():
        torch.testing.assert_close(one[key], tensor, rtol=1e-3, atol=1e-5)
    halka("evaluate --base base --dtype float32 --data data.jsonl --limit 2 --adapter many/prefix/adapter")


def test_several_go_on_where_each_was_and_finished_ones_stay(here):
    Path("runs.yaml").write_text(MANY)
    assert "Go on with the same command" in stopped("train --many runs.yaml", "many/two: step 2/6")
    told = halka("train --config many/eight/run.yaml").stderr
    assert "step 3/4" in told
    result = halka("train --many runs.yaml")
    assert "many/eight holds a finished run: left as it is" in result.stderr
    assert "many/two: step 6/6" in result.stderr
    assert "many/prefix" in result.stdout
    assert "step 1/" not in result.stderr
    assert halka("train --many runs.yaml").stdout == ""


def test_of_several_one_that_fails_does_not_end_the_others(here):
    Path("runs.yaml").write_text(MANY.replace("lr: 0.01", "lr: 1e30, warmup: 0, clip: 0"))
    result = halka("train --many runs.yaml", code=1)
    assert "many/two: the validation loss became" in result.stderr
    assert Path("many/eight/adapter").exists()
    assert not Path("many/two/adapter").exists()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (("runs:", "rubs:"), "runs: a list of runs is missing"),
        (("out: many/two, ", ""), "runs[2].out is missing"),
        (("many/two", "many/eight"), "two have the folder"),
        (("rank: 2", "rnak: 2"), "runs[2].rnak: there is no such setting; did you mean rank?"),
        (("rank: 2", "base: other"), "runs[2].base: all runs share one base ('other' here)"),
        (("rank: 2", "rank: two"), "runs[2].rank: 'two' is not a whole number"),
        (("length: 3", "rank: 3"), "runs[3].rank: prefix has no field 'rank'"),
        (("base: base", "base: base\nout: all"), "out: each run has its own"),
    ],
)
def test_a_file_of_runs_that_makes_no_sense_is_refused_by_name(here, change, told):
    Path("runs.yaml").write_text(MANY.replace(*change))
    assert told in failure("train --many runs.yaml")
    assert not Path("many").exists()


def test_the_environment_gives_no_folder_for_several(here, monkeypatch):
    Path("runs.yaml").write_text(MANY)
    monkeypatch.setenv("HALKA_TRAIN_OUT", "elsewhere")
    assert "HALKA_TRAIN_OUT: out: each run of runs.yaml has its own" in failure("train --many runs.yaml")
    assert not Path("elsewhere").exists()


def test_one_run_and_several_are_not_said_at_once(here):
    Path("runs.yaml").write_text(MANY)
    assert "give one of them" in failure("train --many runs.yaml --config runs.yaml")
    assert "each run of runs.yaml has its own" in failure("train --many runs.yaml -o all")
