"""Runs a study's parts in processes of their own: finished runs are kept, failed ones recorded, the rest goes on.

A study's folder:
  runs/KEY.json   a run's result; a run whose result is there is not run again
  work/KEY/       run.json (the run, for its process), log.txt (the process's stderr), and what the run leaves there:
                  if it was stopped it goes on with that
  .lock           held while a process runs the study

A run's process is `python -m PROGRAM work/KEY/run.json runs/KEY.json …`, with several pairs of paths for runs that
share a process. `serve` is its main function: it writes each result and prints a line of JSON a step, a skipped
document and a result (`report`), which `Runner` turns into events. Where the process runs is the `Host`'s.
"""

from __future__ import annotations

import json
import platform
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal

from halka.studies.hosts import Group, Host, R, Result
from halka.util.files import locked, write_text
from halka.util.plain import plain

if TYPE_CHECKING:
    import torch

    from halka.training import Step

Kind = Literal["started", "step", "lost", "done", "failed", "skipped"]
Due = Callable[[Mapping[str, Result]], tuple[Sequence[Sequence[R]], int]]
"""From the results so far, by key: all runs that are due, those of one list in one process, and how many may follow."""


@dataclass(frozen=True)
class Event:
    """Something that happened to one run, on a `node` of a cluster; `done` of `total` runs have ended."""

    kind: Kind
    run: str
    done: int
    total: int
    step: int | None = None
    steps: int | None = None
    loss: float | None = None
    message: str = ""
    node: str = ""


def alone_in(folder: Path) -> AbstractContextManager[None]:
    """Keep other processes out of a study's folder, which is made.

    Raises HalkaError where one is at work, and for a file.
    """
    return locked(folder, f"another process runs a study in {folder}: wait for it, or name another folder")


class Runner(Generic[R]):
    """Runs the missing runs of a study in `folder`.

    host      where their processes run
    outcome   a line on a finished run's result
    retry     whether runs that failed earlier are run again
    """

    def __init__(self, folder: Path, host: Host[R], outcome: Callable[[Result], str], *, retry: bool = False):
        self.folder, self.host, self.outcome, self.retry = folder, host, outcome, retry
        self.running: dict[str, Group[R]] = {}

    def result(self, run: R) -> Result | None:
        """The run's result, if its file is there."""
        path = self._path(run)
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    def go(self, plan: Due[R]) -> Iterator[Event]:
        """Run what `plan` says until nothing is due, and yield what happens.

        Runs that share a process and have no result when it ends are run again, each in a process of its own.
        """
        ended: dict[str, Result] = {}
        begun: set[str] = set()  # the runs whose start has been reported
        alone: set[str] = set()  # the runs that a shared process did not finish
        groups, to_come = plan(ended)

        def event(kind: Kind, title: str, **more: Any) -> Event:
            return Event(kind, title, len(ended), sum(map(len, groups)) + to_come, **more)

        def starting(runs: Iterable[R], node: str = "") -> Iterator[Event]:
            for run in runs:
                if run.key not in begun:
                    begun.add(run.key)
                    yield event("started", run.title, node=node)

        def ending(run: R, result: Result, kind: Kind | None = None) -> Event:
            nonlocal groups, to_come
            ended[run.key] = result
            groups, to_come = plan(ended)
            failed = result.get("status") == "failed"
            message = str(result["error"]) if failed else self.outcome(result)
            return event(kind or ("failed" if failed else "done"), run.title, message=message)

        try:
            while True:
                if self.host.has_room() and (due := self._due(groups, ended, alone)):
                    missing = []
                    for run in due:
                        if (result := self._kept(run)) is not None:
                            yield ending(run, result, "skipped")
                        else:
                            missing.append(run)
                    if missing:
                        self._start(missing)
                    continue
                if not self.running:
                    return
                group, line = self.host.report()
                node, unfinished = line.get("node", ""), [run for run in group.runs if run.key not in ended]
                if "over" in line:
                    del self.running[group.key]
                    for run in unfinished:
                        result = self.result(run)
                        if result is None and len(group.runs) > 1:
                            alone.add(run.key)
                            continue
                        yield from starting([run])
                        yield ending(run, result or self._failed(run, line["over"]))
                    continue
                if "lost" in line:
                    for run in (run for run in unfinished if run.key in begun):
                        begun.remove(run.key)
                        yield event("lost", run.title, message=line["lost"], node=node)
                    continue
                run = group.runs[line.get("run", 0)]
                yield from starting([run], node)
                if "skipped" in line:
                    yield event("skipped", line["skipped"], message=line["reason"])
                elif "step" in line:
                    yield event("step", run.title, step=line["step"], steps=line["steps"], loss=line["loss"], node=node)
                elif "ended" in line and (result := self.result(run)) is not None:
                    yield ending(run, result)
        finally:
            self.host.close()

    def prepare(self, runs: Sequence[R]) -> Group[R]:
        """Write the runs' files for their process."""
        files = []
        for run in runs:
            source, target = self.folder / "work" / run.key / "run.json", self._path(run)
            write_text(source, json.dumps(asdict(run), indent=1) + "\n")
            target.unlink(missing_ok=True)
            files.append((source, target))
        return Group((*runs,), (*files,))

    def _path(self, run: R) -> Path:
        return self.folder / "runs" / f"{run.key}.json"

    def _due(self, groups: Sequence[Sequence[R]], ended: Mapping[str, Result], alone: set[str]) -> list[R]:
        """The first group's runs that have neither ended nor begun; one run where it is to run alone."""
        running = {run.key for group in self.running.values() for run in group.runs}
        for group in groups:
            due = [run for run in group if run.key not in ended and run.key not in running]
            if due:
                return due[:1] if due[0].key in alone else due
        return []

    def _kept(self, run: R) -> Result | None:
        """The result of an earlier go, unless it records a failure and `retry` is set."""
        result = self.result(run)
        return None if result is None or (self.retry and result.get("status") == "failed") else result

    def _start(self, runs: Sequence[R]) -> None:
        group = self.prepare(runs)
        self.host.start(group)
        self.running[group.key] = group

    def _failed(self, run: R, reason: str) -> Result:
        """Record a run whose process ended without a result."""
        result = run.failed(reason)
        write_text(self._path(run), json.dumps(result, indent=1) + "\n")
        return result


