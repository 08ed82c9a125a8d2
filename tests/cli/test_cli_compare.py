"""`halka compare` and `demo`, with runs that are only told of."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from commands import failure, halka, parsed
from halka.studies.compare import Outputs
from halka.studies.runner import Event
from measurements_for_tests import measurements


@pytest.fixture
def experiment(here, monkeypatch):
    """An experiment whose runs are only told of: one is done, one fails if `fails` says so."""
    fails: list[bool] = []

    def run(experiment, folder, *, retry=False):
        yield Event("started", "LoRA, seed 0", 0, 2)
        yield Event("step", "LoRA, seed 0", 0, 2, 1, 4, 0.5)
        yield Event("done", "LoRA, seed 0", 1, 2, message="exact_match 0.500")
        yield Event("failed" if fails else "skipped", "prefix, seed 0", 2, 2, message="two\nlines")

    def write_outputs(experiment, folder, command, sections=()):
        assert command in ("halka compare experiment.yaml -o results", "halka demo -o halka-demo")
        made = measurements(seeds=1, failures=False)
        if fails:
            made[-1] = {**made[-1], "status": "failed", "error": "no"}
        return Outputs(folder / "report.html", folder / "table.md", folder / "summary.json", made, 3)

    monkeypatch.setattr("halka.studies.compare.run", run)
    monkeypatch.setattr("halka.studies.compare.write_outputs", write_outputs)
    Path("experiment.yaml").write_text("name: e\nbase: base\ntask: support\nmethods: [{method: lora}]\n")
    return fails


def test_compare(experiment):
    result = halka("compare experiment.yaml -o results")
    assert "[1/2] done LoRA, seed 0: exact_match 0.500" in result.stderr
    assert "skipped prefix, seed 0: two lines" in result.stderr
    assert "LoRA r16" in result.stdout
    assert "report: results/report.html" in result.stdout
    assert "3 measurements in results are of other settings, and left out" in result.stderr
    assert parsed("compare experiment.yaml -o results")["failed"] == 0


def test_compare_with_failed_runs_fails_after_its_report(experiment):
    experiment.append(True)
    result = halka("compare experiment.yaml -o results", code=1)
    assert "report: results/report.html" in result.stdout
    assert "failed: --retry runs what failed again" in result.stderr


def test_compare_stopped_says_how_to_go_on(experiment, monkeypatch):
    def run(experiment, folder, *, retry=False):
        yield Event("started", "LoRA, seed 0", 0, 2)
        raise KeyboardInterrupt

    monkeypatch.setattr("halka.studies.compare.run", run)
    assert "resumes with the missing runs" in halka("compare experiment.yaml -o results", code=130).stderr


def test_demo_pulls_its_base_first(experiment, monkeypatch):
    pulled = []
    monkeypatch.setattr("halka.models.fetching.pull", lambda name, say: pulled.append(name))
    assert "report: halka-demo/report.html" in halka("demo").stdout
    assert pulled == ["smollm2-135m"]


def test_a_terminated_comparison_ends_its_runs(experiment, monkeypatch):
    ended = []

    def run(experiment, folder, *, retry=False):
        try:
            yield Event("started", "LoRA, seed 0", 0, 2)
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        finally:
            ended.append(True)

    monkeypatch.setattr("halka.studies.compare.run", run)
    own = signal.getsignal(signal.SIGTERM)
    assert "resumes with the missing runs" in halka("compare experiment.yaml -o results", code=130).stderr
    assert ended
    assert signal.getsignal(signal.SIGTERM) is own


def test_a_wrong_experiment_is_one_line(here):
    Path("experiment.yaml").write_text("name: e\ntask: support\nmethods: []\nsede: 1\n")
    assert "sede" in failure("compare experiment.yaml -o results")
    assert "EXPERIMENT: there is no file nope.yaml" in failure("compare nope.yaml -o results")
