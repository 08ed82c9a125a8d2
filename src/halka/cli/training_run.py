"""What `halka train` does with its runs: locks their folders, shows every step, stops at Ctrl-C, saves the adapters."""

from __future__ import annotations

import shlex
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, nullcontext
from dataclasses import asdict, replace
from datetime import datetime
from functools import partial
from importlib.util import find_spec
from types import FrameType
from typing import Any

import typer

from halka.cli.command import Failed, own_rank, say, show_warnings
from halka.cli.progress import StepProgress, TokensProgress
from halka.cli.train_settings import RunPlan
from halka.core import AdaptedModel
from halka.data.task import Task
from halka.data.truncation import watched
from halka.evaluation.validation_score import ValidationScore
from halka.methods import primary
from halka.methods.prompt import started_from
from halka.models.heads import own_methods
from halka.models.rates import own_rate
from halka.storage.adapter_folder import AdapterFolder
from halka.storage.save_load import load
from halka.training import Job, Ranks, RunFolder, Step
from halka.training.fitting import Steps, train_locked
from halka.training.job import encoded
from halka.training.run_folder import RUN, help_finish
from halka.util.divided import checked_by_first
from halka.util.errors import HalkaError, TrainingError
from halka.util.files import check_writable

TENSORBOARD = "tensorboard"


class TrainingRun:
    """One run of the command: what to train, under which name in the model, in which folder."""

    task: Task

    def __init__(self, plan: RunPlan, name: str, *, overwrite: bool, tensorboard: bool):
        """Raises HalkaError for a folder that holds something else."""
        self.plan, self.name, self.folder = plan, name, RunFolder(plan.run.out)
        self.overwrite, self.tensorboard = overwrite, tensorboard
        self._config = plan.train
        self._trained_on: dict[str, Any] = {}  # what the Card says of the examples, once they are encoded
        if tensorboard and find_spec("tensorboard") is None:
            raise HalkaError("--tensorboard needs a package that is not installed: pip install 'halka[tensorboard]'")
        try:
            self.folder.check()
            if own_rank() == "0" and not self.folder.path.exists():  # of several, the first one writes
                check_writable(self.folder.path)
        except HalkaError as error:
            raise HalkaError(f"--out: {error}") from None

    @property
    def finished(self) -> bool:
        """Whether the folder holds a finished run, which is to stay."""
        return self.folder.finished and not self.overwrite

    @property
    def labels(self) -> list[Sequence[str]]:
        """What its task tells apart, and the adapter that it begins as."""
        return [self.task.labels, () if self.plan.start is None else self.plan.start.labels]

    def add_adapter(self, model: AdaptedModel) -> None:
        """Add its adapter: a new one, whose virtual tokens start as --text, or the one that it begins as.

        Raises HalkaError as `load` and `RunPlan.started_as` do.
        """
        plan, text = self.plan, self.plan.run.text
        if plan.start is not None:
            try:
                with show_warnings():
                    adapter = load(model, plan.start, name=self.name)
            except HalkaError as error:
                raise type(error)(f"--from: {error}") from None
            if plan.start.card is None:
                self.plan = plan.started_as(primary(adapter.method))
            plan.check_joined(own_methods(model, self.name)[1:])
            return
        if text is not None:
            length = vars(plan.method)["length"] if "length" in plan.explicit else None
            plan = replace(plan, method=started_from(plan.method, text, model.tokenizer, length))
        model.add(self.name, plan.whole, seed=plan.train.seed, labels=self.task.labels)

    def job(self, model: AdaptedModel, on_scored: Callable[[int, int], None]) -> Job:
        """What is trained; `on_scored` is called with how many of all validation examples a score has answered."""
        anew = Ranks.here().from_first(datetime.now()) if self.overwrite else None
        start = self.plan.start
        job = Job(
            name=self.name,
            examples=self.task.train,
            config=self.plan.train,
            validation=self.task.validation,
            folder=self.folder.path,
            written=anew,
            start=start,
        )
        with show_warnings(), watched(TokensProgress()) if own_rank() == "0" else nullcontext():
            job = encoded(model, job)
        self._trained_on = {"examples": len(job.examples), "system": job.system, "start": start}
        if self.plan.run.best_by != "score":
            return job
        score = ValidationScore(model, self.name, self.task, lambda done: on_scored(done, len(job.validation)))
        return replace(job, score=score)

    def begin(self, model: AdaptedModel) -> None:
        """Write the settings of a new run; a run under way stays as it is, but for --overwrite."""
        begin = self.folder.begin_anew if self.overwrite else self.folder.begin
        method, *joined = own_methods(model, self.name)
        begin(self.plan.settings(method if self.plan.start is None else self.plan.method, joined))
        self._config = self.folder.with_settings_of_old(self._config, model.adapters[self.name].method.lr)

    @contextmanager
    def log(self) -> Iterator[Callable[[Step], None]]:
        """A function that logs a step: to TensorBoard, if that was asked for."""
        if not self.tensorboard:
            yield lambda step: None
            return
        from torch.utils.tensorboard import SummaryWriter

        with ExitStack() as block:
            writers: list[SummaryWriter] = []

            def write(step: Step) -> None:
                if not writers:  # of the steps from this one on, what an earlier process logged counts no more
                    folder = str(self.folder.path / TENSORBOARD)
                    writers.append(block.enter_context(SummaryWriter(folder, purge_step=step.step)))
                _write(writers[0], step)

            yield write

    def failed(self, error: TrainingError) -> dict[str, Any]:
        return {"folder": self.folder.path, "method": {"name": self.plan.method.name}, "error": str(error)}

    def finish(self, model: AdaptedModel) -> dict[str, Any]:
        """Save the trained adapter; returns the result for --json."""
        config, (method, *joined) = self._config, own_methods(model, self.name)
        result = self.folder.finish(model, self.name, config, **self._trained_on, task=self.task.name)
        return {
            "folder": self.folder.path,
            "task": self.task.name,
            "method": {"name": method.name, "fields": vars(method)},
            "joined": [{"name": other.name, "fields": vars(other)} for other in joined],
            "lr": config.lr or own_rate(model, self.name),
            **vars(result),
            "bytes": AdapterFolder.open(self.folder.adapter).weights.stat().st_size,
        }


