"""An experiment to its measurements: a small learning-rate search per method, then seeds; what is missing is run.

Each run is a process of its own (`measure.py`) and one JSON in the experiment's folder. A run that is there is not run
again; one that failed is recorded, and the rest goes on.
"""

from __future__ import annotations

import hashlib
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from halka.files import write_text
from halka.measure import BASE, SCHEMA, Run, failed
from halka.methods import method_named
from halka.training import TrainConfig

Kind = Literal["started", "step", "done", "failed", "skipped"]


class Entry(BaseModel):
    """One method of an experiment, with its fields beside it and the learning rates to search."""

    model_config = ConfigDict(extra="allow", frozen=True)

    method: str
    label: str = ""
    lrs: tuple[float, ...] = ()

    @model_validator(mode="after")
    def _builds(self) -> Entry:
        if self.method != BASE:
            try:
                method_named(self.method)(**self.fields())
            except TypeError as error:
                raise ValueError(f"{error}") from None
        return self

    def fields(self) -> dict[str, Any]:
        """The method's own fields, as the file gives them."""
        return {key: tuple(v) if isinstance(v, list) else v for key, v in (self.model_extra or {}).items()}

    def rates(self) -> tuple[float, ...]:
        return self.lrs or (method_named(self.method).lr,)

    def title(self) -> str:
        shown = " ".join(f"{key}={value}" for key, value in self.fields().items())
        return self.label or f"{self.method} {shown}".strip()


class Experiment(BaseModel):
    """What is compared, on what, and how."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    base: str = "smollm2-135m"
    dtype: str = "bfloat16"
    task: str
    examples: dict[str, int] = {}
    methods: tuple[Entry, ...]
    train: dict[str, Any] = {}
    search_steps: int | None = Field(
        default=None, description="steps of a search run; half of the final ones' if not given"
    )
    seeds: tuple[int, ...] = (0, 1, 2)
    jobs: Annotated[int, Field(ge=1, description="runs at a time")] = 1
    forgetting: str | None = None

    @model_validator(mode="after")
    def _fits(self) -> Experiment:
        try:
            TrainConfig(**self.train)
        except TypeError as error:
            raise ValueError(f"train: {error}") from None
        if repeated := {"lr", "seed"} & self.train.keys():
            raise ValueError(f"train: {', '.join(repeated)} is searched or set by seeds, not here")
        if unknown := self.examples.keys() - {"train", "validation", "test"}:
            raise ValueError(f"examples: the splits are train, validation and test, not {', '.join(sorted(unknown))}")
        titles = [entry.title() for entry in self.methods]
        if double := {title for title in titles if titles.count(title) > 1}:
            raise ValueError(f"methods: two are called {', '.join(double)}: give each its own label")
        if not self.seeds:
            raise ValueError("seeds: at least one is needed")
        return self


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


def read_experiment(path: str | Path) -> Experiment:
    """An experiment from its YAML file; a task's path is relative to it. Raises ValueError naming each wrong key."""
    path = Path(path)
    try:
        given = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"there is no experiment file {path}") from None
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {error}") from None
    if not isinstance(given, dict):
        raise ValueError(f"{path} holds no experiment: it needs at least name, task and methods")
    try:
        experiment = Experiment(**given)
    except ValidationError as error:
        told = [
            ("".join(f"{part}." for part in each["loc"])[:-1] or "experiment", each["msg"]) for each in error.errors()
        ]
        lines = "; ".join(f"{place}: {reason}" for place, reason in told)
        raise ValueError(f"{path}: {lines}") from None
    near = path.parent / experiment.task
    return experiment.model_copy(update={"task": str(near.resolve())}) if near.exists() else experiment


