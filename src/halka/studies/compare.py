"""An experiment to its measurements: a small learning-rate search per method, then seeds; what is missing is run.

Each run is a process of its own (`measure.py`) and one JSON in the experiment's folder. A run that is there is not run
again; one that failed is recorded, and the rest goes on.
"""

from __future__ import annotations

import hashlib
import json
import os
import queue
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from halka.studies.experiment import Entry, Experiment, digest, task_of
from halka.studies.measure import BASE, SCHEMA, Spec, failed
from halka.training import TrainConfig
from halka.util.files import locked, write_text

if TYPE_CHECKING:
    from halka.report import Section

Kind = Literal["started", "step", "done", "failed", "skipped"]


@dataclass(frozen=True)
class Event:
    """Something that happened to one run; `done` of `total` runs have ended."""

    kind: Kind
    run: str
    done: int
    total: int
    step: int | None = None
    steps: int | None = None
    loss: float | None = None
    message: str = ""


@dataclass(frozen=True)
class Outputs:
    """What an experiment's folder holds at the end."""

    report: Path
    table: Path
    summary: Path
    measurements: list[dict[str, Any]]
    others: int  # measurements in the folder that are not this experiment's, as it is now


def run(experiment: Experiment, folder: str | Path, *, retry: bool = False) -> Iterator[Event]:
    """Run what is missing in `folder`, at most `experiment.jobs` at a time, and say what happens.

    Raises ValueError, before anything runs, for what would fail every run, and where another process is at work there.
    """
    schedule = _Schedule(experiment, Path(folder), retry)
    with alone_in(Path(folder)):
        yield from schedule.go()


def alone_in(folder: Path) -> AbstractContextManager[None]:
    """Keep other processes out of an experiment's folder, which is made. Raises HalkaError where one is at work."""
    return locked(folder, f"another process runs an experiment in {folder}: wait for it, or name another")


