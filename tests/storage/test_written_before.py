"""What version 0.1.0 wrote is read as it was: adapters, runs, a store; and a seed gives the losses that it gave.

`fixtures/written_by_0_1_0` was made by that version: a base of two layers, three finished runs (LoRA, prefix, full), a
run that was stopped after three of its six steps, a store of two versions, and the logits that each adapter gave.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

import halka
from halka.cli import app

WRITTEN = Path(__file__).parents[1] / "fixtures" / "written_by_0_1_0"
RUNS = {
    "finished": "--method lora --rank 2 --alpha none",
    "prefix": "--method prefix --length 2",
    "full": "--method full",
}
TRAIN = "--base base --data data.jsonl --dtype float32 --batch-size 4 --lr 0.02"


@pytest.fixture
def written(tmp_path, monkeypatch) -> Path:
    """A copy of the folder, to work in."""
    folder = tmp_path / "written"
    shutil.copytree(WRITTEN, folder)
    monkeypatch.chdir(folder)
    return folder


def command(line: str) -> str:
    result = CliRunner().invoke(app, line.split())
    assert result.exit_code == 0, result.output
    return result.stdout


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("run", RUNS)
def test_an_adapter_computes_what_it_computed(written, run):
    expected = load_file("expected.safetensors")
    model = halka.adapt(*halka.load_base("base", dtype="float32"))
    halka.load(model, f"{run}/adapter", name=run)
    with torch.no_grad(), model.use(run):
        logits = model.base(expected["ids"]).logits[:, -1]
    assert (expected[run] - expected["base"]).abs().max() > 0.01
    assert torch.allclose(logits, expected[run], rtol=0, atol=1e-5)


def test_an_unfinished_run_goes_on_to_the_weights_of_one_that_was_not_stopped(written):
    command("train --config unfinished/run.yaml")
    resumed, whole = (load_file(f"{run}/adapter/adapter_model.safetensors") for run in ("unfinished", "finished"))
    assert all(torch.allclose(resumed[key], whole[key], rtol=0, atol=1e-4) for key in whole)
    assert len(losses(written / "unfinished")) == 6


def test_a_finished_run_is_not_trained_again(written):
    result = CliRunner().invoke(app, ["train", "--config", "finished/run.yaml"])
    assert result.exit_code == 2
    assert "finished run" in result.stderr


@pytest.mark.parametrize("run", RUNS)
def test_a_seed_gives_the_losses_that_it_gave(written, run):
    steps, held_out = (4, "") if run == "full" else (6, "--validation 0.25" if run == "finished" else "")
    command(f"train {TRAIN} {RUNS[run]} --steps {steps} {held_out} -o again")
    assert losses(written / "again") == pytest.approx(losses(written / run), rel=1e-4)


def test_a_store_is_read(written):
    (newest,) = json.loads(command("adapters list --store store --json"))
    assert (newest["name"], newest["version"], newest["versions"]) == ("sums", 2, 2)
    assert newest["method"] == "prefix"
    assert "good" in json.loads(command("adapters list --store store --json"))[0]["tags"]
    model = halka.adapt(*halka.load_base("base", dtype="float32"))
    halka.AdapterPool(model, halka.AdapterStore("store"))
    expected = load_file("expected.safetensors")
    with torch.no_grad(), model.use("sums"):
        logits = model.base(expected["ids"]).logits[:, -1]
    assert torch.allclose(logits, expected["prefix"], rtol=0, atol=1e-5)
