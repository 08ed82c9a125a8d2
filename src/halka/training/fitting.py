"""`fit`, `train` and `train_many`: examples and a config to the training loop."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar, cast

from halka.core import AdaptedModel, quantization_of
from halka.data.duplicates import between
from halka.data.examples import ExamplesOrItems, examples_and_items
from halka.methods import described
from halka.models.base_names import base_name
from halka.models.heads import own_methods
from halka.models.kinds import kind_of
from halka.training.config import Step, TrainConfig, TrainResult, config_of
from halka.training.job import EncodedJob, Job, encoded
from halka.training.loop import Observer, loop
from halka.training.ranks import Ranks
from halka.training.run import Run
from halka.training.run_folder import RunFolder, help_finish
from halka.training.saving import save_together
from halka.util.divided import checked_by_first
from halka.util.errors import HalkaError, TrainingError
from halka.util.text import plural

T = TypeVar("T")


def train(
    model: AdaptedModel,
    name: str,
    examples: ExamplesOrItems,
    config: TrainConfig | Mapping[str, Any] | None = None,
    *,
    validation: ExamplesOrItems = (),
    folder: str | Path | None = None,
    score: Callable[[], float] | None = None,
    observe: Observer | None = None,
) -> Steps[Step]:
    """Train adapter `name` of `model`: a generator that yields a `Step` after each optimiser step.

    Nothing is trained until it is iterated; `fit` does that. `config` may be a dict of `TrainConfig`'s fields. With
    validation examples, the weights of the best evaluation are in place at the end: that with the lowest loss, or with
    the highest `score`, which is called at each, with the adapter as it is then; of several processes all call it, and
    the first one's counts. With a folder, each step is a line of its `metrics.jsonl`, and a run that was killed goes on
    exactly where its last checkpoint was, but not by a score of another `name`, where it has one. Where another process
    trains in the folder, or a run is finished there, HalkaError is raised as it is iterated.

    Raises DataError for data without labels, HalkaError for a wrong config or the folder of another run, TrainingError
    where training itself fails, OutOfMemoryError (one of these) where memory does not suffice.
    """
    ranks = Ranks.joined()
    run = _run_of(model, Job(name, examples, config_of(config), validation, folder, score), ranks)
    return Steps(_alone(_steps_of_one(model, run, observe or Observer(), ranks), [run]), [run], "train")


def fit(
    model: AdaptedModel,
    name: str,
    examples: ExamplesOrItems,
    config: TrainConfig | Mapping[str, Any] | None = None,
    *,
    validation: ExamplesOrItems = (),
    folder: str | Path | None = None,
    score: Callable[[], float] | None = None,
    on_step: Callable[[Step], object] | None = None,
) -> TrainResult:
    """Train adapter `name` of `model` to the end, and return what came of it; `on_step` is called after each step.

    `score` decides which evaluation is the best, as in `train`. With a folder, the run is resumed where it was stopped,
    and leaves what `halka train` leaves: settings, metrics and the adapter (`RunFolder`). `halka train --config` reads
    the settings; it needs `--data` beside them, and `--base` for a base that came from no folder or hub. Raises as
    `train` does, and HalkaError for a folder with a finished run; where several processes train together, what the
    first one finds wrong with the folder is raised in all of them.
    """
    steps: list[Step] = []
    config = config_of(config)
    ranks = Ranks.joined()
    with ExitStack() as locks:
        if folder is not None:
            checked_by_first(lambda: _take(RunFolder(folder), locks))
        job = encoded(model, _read(Job(name, examples, config, validation, folder, score)))
        run = _run_of(model, job, ranks)
        if folder is not None:
            checked_by_first(lambda: RunFolder(folder).begin(_settings(run)))
        with closing(_steps_of_one(model, run, Observer(), ranks)) as running:  # where `on_step` raises, too
            for step in running:
                steps.append(step)
                if on_step is not None:
                    on_step(step)
        if folder is None:
            result = TrainResult.of(steps, run.adapter.count())
        else:
            counted = {"examples": len(run.items), "system": job.system}
            finish = partial(RunFolder(folder).finish, model, name, run.config, **counted)
            if not run.divided:
                result = checked_by_first(finish)
            else:
                result = finish() if ranks.first else help_finish(model, name)
    return cast(TrainResult, ranks.from_first(result))


def _take(folder: RunFolder, locks: ExitStack) -> None:
    """Lock the folder of a run until `locks` ends. Raises HalkaError for one that is taken, finished, or no run's."""
    folder.check()
    locks.enter_context(folder.locked())
    folder.check_unfinished()


def train_many(
    model: AdaptedModel, jobs: Sequence[Job], *, observe: Observer | None = None
) -> Steps[dict[str, Step | TrainingError]]:
    """Train several adapters of `model` together: a generator that yields, by name, the step of each unfinished one.

    Each has its own data, learning rate, length and seed, and learns what `train` alone would teach it (but for what
    dropout drops). Packed batches go through the base in one pass, which holds the tokens of all of them; padded ones
    do so if of similar length. What does not act token by token goes alone: a language model's head, a norm of heads, a
    mixture's block, full fine-tuning. The base is in memory once. An adapter that fails yields its TrainingError once;
    the others go on.

    Where a checkpoint of one is due, all are written: jobs with folders go on, when they were killed, from the newest
    step that all have, and compute what they would have computed, dropout included. One that failed begins again at its
    last checkpoint, and what dropout drops of the others then differs.

    Raises HalkaError for two jobs of one adapter or folder, and as `train` does; OutOfMemoryError for all jobs.
    """
    runs = _runs_of(model, jobs)
    return Steps(_alone(loop(model, runs, observe or Observer(), Ranks.here()), runs), runs, "train_many")


