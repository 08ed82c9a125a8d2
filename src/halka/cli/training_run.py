"""Runs of `halka train` in their folders: begun or gone on with, watched, stopped by Ctrl-C, saved at their end.

A folder holds run.yaml (all settings), metrics.jsonl, a checkpoint while the run is unfinished, and at the end the
adapter. An adapter without a checkpoint is a finished run, which is not trained over unasked.
"""

from __future__ import annotations

import json
import shlex
import signal
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict
from importlib.util import find_spec
from types import FrameType
from typing import Any

import typer
from filelock import FileLock, Timeout

from halka.cli.command import Failed, say, show_warnings
from halka.cli.progress import StepProgress
from halka.cli.train_settings import Plan
from halka.core import AdaptedModel, chosen
from halka.data.task import Task
from halka.storage.save_load import WEIGHTS, save
from halka.training.loop import Job, as_tokens, train_many
from halka.training.run import BEST, CHECKPOINT, METRICS, Step
from halka.util.errors import HalkaError, TrainingError
from halka.util.files import write_text

RUN, ADAPTER, TENSORBOARD, LOCK = "run.yaml", "adapter", "tensorboard", ".lock"


class TrainingRun:
    """What one call of the command does in one folder, with the adapter `name` of the model."""

    task: Task

    def __init__(self, plan: Plan, name: str, *, overwrite: bool, tensorboard: bool):
        """Raises ValueError for a folder that holds something else."""
        self.plan, self.name, self.folder = plan, name, plan.run.out
        self.overwrite, self.tensorboard = overwrite, tensorboard
        if tensorboard and find_spec("tensorboard") is None:
            raise HalkaError("--tensorboard needs a package that is not here: pip install 'halka[tensorboard]'")
        if self.folder.exists() and not self.folder.is_dir():
            raise HalkaError(f"--out: {self.folder} is a file: name a folder")
        others = self.folder.is_dir() and any(not each.name.startswith(".") for each in self.folder.iterdir())
        if others and not (self.folder / RUN).exists():
            raise HalkaError(f"--out: {self.folder} exists and holds no run of halka train: choose another folder")

    @property
    def finished(self) -> bool:
        """There is nothing to do: the folder holds a finished run, which shall stay."""
        return (self.folder / ADAPTER).exists() and not (self.folder / CHECKPOINT).exists() and not self.overwrite

    def job(self, model: AdaptedModel) -> Job:
        """The run as the trainer takes it."""
        config = self.plan.train
        with show_warnings():
            items = as_tokens(model, self.task.train, config, self.name)
            held_out = as_tokens(model, self.task.validation, config, self.name) if self.task.validation else []
        return Job(self.name, items, config, held_out, self.folder)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """No other process trains in this folder meanwhile; the system lets go where this one is killed."""
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.folder / LOCK)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise HalkaError(f"--out: another process is training in {self.folder}: choose another folder") from None
        try:
            yield
        finally:
            (self.folder / LOCK).unlink(missing_ok=True)
            lock.release()

    def begin(self, model: AdaptedModel) -> None:
        """Leave a run that is under way as it is, and write down the settings of a new one."""
        if self.overwrite:
            (self.folder / CHECKPOINT).unlink(missing_ok=True)
        if not (self.folder / CHECKPOINT).exists():
            write_text(self.folder / RUN, self.plan.to_yaml(chosen(model.adapters[self.name].method)))

    @contextmanager
    def log(self) -> Iterator[Callable[[Step], None]]:
        """Something to tell each step: TensorBoard, if it was asked for."""
        if not self.tensorboard:
            yield lambda step: None
            return
        from torch.utils.tensorboard import SummaryWriter

        done = sum(1 for _ in (self.folder / METRICS).open()) if (self.folder / METRICS).exists() else 0
        with SummaryWriter(str(self.folder / TENSORBOARD), purge_step=done + 1) as writer:
            yield lambda step: _write(writer, step)

    def failed(self, error: TrainingError) -> dict[str, Any]:
        return {"folder": self.folder, "method": {"name": self.plan.method.name}, "error": str(error)}

    def finish(self, model: AdaptedModel) -> dict[str, Any]:
        """Save the trained adapter. Returns what came of it."""
        lines = (self.folder / METRICS).read_text(encoding="utf-8").splitlines()
        steps = [Step(**json.loads(line)) for line in lines]
        last, best = steps[-1], next((step for step in reversed(steps) if step.best), None)
        config, method = self.plan.train, chosen(model.adapters[self.name].method)
        record = {
            **asdict(config),
            "lr": config.lr or method.lr,
            "steps": last.step,
            "best_step": best.step if best else last.step,
            "examples": len(self.task.train),
            "tokens": last.tokens,
            "seconds": last.seconds,
            "loss": last.loss,
        }
        validation_loss = best.validation if best else None
        measured = {} if validation_loss is None else {"validation_loss": validation_loss}
        told = {"task": self.task.name, "training": record, "measurements": measured}
        folder = save(model, self.name, self.folder / ADAPTER, **told)
        for left in (CHECKPOINT, BEST):
            (self.folder / left).unlink(missing_ok=True)
        return {
            "folder": self.folder,
            "adapter": folder,
            "task": self.task.name,
            "method": {"name": method.name, "fields": vars(method)},
            **{key: record[key] for key in ("lr", "steps", "best_step", "loss", "tokens", "seconds")},
            "validation_loss": validation_loss,
            "parameters": model.adapters[self.name].count(),
            "bytes": (folder / WEIGHTS).stat().st_size,
        }


