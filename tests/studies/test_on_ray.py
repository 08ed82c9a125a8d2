"""What a study's place on a cluster does with runs and files, without a cluster."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

import halka
from halka.data.examples import Example, Message
from halka.data.metric import Metric
from halka.data.readers import Problem
from halka.data.task import Task, limit, load_task
from halka.data.tools import ToolCall
from halka.estimating import Setup, dry_run
from halka.models.loading import base_config
from halka.studies.compare import runner
from halka.studies.experiment import Experiment, digest
from halka.studies.needs import Needs, needs_by_group, needs_of
from halka.studies.on_ray import OnRay, task_files
from halka.training.run_folder import CHECKPOINT
from halka.util.errors import HalkaError
from halka.util.ray_cluster import News
from halka.util.ray_node import Program
from runs_for_tests import a_run, base_and_task


class OneNode:
    """A cluster whose node ends each program at once, with the files that it names."""

    def __init__(self, *files: str):
        self.files, self.news = files, list[tuple[str, News]]()

    def start(self, key: str, program: Program) -> None:
        self.program = program
        files = dict.fromkeys((program.log, *self.files), b"{}")
        self.news.append((key, News("over", "node", code=1, files=files)))

    def report(self) -> tuple[str, News]:
        return self.news.pop()

    def close(self) -> None:
        pass


def on_one_node(run, folder: Path, *files: str) -> set[str]:
    """The files of a study's folder after a node has run this run and has left these files."""
    place = OnRay(OneNode(*files), "program", folder)
    experiment = Experiment(name="test", task="support", methods=({"method": "lora"},))
    place.start(runner(experiment, folder).prepare([run]))
    place.report()
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_of_a_nodes_files_those_of_the_run_come_into_the_studys_folder(tmp_path):
    run, folder = a_run(tmp_path), tmp_path / "out"
    own, result = f"work/{run.key}", f"runs/{run.key}.json"
    strays = ("stray.txt", "runs/other.json", "../up.txt", f"{own}/../../../up.txt", str(tmp_path / "up.txt"))
    files = on_one_node(run, folder, f"{own}/adapter/weights", result, *strays)
    assert files == {f"{own}/run.json", f"{own}/log.txt", f"{own}/adapter/weights", result}
    assert not (tmp_path / "up.txt").exists()


def test_a_checkpoint_that_was_here_is_not_gone_on_from_after_an_attempt_on_a_node(tmp_path):
    run, folder = a_run(tmp_path), tmp_path / "out"
    checkpoint = folder / "work" / run.key / CHECKPOINT
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_bytes(b"of an earlier process here")
    on_one_node(run, folder)
    assert not checkpoint.exists()


def test_a_task_comes_to_a_node_as_it_is_here(tmp_path):
    calls = (ToolCall("find", json.dumps({"city": "ঢাকা"}), "a1"),)
    talk = Message("system", "Be brief."), Message("user", "Where?"), Message("assistant", "ঢাকা", calls=calls)
    example = Example(talk, ("Dhaka", "ঢাকা"), "train.jsonl:1")
    rest = {"max_new_tokens": 3, "licence": "CC0", "problems": (Problem("train.jsonl:2", "empty"),)}
    rest |= {"kind": "sequence-classification", "labels": ("Dhaka", "ঢাকা")}
    task = Task("cities", (example,) * 2, (example,), (), ("accuracy", "f1"), "f1", **rest)
    (tmp_path / "task").mkdir()
    for path, content in task_files("my.cities", task).items():
        (tmp_path / path).write_bytes(content)
    there = load_task(tmp_path / "task/my.cities.py")
    assert there == task
    assert digest(limit(there, train=1)) == digest(limit(limit(task, train=1), train=1)), "by which runs are named"


def test_a_metric_that_is_a_function_does_not_reach_a_node():
    own = Metric.mean("length", "characters", lambda prediction, _: float(len(prediction)), (0, 9))
    with pytest.raises(HalkaError, match="its metric length is a function"):
        task_files("cities", Task("cities", (), (), (), ("f1", own), "f1"))


def test_a_program_needs_what_its_runs_need(tmp_path):
    place = OnRay(OneNode(), "program", tmp_path / "out", needs=lambda runs: Needs(3, 40 * len(runs)))
    experiment = Experiment(name="test", task="support", methods=({"method": "lora"},))
    runs = [a_run(tmp_path), a_run(tmp_path, method="ia3")]
    place.start(runner(experiment, tmp_path / "out").prepare(runs))
    assert (place.cluster.program.memory, place.cluster.program.gpu_memory) == (3, 80)


def test_runs_that_train_together_need_the_states_of_all_adapters(tmp_path):
    base_and_task(tmp_path)
    task, run = load_task(tmp_path / "task.yaml"), a_run(tmp_path, fields={"rank": 16})
    one, three = (replace(run, train={**run.train, "batch_size": rows}) for rows in (1, 3))
    trained = dry_run(base_config(run.base), halka.LoRA(rank=16), Setup(rows=1, length=8, dtype="float32")).trained
    together, alone = needs_of([one] * 3, task, False), needs_of([three], task, False)  # whose passes are alike
    assert together.memory - alone.memory == 2 * 16 * trained


def test_needs_that_cannot_be_estimated_are_unknown(tmp_path, monkeypatch):
    def from_config(*args, **options):
        raise RuntimeError("not of this shape")

    base_and_task(tmp_path)
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_config", from_config)
    assert needs_of([a_run(tmp_path)], load_task(tmp_path / "task.yaml"), False) is None


def test_runs_with_other_batches_have_needs_of_their_own(tmp_path):
    base_and_task(tmp_path)
    task, small = load_task(tmp_path / "task.yaml"), a_run(tmp_path)
    large = replace(small, train={**small.train, "batch_size": 12})
    needs = needs_by_group(task, gpu=False)
    assert (needs([small]), needs([large])) == (needs_of([small], task, False), needs_of([large], task, False))
    assert needs([large]).memory > needs([small]).memory
    of_gpu = needs_by_group(task, gpu=True)
    assert of_gpu([large]).gpu_memory > of_gpu([small]).gpu_memory
    assert of_gpu([large]).memory == of_gpu([small]).memory, "the weights alone pass through main memory"