def demo_experiment() -> Experiment:
    """The demo: the shipped support desk, every family and full fine-tuning, a few minutes on two cores."""
    return Experiment(
        name="demo",
        task="support",
        examples={"validation": 32, "test": 60},
        methods=(
            Entry(method="full", label="full", lrs=(4e-4,)),
            Entry.model_validate({"method": "lora", "label": "LoRA r16", "lrs": (4e-3,), "rank": 16}),
            Entry(method="bottleneck", label="bottleneck", lrs=(4e-3,)),
            Entry(method="prefix", label="prefix", lrs=(3e-2,)),
            Entry(method="prompt", label="prompt", lrs=(1e-1,)),
            Entry(method=BASE, label="base (no tuning)"),
        ),
        train={"steps": 48, "batch_size": 4, "evaluate_every": 24, "save_every": None},
        seeds=(0,),
        jobs=max(1, min(4, (os.cpu_count() or 1))),
    )


def run(experiment: Experiment, folder: str | Path, *, retry: bool = False) -> Iterator[Event]:
    """Run what is missing in `folder`, at most `experiment.jobs` at a time, and say what happens."""
    yield from _Schedule(experiment, Path(folder), retry).go()


def measurements(folder: str | Path) -> list[dict[str, Any]]:
    """Every measurement in an experiment's folder, in the order of their names."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted((Path(folder) / "runs").glob("*.json"))]


def write_outputs(experiment: Experiment, folder: str | Path, command: str | None = None) -> Outputs:
    """The table, the summary and the report of what has been measured so far; `command` is how to run it again."""
    from halka.report import summarise, to_markdown, write_report

    folder = Path(folder)
    found = measurements(folder)
    summary = summarise(found)
    outputs = Outputs(folder / "report.html", folder / "table.md", folder / "summary.json", found)
    write_text(outputs.table, to_markdown(summary))
    write_text(outputs.summary, json.dumps(asdict(summary), indent=1) + "\n")
    write_report(found, outputs.report, title=experiment.name, command=command)
    return outputs


class _Schedule:
    """The runs that are due, those under way, and what they say."""

    def __init__(self, experiment: Experiment, folder: Path, retry: bool):
        self.experiment, self.folder, self.retry = experiment, folder, retry
        self.threads = max(1, (os.cpu_count() or 1) // experiment.jobs)
        self.said: queue.Queue[tuple[Run, dict[str, Any] | None]] = queue.Queue()
        self.due: list[Run] = []
        self.searching: dict[str, list[Run]] = {}
        self.ended: set[str] = set()  # search runs that this schedule has seen the end of
        self.processes: dict[str, subprocess.Popen[str]] = {}
        self.done = 0
        self.total = 0
        for entry in experiment.methods:
            searches = self._searches(entry)
            self.total += len(searches) + (1 if entry.method == BASE else len(experiment.seeds))
            self.searching[entry.title()] = searches
            self.due += searches or self._finals(entry, entry.rates()[0] if entry.method != BASE else None)

    def go(self) -> Iterator[Event]:
        entries = {entry.title(): entry for entry in self.experiment.methods}
        try:
            while self.due or self.processes:
                while self.due and len(self.processes) < self.experiment.jobs:
                    run = self.due.pop(0)
                    if result := self._finished(run):
                        yield self._ended(run, "skipped", result)
                        self._follow_up(run, entries[run.label])
                    else:
                        self._start(run)
                        yield Event("started", self.title(run), self.done, self.total)
                if not self.processes:
                    continue
                run, line = self.said.get()
                if line is not None:
                    yield Event(
                        "step", self.title(run), self.done, self.total, line["step"], line["steps"], line["loss"]
                    )
                    continue
                code = self.processes[self.key(run)].wait()
                del self.processes[self.key(run)]
                result = self._result(run) or self._lost(run, code)
                yield self._ended(run, "done" if result["status"] == "done" else "failed", result)
                self._follow_up(run, entries[run.label])
        finally:
            for process in self.processes.values():
                process.kill()
                process.wait()

    # ── which runs ──────────────────────────────────────────────────────────────────────────────────────────────

    def _searches(self, entry: Entry) -> list[Run]:
        if entry.method == BASE or len(entry.rates()) < 2:
            return []
        steps = TrainConfig(**self.experiment.train).steps
        shorter = {"steps": self.experiment.search_steps or max(1, steps // 2)} if steps else {}
        return [self._run(entry, lr, self.experiment.seeds[0], "search", shorter) for lr in entry.rates()]

    def _finals(self, entry: Entry, lr: float | None) -> list[Run]:
        seeds = self.experiment.seeds[:1] if lr is None else self.experiment.seeds
        return [self._run(entry, lr, seed, "final", {}) for seed in seeds]

    def _run(self, entry: Entry, lr: float | None, seed: int, purpose: str, changes: dict[str, Any]) -> Run:
        run = Run(
            experiment=self.experiment.name,
            task=self.experiment.task,
            base=self.experiment.base,
            dtype=self.experiment.dtype,
            method=entry.method,
            label=entry.title(),
            fields=entry.fields(),
            train={**self.experiment.train, **changes, "lr": lr, "seed": seed},
            purpose=purpose,
            examples=dict(self.experiment.examples),
            threads=self.threads,
            forgetting=self.experiment.forgetting,
        )
        return Run(**{**asdict(run), "folder": str(self.folder / "work" / self.key(run))})

    def _follow_up(self, run: Run, entry: Entry) -> None:
        """After the last search run of a method: its final runs, with the rate that has the lowest validation loss."""
        searches = self.searching[run.label]
        if run.purpose != "search":
            return
        self.ended.add(self.key(run))
        if not self.ended.issuperset(map(self.key, searches)):
            return
        results = [self._result(each) for each in searches]
        good = [each for each in results if each and each["status"] == "done" and each["validation_loss"] is not None]
        if good:
            best = min(good, key=lambda result: result["validation_loss"])
            self.due = self._finals(entry, best["lr"]) + self.due
        else:
            self.total -= len(self.experiment.seeds)

    # ── their files ─────────────────────────────────────────────────────────────────────────────────────────────

    def key(self, run: Run) -> str:
        """A file name that is the same for the same work: where and with how many threads it runs does not count."""
        told = {key: value for key, value in asdict(run).items() if key not in ("folder", "threads", "label", "task")}
        told = json.dumps({**told, "task": Path(run.task).name, "schema": SCHEMA}, sort_keys=True)
        digest = hashlib.sha256(told.encode()).hexdigest()[:8]
        rate = "" if run.train["lr"] is None else f"-lr{run.train['lr']:g}"
        safe = "".join(letter if letter.isalnum() else "-" for letter in run.label.lower()).strip("-")
        return f"{safe}{rate}-seed{run.train['seed']}-{run.purpose}-{digest}"

    def title(self, run: Run) -> str:
        rate = "" if run.train["lr"] is None else f", lr {run.train['lr']:g}"
        return f"{run.label}{rate}, seed {run.train['seed']}{' (search)' if run.purpose == 'search' else ''}"

    def _path(self, run: Run) -> Path:
        return self.folder / "runs" / f"{self.key(run)}.json"

    def _result(self, run: Run) -> dict[str, Any] | None:
        path = self._path(run)
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    def _finished(self, run: Run) -> dict[str, Any] | None:
        """What the run gave earlier, unless it failed and is to be tried again."""
        result = self._result(run)
        return None if result is None or (self.retry and result["status"] == "failed") else result

    def _ended(self, run: Run, kind: Kind, result: dict[str, Any]) -> Event:
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

    def _start(self, run: Run) -> None:
        work = Path(run.folder)
        write_text(work / "run.json", json.dumps(asdict(run), indent=1) + "\n")
        self._path(run).unlink(missing_ok=True)
        environment = {**os.environ, "OMP_NUM_THREADS": str(self.threads), "TOKENIZERS_PARALLELISM": "false"}
        with (work / "log.txt").open("w", encoding="utf-8") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "halka.measure", str(work / "run.json"), str(self._path(run))],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=environment,
            )
        self.processes[self.key(run)] = process
        threading.Thread(target=self._listen, args=(run, process), daemon=True).start()

    def _listen(self, run: Run, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                if (step := _a_step(line)) is not None:
                    self.said.put((run, step))
        self.said.put((run, None))

    def _lost(self, run: Run, code: int) -> dict[str, Any]:
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
