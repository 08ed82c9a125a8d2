"""`OnRay`: a study's runs on a Ray cluster; each group is a task, which takes its data along and brings its files back.

A node needs the base by the same name or path, but nothing of the study's folder, which this machine alone writes.
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Generic

from halka.data.task import Task
from halka.studies.experiment import Experiment
from halka.studies.hosts import Group, Line, R, reported, without_result
from halka.studies.needs import Needs, needs_by_group
from halka.studies.spec import Spec
from halka.training.run_folder import BESTS, CHECKPOINT, NEXT_CHECKPOINT, RunFolder
from halka.util.errors import HalkaError
from halka.util.files import write_bytes
from halka.util.ray_cluster import RayCluster
from halka.util.ray_node import Program

TASK, FORGETTING = "task", "forgetting"  # folders of what a program gets
TASK_FILE = """\
from pathlib import Path

from pydantic import TypeAdapter

from halka.data.task import Task


def task():
    return TypeAdapter(Task).validate_json(Path(__file__).with_suffix(".json").read_bytes())
"""
"""A task's file, beside the task itself as JSON, whatever files its examples were read from."""


class OnRay(Generic[R]):
    """The nodes of a Ray cluster.

    program   the module that serves the runs
    folder    the study's
    carried   a run as it is on a node, where files have other paths
    needs     what the runs of one group need; None: it is not known
    """

    def __init__(
        self,
        cluster: RayCluster,
        program: str,
        folder: Path,
        *,
        carried: Callable[[R], R] = lambda run: run,
        needs: Callable[[Sequence[R]], Needs | None] = lambda runs: None,
    ):
        self.cluster, self.program, self.folder, self.carried, self.needs = cluster, program, folder, carried, needs
        self.groups: dict[str, Group[R]] = {}

    def has_room(self) -> bool:
        return True  # the cluster has a queue of its own

    def start(self, group: Group[R]) -> None:
        runs = [json.dumps(asdict(self.carried(run))).encode() for run in group.runs]
        sources = [self._own(source) for source, _ in group.files]
        needs = self.needs(group.runs)
        self.groups[group.key] = group
        self.cluster.start(
            group.key,
            Program(
                title=" and ".join(run.title for run in group.runs),
                module=self.program,
                arguments=tuple(self._own(file) for pair in group.files for file in pair),
                files=dict(zip(sources, runs, strict=True)),
                log=self._own(group.log),
                memory=needs and needs.memory,
                gpu_memory=needs and needs.gpu_memory,
                stays=(CHECKPOINT, NEXT_CHECKPOINT, BESTS),
            ),
        )

    def report(self) -> tuple[Group[R], Line]:
        while True:
            key, news = self.cluster.report()
            line: Line | None
            if news.kind == "line":
                line = reported(news.text)
            elif news.kind == "over":
                reason = news.text
                self._take(self.groups[key], news.files)
                if news.code is not None:
                    log = self.groups[key].log.read_text(encoding="utf-8", errors="replace")
                    reason = without_result(news.code, log)
                line = {"over": reason}
            else:
                line = {news.kind: news.text}
            if line is not None:
                return self.groups[key], {**line, "node": news.node}

    def close(self) -> None:
        self.cluster.close()

    def _take(self, group: Group[R], files: Mapping[str, bytes]) -> None:
        """Write the group's files to the study's folder, results at the end; files elsewhere are left out.

        A node's process begins anew: a checkpoint that an earlier one left here is of another attempt, and is dropped.
        """
        folders, results = {source.parent for source, _ in group.files}, {target for _, target in group.files}
        for folder in folders if files else ():
            RunFolder(folder).drop_checkpoint()
        for name in sorted(files, key=lambda name: name.startswith("runs/")):
            path = self.folder / posixpath.normpath(name)
            if path in results or folders & {*path.parents}:
                write_bytes(path, files[name])

    def _own(self, file: Path) -> str:
        """A file's path in the study's folder, and in that of a program."""
        return file.relative_to(self.folder).as_posix()


def task_files(name: str, task: Task) -> dict[str, bytes]:
    """What a node's program reads a task from, as files of its folder; task/NAME.py is the task's own.

    Raises HalkaError for a metric that is no name.
    """
    if own := [metric.name for metric in task.metrics if not isinstance(metric, str)]:
        raise HalkaError(f"task {name}: its metric {own[0]} is a function, which does not reach a cluster: run it here")
    path = f"{TASK}/{name}"
    return {f"{path}.py": TASK_FILE.encode(), f"{path}.json": json.dumps(asdict(task)).encode()}


def on_ray(experiment: Experiment, task: Task, program: str, folder: str | Path, address: str) -> OnRay[Spec]:
    """The Ray cluster at `address` for an experiment's runs, which get its task and its text for forgetting.

    Raises HalkaError as `RayCluster` does.
    """
    name, text = Path(experiment.task).stem, experiment.forgetting and Path(experiment.forgetting)
    places: dict[str, Any] = {"task": f"{TASK}/{name}.py"}
    shared = task_files(name, task)
    if text:
        places["forgetting"] = f"{FORGETTING}/{text.name}"
        shared[places["forgetting"]] = text.read_bytes()
    cluster = RayCluster(address, jobs=experiment.jobs, shared=shared)
    needs = needs_by_group(task, gpu=cluster.gpus > 0)
    return OnRay(cluster, program, Path(folder), carried=lambda run: replace(run, **places), needs=needs)