def train_runs(model: AdaptedModel, runs: Sequence[TrainingRun]) -> list[dict[str, Any]]:
    """Train the runs' adapters together and save them. Returns what came of each; of one that failed, its error.

    Raises Failed where nothing can go on, and typer.Exit when it was told to stop.
    """
    jobs = [run.job(model) for run in runs]
    with ExitStack() as folders:
        for run in runs:
            folders.enter_context(run.alone())
        for run in runs:
            run.begin(model)
        errors: dict[str, TrainingError] = {}
        try:
            stopped = _watch(train_many(model, jobs), {run.name: run for run in runs}, errors)
        except TrainingError as error:
            raise Failed(str(error)) from error
        if stopped:
            _say_how_to_go_on(runs)
            raise typer.Exit(128 + stopped)
        return [run.failed(errors[run.name]) if run.name in errors else run.finish(model) for run in runs]


def _watch(
    steps: Generator[dict[str, Step | TrainingError], None, None],
    runs: dict[str, TrainingRun],
    errors: dict[str, TrainingError],
) -> int:
    """Take every step and show it, and keep the errors; the number of the signal that stopped it, or 0 at the end."""
    try:
        with ExitStack() as open_now:
            asked = open_now.enter_context(stop_signals())
            progress = open_now.enter_context(StepProgress())
            logs = {name: open_now.enter_context(run.log()) for name, run in runs.items()}
            for told in open_now.enter_context(closing(steps)):
                for name, step in told.items():
                    if isinstance(step, TrainingError):
                        errors[name] = step
                        if len(runs) > 1:
                            say(f"{name}: {step}")
                        continue
                    progress.step(step, name if len(runs) > 1 else "")
                    logs[name](step)
                if asked:
                    return asked[0]  # closing saves checkpoints of this step
    except KeyboardInterrupt:
        return signal.SIGINT
    return 0


def _say_how_to_go_on(runs: Sequence[TrainingRun]) -> None:
    if not any((run.folder / CHECKPOINT).exists() for run in runs):
        say("Stopped before the first checkpoint: the same command begins anew")
    elif len(runs) > 1:
        say("Stopped. Go on with the same command, or each alone: halka train --config FOLDER/run.yaml")
    else:
        say(f"Stopped. Go on with: halka train --config {shlex.quote(str(runs[0].folder / RUN))}")


def _write(writer: Any, step: Step) -> None:
    for key, value in asdict(step).items():
        if value is not None and key not in ("step", "steps", "best"):
            writer.add_scalar(key, value, step.step)


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """A list that holds the signal's number once Ctrl-C or a termination asked to stop; a second Ctrl-C interrupts."""
    asked: list[int] = []

    def ask(number: int, frame: FrameType | None) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)
        say("stopping after this step; once more stops at once")

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