# ── the process's side ──────────────────────────────────────────────────────────────────────────────────────────────


def serve(
    arguments: Sequence[str],
    read: Callable[[dict[str, Any]], R],
    measure: Callable[[Sequence[R], Sequence[Path]], Iterable[Result]],
) -> int:
    """Measure the runs that `arguments` name (pairs: run.json, result), write their results, return the exit code.

    `measure` gets the runs and their work folders, and yields a result each, in their order. An error is recorded as
    the run's failure where it is the only one; of several nothing more is written, and the runner tries each by itself.
    """
    sources, targets = [Path(path) for path in arguments[::2]], [Path(path) for path in arguments[1::2]]
    runs = [read(json.loads(source.read_text(encoding="utf-8"))) for source in sources]
    statuses = []

    def write(number: int, result: Result) -> None:
        write_text(targets[number], json.dumps(plain(result), indent=1) + "\n")
        statuses.append(result.get("status"))
        report(run=number, ended=True)

    try:
        for number, result in enumerate(measure(runs, [source.parent for source in sources])):
            write(number, result)
    except BrokenPipeError:  # whoever reads the reports is gone, and nothing is wrong with the run
        return 1
    except Exception as error:
        traceback.print_exc()
        if len(runs) > 1:
            return 1
        write(0, runs[0].failed(f"{type(error).__name__}: {error}"))
    return int("failed" in statuses)


def report(**line: Any) -> None:
    """Print a line of JSON for the runner: a step (`run`, `step`, `steps`, `loss`), a skipped document, a run's end."""
    print(json.dumps(line), flush=True)


def report_step(step: Step, run: int = 0) -> None:
    """Report a training step of the numbered run of this process."""
    report(run=run, step=step.step, steps=step.steps, loss=step.loss)


def origin(device: torch.device) -> dict[str, Any]:
    """Where a result is from: versions, machine, commit and date."""
    from halka.util import machine

    return {
        "versions": {package: version(package) for package in ("halka", "torch", "transformers")}
        | {"python": platform.python_version()},
        "machine": machine.describe(device),
        "commit": machine.commit(),
        "date": now(),
    }


def now() -> str:
    """The date and time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
