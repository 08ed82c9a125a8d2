"""One run of `halka train` in its folder: begun or gone on with, watched, stopped by Ctrl-C, saved at its end.

The folder holds run.yaml (all settings), metrics.jsonl, a checkpoint while the run is unfinished, and at the end the
adapter. An adapter without a checkpoint is a finished run, which is not trained over unasked.
"""

from __future__ import annotations

import json
import shlex
import signal
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from importlib.util import find_spec
from types import FrameType
from typing import Any

import typer
from filelock import FileLock, Timeout

from halka.cli.command import Failed, say, warnings_said
from halka.cli.progress import StepProgress
from halka.cli.train_settings import Plan
from halka.core import AdaptedModel
from halka.data.task import Task
from halka.files import write_text
from halka.run import BEST, CHECKPOINT, METRICS, Step, TrainingError
from halka.store import WEIGHTS, save
from halka.training import as_tokens, train

RUN, ADAPTER, TENSORBOARD = "run.yaml", "adapter", "tensorboard"
LOCK = ".lock"


class TrainingRun:
    """What one call of the command does in its folder."""

    def __init__(self, plan: Plan, *, overwrite: bool, tensorboard: bool):
        """Raises ValueError for a folder that holds something else, or a finished run unless `overwrite` is set."""
        self.plan, self.folder, self.overwrite = plan, plan.run.out, overwrite
        if tensorboard and find_spec("tensorboard") is None:
            raise ValueError("--tensorboard needs a package that is not here: pip install 'halka[tensorboard]'")
        self.tensorboard = tensorboard
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"--out: {self.folder} is a file: name a folder")
        others = self.folder.is_dir() and any(not each.name.startswith(".") for each in self.folder.iterdir())
        if others and not (self.folder / RUN).exists():
            raise ValueError(f"--out: {self.folder} exists and holds no run of halka train: choose another folder")
        if (self.folder / ADAPTER).exists() and not (self.folder / CHECKPOINT).exists() and not overwrite:
            raise ValueError(f"--out: {self.folder} holds a finished run: choose another folder, or add --overwrite")

    def go(self, model: AdaptedModel, name: str, task: Task) -> dict[str, Any]:
        """Train adapter `name` of `model` on `task` and save it. Returns what came of it.

        Raises Failed where training cannot go on, and typer.Exit when it was told to stop.
        """
        config = self.plan.train
        with warnings_said():
            items = as_tokens(model, task.train, config, name)
            held_out = as_tokens(model, task.validation, config, name) if task.validation else []
        with self._alone():
            if self.overwrite:
                (self.folder / CHECKPOINT).unlink(missing_ok=True)
            if not (self.folder / CHECKPOINT).exists():
                write_text(self.folder / RUN, self.plan.to_yaml(model.adapters[name].method))
            steps: Any = train(model, name, items, config, validation=held_out, folder=self.folder)
            try:
                if stopped := self._watch(steps):
                    self._say_how_to_go_on()
                    raise typer.Exit(128 + stopped)
            except TrainingError as error:
                raise Failed(str(error)) from error
            return self._finish(model, name, task)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """No other process trains in this folder meanwhile; the system lets go where this one is killed."""
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.folder / LOCK)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise ValueError(f"--out: another process is training in {self.folder}: choose another folder") from None
        try:
            yield
        finally:
            (self.folder / LOCK).unlink(missing_ok=True)
            lock.release()

    def _watch(self, steps: Generator[Step, None, None]) -> int:
        """Take every step and show it; the number of the signal that stopped it, or 0 at the end."""
        try:
            with stop_signals() as asked, StepProgress() as progress, self._log() as log, closing(steps):
                for step in steps:
                    progress.step(step)
                    log(step)
                    if asked:
                        return asked[0]  # closing saves a checkpoint of this step
        except KeyboardInterrupt:
            return signal.SIGINT
        return 0

    def _say_how_to_go_on(self) -> None:
        if (self.folder / CHECKPOINT).exists():
            say(f"Stopped. Go on with: halka train --config {shlex.quote(str(self.folder / RUN))}")
        else:
            say("Stopped before the first checkpoint: the same command begins anew")

    def _finish(self, model: AdaptedModel, name: str, task: Task) -> dict[str, Any]:
        lines = (self.folder / METRICS).read_text(encoding="utf-8").splitlines()
        steps = [Step(**json.loads(line)) for line in lines]
        last, best = steps[-1], next((step for step in reversed(steps) if step.best), None)
        config, method = self.plan.train, model.adapters[name].method
        record = {
            **asdict(config),
            "lr": config.lr or method.lr,
            "steps": last.step,
            "best_step": best.step if best else last.step,
            "examples": len(task.train),
            "tokens": last.tokens,
            "seconds": last.seconds,
            "loss": last.loss,
        }
        validation_loss = best.validation if best else None
        measured = {} if validation_loss is None else {"validation_loss": validation_loss}
        folder = save(model, name, self.folder / ADAPTER, task=task.name, training=record, measurements=measured)
        for left in (CHECKPOINT, BEST):
            (self.folder / left).unlink(missing_ok=True)
        return {
            "folder": self.folder,
            "adapter": folder,
            "task": task.name,
            "method": {"name": method.name, "fields": vars(method)},
            **{key: record[key] for key in ("lr", "steps", "best_step", "loss", "tokens", "seconds")},
            "validation_loss": validation_loss,
            "parameters": model.adapters[name].count(),
            "bytes": (folder / WEIGHTS).stat().st_size,
        }

    @contextmanager
    def _log(self) -> Iterator[Callable[[Step], None]]:
        """Something to tell each step: TensorBoard, if it was asked for."""
        if not self.tensorboard:
            yield lambda step: None
            return
        from torch.utils.tensorboard import SummaryWriter

        done = sum(1 for _ in (self.folder / METRICS).open()) if (self.folder / METRICS).exists() else 0
        with SummaryWriter(str(self.folder / TENSORBOARD), purge_step=done + 1) as writer:
            yield lambda step: _write(writer, step)


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