def measurements(folder: str | Path) -> list[dict[str, Any]]:
    """Every measurement in a folder, in the order of their names, whatever experiments they were made for."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted((Path(folder) / "runs").glob("*.json"))]


def write_outputs(
    experiment: Experiment, folder: str | Path, command: str | None = None, sections: Sequence[Section] = ()
) -> Outputs:
    """The table, the summary and the report of what has been measured so far; `command` is how to run it again.

    `sections` are what else the report is to hold.
    """
    from halka.report import summarise, to_markdown, write_report

    folder = Path(folder)
    found = _Schedule(experiment, folder, retry=False).found()
    summary = summarise(found)
    others = len(measurements(folder)) - len(found)
    outputs = Outputs(folder / "report.html", folder / "table.md", folder / "summary.json", found, others)
    write_text(outputs.table, to_markdown(summary))
    write_text(outputs.summary, json.dumps(asdict(summary), indent=1) + "\n")
    write_report(found, outputs.report, title=experiment.name, command=command, sections=sections)
    return outputs


class _Schedule:
    """The runs that are due, those under way, and what they say."""

    def __init__(self, experiment: Experiment, folder: Path, retry: bool):
        self.experiment, self.folder, self.retry = experiment, folder, retry
        self.data = digest(task_of(experiment))
        self.threads = max(1, (os.cpu_count() or 1) // experiment.jobs)
        self.said: queue.Queue[tuple[list[Spec], dict[str, Any] | None]] = queue.Queue()
        self.due: list[list[Spec]] = []  # those of one list run in one process
        self.searching: dict[str, list[Spec]] = {}
        self.begun: set[str] = set()
        self.ended: set[str] = set()  # search runs that this schedule has seen the end of
        self.processes: dict[str, subprocess.Popen[str]] = {}
        self.done = 0
        self.total = 0
        for entry in experiment.methods:
            searches = self._searches(entry)
            self.total += len(searches) + (1 if entry.method == BASE else len(experiment.seeds))
            self.searching[entry.title()] = searches
            runs = searches or self._finals(entry, entry.rates()[0] if entry.method != BASE else None)
            shared = bool(searches) and experiment.search_together and entry.method != "full"  # copies share no pass
            self.due += [runs] if shared else [[run] for run in runs]

    def go(self) -> Iterator[Event]:
        entries = {entry.title(): entry for entry in self.experiment.methods}
        try:
            while self.due or self.processes:
                while self.due and len(self.processes) < self.experiment.jobs:
                    missing = []
                    for run in self.due.pop(0):
                        if result := self._finished(run):
                            yield self._ended(run, "skipped", result)
                            self._follow_up(run, entries[run.label])
                        else:
                            missing.append(run)
                            if self.key(run) not in self.begun:
                                yield Event("started", self.title(run), self.done, self.total)
                            self.begun.add(self.key(run))
                    if missing:
                        self._start(missing)
                if not self.processes:
                    continue
                runs, line = self.said.get()
                if line is not None:
                    title = self.title(runs[line.get("run", 0)])
                    yield Event("step", title, self.done, self.total, line["step"], line["steps"], line["loss"])
                    continue
                code = self.processes[self.key(runs[0])].wait()
                del self.processes[self.key(runs[0])]
                if len(runs) > 1 and not all(map(self._result, runs)):  # together they may be too much: one by one
                    self.due = [[run] for run in runs if not self._result(run)] + self.due
                    runs = [run for run in runs if self._result(run)]
                for run in runs:
                    result = self._result(run) or self._lost(run, code)
                    yield self._ended(run, "done" if result["status"] == "done" else "failed", result)
                    self._follow_up(run, entries[run.label])
        finally:
            for process in self.processes.values():
                process.kill()
                process.wait()

    # ── which runs ──────────────────────────────────────────────────────────────────────────────────────────────

    def _searches(self, entry: Entry) -> list[Spec]:
        if entry.method == BASE or len(entry.rates()) < 2:
            return []
        steps = TrainConfig(**self.experiment.train).steps
        shorter = {"steps": self.experiment.search_steps or max(1, steps // 2)} if steps else {}
        return [self._run(entry, lr, self.experiment.seeds[0], "search", shorter) for lr in entry.rates()]

    def _finals(self, entry: Entry, lr: float | None) -> list[Spec]:
        seeds = self.experiment.seeds[:1] if lr is None else self.experiment.seeds
        return [self._run(entry, lr, seed, "final", {}) for seed in seeds]

    def _run(self, entry: Entry, lr: float | None, seed: int, purpose: str, changes: dict[str, Any]) -> Spec:
        run = Spec(
            experiment=self.experiment.name,
            task=self.experiment.task,
            base=self.experiment.base,
            dtype=self.experiment.dtype,
            quantize=entry.quantize or self.experiment.quantize,
            method=entry.method,
            label=entry.title(),
            fields=entry.fields(),
            train={**self.experiment.train, **changes, "lr": lr, "seed": seed},
            purpose=purpose,
            examples=dict(self.experiment.examples),
            threads=self.threads,
            forgetting=self.experiment.forgetting,
        )
        return Spec(**{**asdict(run), "folder": str(self.folder / "work" / self.key(run))})

    def _follow_up(self, run: Spec, entry: Entry) -> None:
        """After the last search run of a method: its final runs, with the rate that has the lowest validation loss."""
        searches = self.searching[run.label]
        if run.purpose != "search":
            return
        self.ended.add(self.key(run))
        if not self.ended.issuperset(map(self.key, searches)):
            return
        if (rate := self._chosen(searches)) is not None:
            self.due = [[run] for run in self._finals(entry, rate)] + self.due
        else:
            self.total -= len(self.experiment.seeds)

    def _chosen(self, searches: list[Spec]) -> float | None:
        """The learning rate whose search ended with the lowest validation loss."""
        results = [self._result(each) for each in searches]
        good = [each for each in results if each and each["status"] == "done" and each["validation_loss"] is not None]
        return min(good, key=lambda result: result["validation_loss"])["lr"] if good else None

    def found(self) -> list[dict[str, Any]]:
        """The measurements of this experiment's own runs, as far as they are there."""
        runs = []
        for entry in self.experiment.methods:
            searches = self.searching[entry.title()]
            if searches:
                rate = self._chosen(searches)
                runs += [*searches, *(self._finals(entry, rate) if rate is not None else [])]
            else:
                runs += self._finals(entry, None if entry.method == BASE else entry.rates()[0])
        return [result for run in runs if (result := self._result(run)) is not None]

    # ── their files ─────────────────────────────────────────────────────────────────────────────────────────────

    def key(self, run: Spec) -> str:
        """A file name that is the same for the same work under the same label, whatever the task's file is called.

        Where and with how many threads it runs does not count.
        """
        told = {key: value for key, value in asdict(run).items() if key not in ("folder", "threads", "label", "task")}
        if run.quantize is None:  # runs are known by the names that they had before there was the field
            del told["quantize"]
        told = json.dumps({**told, "data": self.data, "schema": SCHEMA}, sort_keys=True)
        digest = hashlib.sha256(told.encode()).hexdigest()[:8]
        rate = "" if run.train["lr"] is None else f"-lr{run.train['lr']:g}"
        safe = "".join(letter if letter.isalnum() else "-" for letter in run.label.lower()).strip("-")
        return f"{safe}{rate}-seed{run.train['seed']}-{run.purpose}-{digest}"

    def title(self, run: Spec) -> str:
        rate = "" if run.train["lr"] is None else f", lr {run.train['lr']:g}"
        return f"{run.label}{rate}, seed {run.train['seed']}{' (search)' if run.purpose == 'search' else ''}"

    def _path(self, run: Spec) -> Path:
        return self.folder / "runs" / f"{self.key(run)}.json"

    def _result(self, run: Spec) -> dict[str, Any] | None:
        path = self._path(run)
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    def _finished(self, run: Spec) -> dict[str, Any] | None:
        """What the run gave earlier, unless it failed and is to be tried again."""
        result = self._result(run)
        return None if result is None or (self.retry and result["status"] == "failed") else result

    def _ended(self, run: Spec, kind: Kind, result: dict[str, Any]) -> Event:
        self.done += 1
        primary = (result.get("scores") or {}).get(result.get("primary"))
        if result["status"] == "failed":
            message = str(result["error"])
        elif primary:
            message = f"{result['primary']} {primary['value']:.3f}"
        elif result["validation_loss"] is None:
            message = "the validation loss is not finite"
        else:
            message = f"validation loss {result['validation_loss']:.4f}"
        return Event(kind, self.title(run), self.done, self.total, message=message)

    # ── their processes ─────────────────────────────────────────────────────────────────────────────────────────

    def _start(self, runs: list[Spec]) -> None:
        files = []
        for run in runs:
            work = Path(run.folder)
            shutil.rmtree(work, ignore_errors=True)  # of a run that was stopped: a measurement is of a whole run
            write_text(work / "run.json", json.dumps(asdict(run), indent=1) + "\n")
            self._path(run).unlink(missing_ok=True)
            files += [str(work / "run.json"), str(self._path(run))]
        environment = {**os.environ, "OMP_NUM_THREADS": str(self.threads), "TOKENIZERS_PARALLELISM": "false"}
        with (Path(runs[0].folder) / "log.txt").open("w", encoding="utf-8") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "halka.studies.measure", *files],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=environment,
            )
        self.processes[self.key(runs[0])] = process
        threading.Thread(target=self._listen, args=(runs, process), daemon=True).start()

    def _listen(self, runs: list[Spec], process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                if (step := _a_step(line)) is not None:
                    self.said.put((runs, step))
        self.said.put((runs, None))

    def _lost(self, run: Spec, code: int) -> dict[str, Any]:
        """A process that ended without a word was killed, most often for its memory."""
        log = (Path(run.folder) / "log.txt").read_text(encoding="utf-8", errors="replace")[-500:]
        result = failed(run, f"the process ended with {code} (−9: killed, often for its memory). {log}".strip())
        write_text(self._path(run), json.dumps(result, indent=1) + "\n")
        return result


def _a_step(line: str) -> dict[str, Any] | None:
    """What a line of a run's output says of a step; libraries print there too."""
    try:
        said = json.loads(line)
    except ValueError:
        return None
    return said if isinstance(said, dict) and {"step", "steps", "loss"} <= said.keys() else None