def train_locked(model: AdaptedModel, jobs: Sequence[Job]) -> Steps[dict[str, Step | TrainingError]]:
    """`train_many` for a caller who has locked the jobs' folders."""
    runs = _runs_of(model, jobs)
    return Steps(loop(model, runs, Observer(), Ranks.here()), runs, "train_many")


def _runs_of(model: AdaptedModel, jobs: Sequence[Job]) -> list[Run]:
    """The jobs as runs. Raises as `train_many` does."""
    if not jobs:
        raise HalkaError("there is nothing to train: give at least one job")
    folders = [str(Path(job.folder).resolve()) for job in jobs if job.folder is not None]
    for kind, values in (("name", [job.name for job in jobs]), ("folder", folders)):
        if double := {value for value in values if values.count(value) > 1}:
            raise HalkaError(f"two jobs have the {kind} {', '.join(sorted(double))}: give each its own")
    runs: list[Run] = []
    ranks = Ranks.joined()
    for job in jobs:
        try:
            runs.append(_run_of(model, job, ranks))
        except HalkaError as error:
            error.args = (f"{job.name}: {error}",)
            raise
    return runs


def _alone(steps: Generator[T, None, None], runs: Sequence[Run]) -> Generator[T, None, None]:
    """The steps, while no other process trains in the runs' folders, of which none holds a finished run."""
    folders = [run.folder for run in runs if run.folder is not None]
    with ExitStack() as locks:
        checked_by_first(lambda: _lock(folders, locks))
        yield from steps


def _lock(folders: Iterable[RunFolder], locks: ExitStack) -> None:
    for folder in folders:
        locks.enter_context(folder.locked())
        folder.check_unfinished()


def _run_of(model: AdaptedModel, job: Job, ranks: Ranks) -> Run:
    """The job as a run, with its folder on the first rank. Raises as `encoded` does."""
    config, job = job.config, job if isinstance(job, EncodedJob) else encoded(model, _read(job))
    if job.folder is not None:
        begun, lowest = RunFolder(job.folder), model.adapter(job.name).method.lr
        old = checked_by_first(lambda: begun.with_settings_of_old(config, lowest))
        config = cast(TrainConfig, ranks.from_first(old))
    return Run(model, replace(job, config=config, folder=job.folder if ranks.first else None))


def _read(job: Job) -> Job:
    """The job with its rows as examples. Warns of validation examples with a prompt that is trained on."""
    examples, items = examples_and_items(job.examples)
    held_out, held_out_items = examples_and_items(job.validation)
    if shared := between(examples, held_out):
        warnings.warn(
            f"the training examples have {plural(len(shared), 'prompt')} of validation, too: its loss is too low",
            stacklevel=2,
        )
    return replace(job, examples=[*items, *examples], validation=[*held_out_items, *held_out])


def _settings(run: Run) -> dict[str, Any]:
    """The settings of a run as run.yaml has them."""
    base, (first, *others) = run.model.base, own_methods(run.model, run.name)
    named = base_name(base)
    if named and Path(named).is_dir():
        named = str(Path(named).absolute())
    return {
        **({"base": named} if named else {}),
        "out": ".",
        "kind": kind_of(base),
        "dtype": str(base.dtype).removeprefix("torch."),
        "quantize": quantization_of(base),
        "method": first.name,
        "join": [{"method": other.name, **described(other)["fields"]} for other in others],
        **described(first)["fields"],
        "train": vars(run.config),
    }


def _steps_of_one(model: AdaptedModel, run: Run, observer: Observer, ranks: Ranks) -> Generator[Step, None, None]:
    """The steps of a single run; an error that ends it is raised."""
    steps = loop(model, [run], observer, ranks)
    try:
        for results in steps:
            step = results[run.name]
            if isinstance(step, TrainingError):
                raise step
            yield step
    finally:
        steps.close()


class Steps(Generator[T, None, None]):
    """The steps of runs: a generator that warns when it is dropped without having been iterated: nothing was trained.

    `close`, which leaving a loop calls, writes checkpoints, but not where a run is divided among processes (`stop`).
    """

    def __init__(self, steps: Generator[T, None, None], runs: list[Run], name: str):
        self._steps, self._runs, self._name, self._used = steps, runs, name, False
        self._at_step = False  # a step is done, and neither an error nor the end came after it

    def stop(self) -> None:
        """Write checkpoints and close. Processes that train together call this together, after the same step.

        None returns before the first one has written, whose error is raised in all.
        """
        try:
            if self._at_step:
                save_together(self._runs, Ranks.here())
        finally:
            self.close()

    def send(self, value: None) -> T:
        self._used, self._at_step = True, False
        step = self._steps.send(value)
        self._at_step = True
        return step

    def throw(
        self,
        typ: type[BaseException] | BaseException,
        val: BaseException | object = None,
        tb: TracebackType | None = None,
    ) -> T:
        self._used, self._at_step = True, False
        return self._steps.throw(typ, val, tb)  # type: ignore[arg-type]

    def close(self) -> None:
        self._used, self._at_step = True, False
        self._steps.close()

    def __del__(self) -> None:
        if not self._used:
            instead = " or call halka.fit" if self._name == "train" else ""
            warnings.warn(f"nothing was trained: iterate over halka.{self._name}(…){instead}", stacklevel=2)