def train_runs(model: AdaptedModel, runs: Sequence[TrainingRun]) -> list[dict[str, Any]]:
    """Train the runs' adapters together and save them; returns the result of each, or its error.

    Where several processes train together, the first one alone writes and has results. Raises Failed where all of them
    fail, and typer.Exit after Ctrl-C.
    """
    progress = StepProgress(named=len(runs) > 1)
    jobs = [run.job(model, partial(progress.scored, run.name)) for run in runs]
    with ExitStack() as folders:
        checked_by_first(lambda: _begin(runs, model, folders))
        errors: dict[str, TrainingError] = {}
        try:
            stopped = _watch(train_locked(model, jobs), {run.name: run for run in runs}, errors, progress)
        except TrainingError as error:
            raise Failed(str(error)) from error
        if stopped:
            _say_how_to_resume(runs)
            raise typer.Exit(128 + stopped)
        if not Ranks.here().first:
            for run in runs:
                if run.name not in errors:
                    help_finish(model, run.name)
            return []
        return [run.failed(errors[run.name]) if run.name in errors else run.finish(model) for run in runs]


def _begin(runs: Sequence[TrainingRun], model: AdaptedModel, folders: ExitStack) -> None:
    """Lock the runs' folders until `folders` ends, and write the settings of new runs."""
    for run in runs:
        folders.enter_context(run.folder.locked())
    for run in runs:
        if run.finished:  # by another process, while this one read its base and its data
            raise HalkaError(
                f"--out: {run.folder.path} holds a finished run meanwhile: --overwrite trains again, or choose another"
            )
    for run in runs:
        run.begin(model)


def _watch(
    steps: Steps[dict[str, Step | TrainingError]],
    runs: dict[str, TrainingRun],
    errors: dict[str, TrainingError],
    progress: StepProgress,
) -> int:
    """Show every step, and collect the errors; returns the number of the signal that stopped it, or 0 at the end."""
    ranks = Ranks.here()
    try:
        with ExitStack() as open_now:
            signals = open_now.enter_context(stop_signals(together=ranks.count > 1))
            open_now.enter_context(progress)
            logs = {name: open_now.enter_context(run.log()) for name, run in runs.items() if ranks.first}
            for results in open_now.enter_context(closing(steps)):
                for name, step in results.items():
                    if isinstance(step, TrainingError):
                        errors[name] = step
                        if len(runs) > 1:
                            say(f"{name}: {step}")
                        continue
                    progress.step(step, name)
                    if name in logs:
                        logs[name](step)
                if ranks.any(bool(signals)):  # all end after the same step
                    steps.stop()
                    return signals[0] if signals else signal.SIGTERM
    except KeyboardInterrupt:
        return signal.SIGINT
    return 0


def _say_how_to_resume(runs: Sequence[TrainingRun]) -> None:
    if not any(run.folder.resumable for run in runs):
        say("Stopped before the first checkpoint: the same command begins anew")
    elif len(runs) > 1:
        same = "the same command" + (" without --overwrite" if any(run.overwrite for run in runs) else "")
        say(f"Stopped. Go on with {same}, or each alone: halka train --config FOLDER/run.yaml")
    else:
        say(f"Stopped. Go on with: halka train --config {shlex.quote(str(runs[0].folder.path / RUN))}")


def _write(writer: Any, step: Step) -> None:
    for key, value in asdict(step).items():
        if value is not None and key not in ("step", "steps", "best"):
            writer.add_scalar(key, value, step.step)


@contextmanager
def stop_signals(*, together: bool = False) -> Iterator[list[int]]:
    """A list that gets the signal's number once Ctrl-C or a termination asks to stop; Ctrl-C once more interrupts.

    SIGTERM counts once, since whoever sends it has SIGKILL. So does any signal to processes that train together, for
    it may come twice: from what ends all processes of a job (Slurm, systemd), and from torchrun, which sends SIGTERM
    after a second Ctrl-C.
    """
    signals: list[int] = []

    def remember(number: int, frame: FrameType | None) -> None:
        if number in signals and (together or number == signal.SIGTERM):
            return
        if signals:
            raise KeyboardInterrupt
        signals.append(number)
        say(f"stopping after this step{'; once more stops at once' if number == signal.SIGINT else ''}")

    before = {number: signal.signal(number, remember) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
