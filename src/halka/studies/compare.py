"""Compares methods: a small search for each one's learning rate, then all seeds with the best rate, then the report.

A search whose best rate is the lowest or the highest that was tried goes on beyond it. A sweep is such a search with
every seed, of runs as long as final ones, and has nothing after it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING

from halka.data.metric import Metric
from halka.studies.experiment import Entry, Experiment, digest, task_of
from halka.studies.hosts import Here, Host, Result
from halka.studies.on_ray import on_ray
from halka.studies.runner import Event, Runner, alone_in
from halka.studies.spec import BASE, Purpose, Spec
from halka.training import TrainConfig
from halka.util.base_folders import folder_digest
from halka.util.files import write_text

if TYPE_CHECKING:
    from halka.report.html import Section

PROGRAM = "halka.studies.measure"


@dataclass(frozen=True)
class Outputs:
    """What an experiment's folder holds at the end."""

    report: Path
    table: Path
    summary: Path
    measurements: list[Result]
    others: int  # measurements in the folder that this experiment, as it is now, did not make
    outdated: dict[str, int]  # by a metric of the task's own whose code has changed, how many runs it scored before


def run(experiment: Experiment, folder: str | Path, *, retry: bool = False, on: str | None = None) -> Iterator[Event]:
    """Run the experiment's missing runs in `folder`, at most `experiment.jobs` at a time, and yield what happens.

    on   a Ray cluster (`halka.util.ray_cluster`): "ray", or the address of another machine's, "ray://HOST:10001"

    Raises HalkaError, before anything runs, for what would fail every run, and where another process runs there; and
    for a cluster that cannot be reached, or has no node for a run.
    """
    plan = ExperimentPlan(experiment)
    with alone_in(Path(folder)):
        host = None if on is None else on_ray(experiment, plan.task, PROGRAM, folder, on)
        yield from runner(experiment, folder, retry, host).go(plan.due)


def runner(
    experiment: Experiment, folder: str | Path, retry: bool = False, host: Host[Spec] | None = None
) -> Runner[Spec]:
    """The runner of the experiment's runs in `folder`, by default on this machine."""
    return Runner(Path(folder), host or Here(PROGRAM, experiment.jobs), _outcome, retry=retry)


def is_finished(experiment: Experiment, folder: str | Path) -> bool:
    """Whether every run of the experiment has ended. Raises HalkaError as `run` does for a task."""
    plan = ExperimentPlan(experiment)
    results = plan.results(runner(experiment, folder))
    groups, to_come = plan.due(results)
    return not to_come and all(run.key in results for group in groups for run in group)


def measurements(folder: str | Path) -> list[Result]:
    """Every measurement in a folder, in the order of their names, whatever experiments they were made for."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted((Path(folder) / "runs").glob("*.json"))]


def write_outputs(
    experiment: Experiment, folder: str | Path, command: str | None = None, sections: Sequence[Section] = ()
) -> Outputs:
    """Write the table, the summary and the report of the experiment's measurements so far.

    command    the command that runs it again, for the report
    sections   further parts of the report
    """
    from halka.report.html import write_report
    from halka.report.summary import summarise
    from halka.report.table import to_markdown

    folder = Path(folder)
    plan = ExperimentPlan(experiment)
    results = plan.results(runner(experiment, folder))
    own = [*results.values()]
    summary = summarise(own)
    outputs = Outputs(
        folder / "report.html",
        folder / "table.md",
        folder / "summary.json",
        own,
        others=sum("experiment" in run for run in measurements(folder)) - len(own),  # an ablation's runs have none
        outdated=plan.outdated(own),
    )
    write_text(outputs.table, to_markdown(summary))
    write_text(outputs.summary, json.dumps({**summary.to_json(), "runs": [*results]}, indent=1) + "\n")
    write_report(own, outputs.report, title=experiment.name, command=command, sections=sections)
    return outputs


def best_adapter(experiment: Experiment, folder: str | Path) -> Path | None:
    """The adapter of the finished run with the best score, full fine-tuning aside; None if there is none."""
    from halka.report.rows import metric_info

    results = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in Path(folder, "runs").glob("*.json")}
    scores: dict[Path, float] = {}
    for run in (run for group in ExperimentPlan(experiment).due(results)[0] for run in group):
        adapter, result = Path(folder, "work", run.key, "adapter"), results.get(run.key, {})
        if run.method != "full" and adapter.is_dir() and (scored := result.get("scores")):
            primary = metric_info(result["primary"], [result])
            scores[adapter] = primary.sign(scored[primary.name]["value"])
    return max(scores, key=lambda adapter: scores[adapter], default=None)


class ExperimentPlan:
    """Which runs an experiment needs, from the results so far. Raises HalkaError for a task that no run could use."""

    def __init__(self, experiment: Experiment):
        self.experiment = experiment
        self.searching = experiment.seeds if experiment.sweep else experiment.seeds[:1]  # the seeds of search runs
        self.task = task_of(experiment)
        self.data = digest(self.task, experiment.forgetting)
        self.base_files = folder_digest(experiment.base)

    def due(self, results: Mapping[str, Result]) -> tuple[list[list[Spec]], int]:
        """The runs that can be named, in groups that share a process, and how many follow from searches under way."""
        groups: list[list[Spec]] = []
        to_come = 0
        final_seeds = () if self.experiment.sweep else self.experiment.seeds
        for entry in self.experiment.methods:
            grid, beyond = self._grid(entry), self._beyond(entry, results)
            shared = self.experiment.search_together and entry.method != "full"  # its copies share no pass
            groups += grid if shared else [[run] for runs in grid for run in runs]
            groups += [[run] for run in beyond]
            searches = [*(run for runs in grid for run in runs), *beyond]
            if all(run.key in results for run in searches):
                groups += [[run] for run in self._finals(entry, searches, results)]
            else:
                most = self.experiment.search_beyond * len(self.searching)
                to_come += len(final_seeds) + most - len(beyond)
        return groups, to_come

    def results(self, runner: Runner[Spec]) -> dict[str, Result]:
        """The results of the experiment's own runs, as far as they are there, by their keys.

        They have the name that the task has now: another one is no other work.
        """
        results: dict[str, Result] = {}
        while True:
            runs = [run for group in self.due(results)[0] for run in group]
            new = {run.key: result for run in runs if run.key not in results and (result := runner.result(run))}
            if not new:
                return {run.key: results[run.key] | {"task": self.task.name} for run in runs if run.key in results}
            results |= new

    def outdated(self, results: Iterable[Result]) -> dict[str, int]:
        """By a metric of the task's own whose code has changed since, how many of the results it scored before."""
        metrics = [metric for metric in self.task.metrics if isinstance(metric, Metric)]
        scored = [result.get("own_metrics", {}) for result in results if result.get("scores")]
        changed = {
            metric.name: sum(own.get(metric.name, {}).get("code", code) != code for own in scored)
            for metric in metrics
            for code in [metric.code()]
        }
        return {name: runs for name, runs in changed.items() if runs}

    def _grid(self, entry: Entry) -> list[list[Spec]]:
        """By seed, a search run for each of the entry's rates; none where there is nothing to choose from."""
        several = len(entry.lrs) > 1
        return [[self._search(entry, rate, seed) for rate in entry.lrs] for seed in self.searching if several]

    def _beyond(self, entry: Entry, results: Mapping[str, Result]) -> list[Spec]:
        """Search runs at further rates, one by one while the best is at an edge; they follow from the results."""
        searches = [run for runs in self._grid(entry) for run in runs]
        tried, beyond = sorted({run.train["lr"] for run in searches}), list[Spec]()
        while searches and len(beyond) < self.experiment.search_beyond * len(self.searching):
            if not all(run.key in results for run in [*searches, *beyond]):
                break
            rate = _further(tried, _losses([*searches, *beyond], results), between=bool(self.experiment.sweep))
            if rate is None:
                break
            tried = sorted([*tried, rate])
            beyond += [self._search(entry, rate, seed) for seed in self.searching]
        return beyond

    def _search(self, entry: Entry, rate: float, seed: int) -> Spec:
        config, shorter = TrainConfig(**self.experiment.train_of(entry)), dict[str, float]()
        if self.experiment.search_steps:
            shorter = {"steps": self.experiment.search_steps}
        elif not self.experiment.sweep:
            shorter = {"steps": max(1, config.steps // 2)} if config.steps else {"epochs": config.epochs / 2}
        return self._run(entry, rate, seed, "search", shorter)

    def _finals(self, entry: Entry, searches: Sequence[Spec], results: Mapping[str, Result]) -> list[Spec]:
        """A run a seed, with the learning rate whose search has the lowest validation loss; none if all failed."""
        if self.experiment.sweep:
            return []
        if entry.method == BASE:
            return [self._run(entry, None, self.experiment.seeds[0], "final", {})]
        losses = _losses(searches, results)
        if searches and not losses:
            return []
        rate = min(losses, key=lambda rate: losses[rate]) if searches else entry.rate
        return [self._run(entry, rate, seed, "final", {}) for seed in self.experiment.seeds]

    def _run(self, entry: Entry, lr: float | None, seed: int, purpose: Purpose, changes: Mapping[str, float]) -> Spec:
        return Spec(
            experiment=self.experiment.name,
            task=self.experiment.task,
            data=self.data,
            base=self.experiment.base,
            base_files=self.base_files,
            dtype=self.experiment.dtype,
            quantize=entry.quantize or self.experiment.quantize,
            method=entry.method,
            label=entry.title(),
            fields=entry.fields(),
            text=entry.text,
            train={**self.experiment.train_of(entry), **changes, "lr": lr, "seed": seed},
            purpose=purpose,
            examples=dict(self.experiment.examples),
            forgetting=self.experiment.forgetting,
            score_every=self.experiment.score_every if purpose == "final" else None,
            best_by=self.experiment.best_by if purpose == "final" else "loss",
        )


def _losses(searches: Iterable[Spec], results: Mapping[str, Result]) -> dict[float, float]:
    """The mean validation loss by learning rate, of the rates at which every search has one."""
    losses: dict[float, list[float | None]] = {}
    for run in searches:
        result = results.get(run.key, {"status": "missing"})
        loss = result["validation_loss"] if result["status"] == "done" else None
        losses.setdefault(run.train["lr"], []).append(loss)
    finished = {rate: [loss for loss in values if loss is not None] for rate, values in losses.items()}
    return {rate: mean(values) for rate, values in finished.items() if len(values) == len(losses[rate])}


def _further(tried: Sequence[float], losses: Mapping[float, float], *, between: bool) -> float | None:
    """Where one rate alone is best: at an edge, the one as far beyond it as its neighbour is on this side. None else.

    With `between`, beside a rate that failed, the one between the two: a sweep needs losses on both sides.
    """
    best = min(losses, key=lambda rate: losses[rate], default=None)
    if best is None or list(losses.values()).count(losses[best]) > 1:
        return None
    place = tried.index(best)
    for side in (-1, 1):
        if not 0 <= place + side < len(tried):
            further = best * best / tried[place - side]
        elif between and tried[place + side] not in losses:
            further = math.sqrt(best * tried[place + side])
        else:
            continue
        if (rate := float(f"{further:.3g}")) not in tried:
            return rate
    return None


def _outcome(result: Result) -> str:
    """A finished run's primary score; before there is one, its validation loss."""
    if primary := (result.get("scores") or {}).get(result.get("primary")):
        return f"{result['primary']} {primary['value']:.3f}"
    loss = result["validation_loss"]
    return "the validation loss is not finite" if loss is None else f"validation loss {loss:.4f}"
