"""The training loop: data, forward, loss, backward, step, evaluate, record; the same for every method and objective.

`fit` trains an adapter to the end, `train` yields each step, `train_many` trains several adapters on one base: rows of
all of them go through the base in one pass, each with its own adapter, loss, gradients and optimiser.
"""

from __future__ import annotations

import itertools
import time
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import torch
from torch import Tensor

from halka.core import AdaptedModel, described, in_mode
from halka.data.batches import plan
from halka.data.examples import ExamplesOrItems, Item, examples_and_items
from halka.models import pad_id
from halka.models.attention.function import use_attention
from halka.objectives import objective_of
from halka.training.config import Step, TrainConfig, TrainResult, config_of
from halka.training.data import as_tokens
from halka.training.run import Run
from halka.util.errors import HalkaError, OutOfMemoryError, TrainingError
from halka.util.machine import ran_out, returning_memory

T = TypeVar("T")
SIMILAR = 1.25  # batches up to so many times as long as the shortest go through the base in one pass


class Observer:
    """Surrounds parts of a training step, for whoever measures them from outside; this one adds nothing.

    Pass one to `train` as `observe`. The estimator's dry run is one: it counts the work of each pass, and returns
    memory in its model of the allocator.
    """

    def one_pass(self) -> AbstractContextManager[None]:
        """Entered around the forward and backward pass of one batch."""
        return nullcontext()

    def returning_memory(self) -> AbstractContextManager[None]:
        """Entered around the passes of a step that recomputes activations on a CPU."""
        return returning_memory()


def train(
    model: AdaptedModel,
    name: str,
    examples: ExamplesOrItems,
    config: TrainConfig | Mapping[str, Any] | None = None,
    *,
    validation: ExamplesOrItems = (),
    folder: str | Path | None = None,
    observe: Observer | None = None,
) -> Generator[Step, None, None]:
    """Train adapter `name` of `model`: a generator that yields a `Step` after each optimiser step.

    Nothing is trained until it is iterated; `fit` does that. `config` may be a dict of `TrainConfig`'s fields. With
    validation examples, the weights of the best evaluation are in place at the end. With a folder, each step is a line
    of its `metrics.jsonl`, and a run that was killed goes on exactly where its last checkpoint was.

    Raises DataError for data without labels, HalkaError for a wrong config or the folder of another run, TrainingError
    where training itself fails, OutOfMemoryError (one of these) where memory does not suffice.
    """
    run = _run_of(model, Job(name, examples, config_of(config), validation, folder))
    return _Steps(_steps_of_one(model, run, observe or Observer()), "train")


def fit(
    model: AdaptedModel,
    name: str,
    examples: ExamplesOrItems,
    config: TrainConfig | Mapping[str, Any] | None = None,
    *,
    validation: ExamplesOrItems = (),
    folder: str | Path | None = None,
    on_step: Callable[[Step], object] | None = None,
) -> TrainResult:
    """Train adapter `name` of `model` to the end, and return what came of it; `on_step` is called after each step.

    With a folder, the run is resumed where it was stopped, and leaves what `halka train` leaves: settings, metrics and
    the adapter (`RunFolder`). Raises as `train` does, and HalkaError for a folder with a finished run.
    """
    steps: list[Step] = []
    raw, items = examples_and_items(examples)
    run = _run_of(model, Job(name, [*items, *raw], config_of(config), validation, folder))
    if run.folder is not None:
        run.folder.check()
        if run.folder.finished:
            raise HalkaError(f"{run.folder.path} holds a finished run: load its adapter, or choose another folder")
    with nullcontext() if run.folder is None else run.folder.locked():
        if run.folder is not None:
            method = described(run.adapter.method)
            run.folder.begin({"method": method["name"], **method["fields"], "train": vars(run.config)})
        for step in _steps_of_one(model, run, Observer()):
            steps.append(step)
            if on_step is not None:
                on_step(step)
        if run.folder is not None:
            return run.folder.finish(model, name, run.config, examples=len(items) + len(raw))
    return TrainResult.of(steps, run.adapter.count())


@dataclass(frozen=True)
class Job:
    """One of the adapters that `train_many` trains: the arguments of `train`."""

    name: str
    examples: ExamplesOrItems
    config: TrainConfig = field(default_factory=TrainConfig)
    validation: ExamplesOrItems = ()
    folder: str | Path | None = None


def train_many(
    model: AdaptedModel, jobs: Sequence[Job], *, observe: Observer | None = None
) -> Generator[dict[str, Step | TrainingError], None, None]:
    """Train several adapters of `model` together: a generator that yields, by name, the step of each unfinished one.

    Each has its own data, learning rate, length and seed, and learns what `train` alone would teach it (but for what
    dropout drops). Batches of similar length go through the base in one pass; adapters of a language model's head, and
    full fine-tuning, go alone. The base is in memory once. An adapter that fails yields its TrainingError once; the
    others go on.

    Raises HalkaError for two jobs of one adapter or folder, and as `train` does; OutOfMemoryError for all jobs.
    """
    if not jobs:
        raise HalkaError("there is nothing to train: give at least one job")
    folders = [str(Path(job.folder).resolve()) for job in jobs if job.folder is not None]
    for kind, values in (("name", [job.name for job in jobs]), ("folder", folders)):
        if double := {value for value in values if values.count(value) > 1}:
            raise HalkaError(f"two jobs have the {kind} {', '.join(sorted(double))}: give each its own")
    runs: list[Run] = []
    for job in jobs:
        try:
            runs.append(_run_of(model, job))
        except HalkaError as error:
            error.args = (f"{job.name}: {error}",)
            raise
    return _Steps(_loop(model, runs, observe or Observer()), "train_many")


def mean_loss(model: AdaptedModel, name: str | None, items: Sequence[Item], batch_tokens: int = 4096) -> float:
    """The mean loss per label of `items` with adapter `name` (None: the bare base), without dropout."""
    objective = objective_of(model)
    total, count = 0.0, 0
    device = next(model.base.parameters()).device
    with torch.no_grad(), model.use(name), use_attention(model.base), in_mode(False, model.base):
        for chosen in plan([len(item) for item in items], seed=0, epoch=0, batch_tokens=batch_tokens):
            batch = objective.collate([items[i] for i in chosen], pad_id(model)).to(device)
            loss, labels = objective.loss(model, name, objective.outputs(model, batch), batch.labels)
            total, count = total + float(loss), count + labels
    return total / count


# ── the loop ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _loop(
    model: AdaptedModel, runs: list[Run], observer: Observer
) -> Generator[dict[str, Step | TrainingError], None, None]:
    for run in runs:
        run.resume()
    try:
        while active := [run for run in runs if not run.over]:
            results: dict[str, Step | TrainingError] = {}
            started = time.perf_counter()

            # data: the batches whose gradients make each run's next step
            batches = {run: run.next_batches() for run in active}
            tokens = {run: sum(len(item) for batch in batches[run] for item in batch) for run in active}
            labels = {run: max(1, sum(item.labels for batch in batches[run] for item in batch)) for run in active}

            # forward, loss, backward: the gradients of all passes add up
            losses = dict.fromkeys(active, 0.0)
            with _training_mode(model, active, observer):
                for shared in _passes(batches):
                    with observer.one_pass():
                        pass_losses = _forward_backward(model, shared, labels)
                    for run, loss in pass_losses.items():
                        losses[run] += loss
            seconds = time.perf_counter() - started

            for run in active:
                try:
                    # step
                    with _advice_on_memory(f"at step {run.number}, in the optimiser"):
                        step = run.optimise(losses[run], tokens[run], seconds)
                    # evaluate
                    if run.evaluation_due:
                        with _advice_on_memory(f"in the evaluation after step {step.step}"):
                            step = run.validated(step, mean_loss(model, run.name, run.held_out))
                    # record
                    run.record(step)
                    results[run.name] = step
                except TrainingError as error:  # this run ends, the others go on
                    results[run.name] = error
                    runs.remove(run)
                finally:
                    run.optimizer.zero_grad()
            yield results
    except BaseException as error:
        for run in runs:
            run.optimizer.zero_grad()
            if isinstance(error, OutOfMemoryError | GeneratorExit) and not run.over:  # the last step is whole
                run.save()
        raise


def _forward_backward(model: AdaptedModel, shared: dict[Run, list[Item]], labels: dict[Run, int]) -> dict[Run, float]:
    """One pass forward and back over a batch of each run; returns what it adds to each run's mean loss."""
    device = next(model.base.parameters()).device
    first = next(iter(shared))
    items = [item for items in shared.values() for item in items]
    batch = first.objective.collate(items, pad_id(model)).to(device)
    names = [run.name for run, items in shared.items() for _ in items]
    rows, longest = batch.input_ids.shape
    losses: dict[Run, float] = {}
    number = "/".join(map(str, sorted({run.number for run in shared})))
    with (
        _advice_on_memory(f"at step {number}, with a batch of {rows} rows of {longest} tokens"),
        model.use(names if len(shared) > 1 else first.name),
    ):
        outputs = first.objective.outputs(model, batch)
        total: Tensor | float = 0.0
        start = 0
        for run, items in shared.items():
            own = slice(start, start + len(items))
            summed, _ = run.objective.loss(model, run.name, outputs[own], batch.labels[own])
            total = total + summed / labels[run]
            losses[run] = float(summed.detach()) / labels[run]
            start += len(items)
        assert isinstance(total, Tensor)
        total.backward()  # pyright: ignore[reportUnknownMemberType]
    return losses


def _passes(batches: dict[Run, list[list[Item]]]) -> Iterator[dict[Run, list[Item]]]:
    """The batches that share a pass: each run's first, then their second ones …; those of similar length together."""
    for turn in itertools.zip_longest(*batches.values()):
        batch_of = {run: items for run, items in zip(batches, turn, strict=True) if items is not None}
        longest = {run: max(map(len, items)) for run, items in batch_of.items()}
        shared: dict[Run, list[Item]] = {}
        shortest = 0
        for run in sorted(batch_of, key=longest.__getitem__):
            if run.alone:
                yield {run: batch_of[run]}
                continue
            if shared and longest[run] > SIMILAR * shortest:
                yield shared
                shared = {}
            shortest = shortest if shared else longest[run]
            shared[run] = batch_of[run]
        if shared:
            yield shared


@contextmanager
def _training_mode(model: AdaptedModel, runs: list[Run], observer: Observer) -> Generator[None]:
    """The base and the runs' adapters in train mode; dropout follows from the seed and the step."""
    base: Any = model.base
    rng: Any = torch.random
    with model.use(None), use_attention(base), rng.fork_rng(), in_mode(True, base):
        recompute = any(run.config.checkpointing for run in runs) and not base.is_activation_checkpointing
        for run in runs:
            run.adapter.train()
        try:
            rng.manual_seed(runs[0].config.seed * 1_000_003 + runs[0].number)
            if recompute:
                base.activation_checkpointing_enable({"use_reentrant": False})
            with observer.returning_memory() if recompute and base.device.type == "cpu" else nullcontext():
                yield
        finally:
            if recompute:
                base.activation_checkpointing_disable()
            for run in runs:
                run.adapter.train(False)


@contextmanager
def _advice_on_memory(when: str) -> Generator[None]:
    """Turns errors of memory that ran out into OutOfMemoryError, which says what to lower."""
    try:
        yield
    except RuntimeError as error:
        if not ran_out(error):
            raise
        raise OutOfMemoryError(
            f"out of memory {when}: lower batch_tokens (and raise accumulate to keep the step's size), "
            "turn checkpointing on, or train fewer adapters together"
        ) from error


# ── around it ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _run_of(model: AdaptedModel, job: Job) -> Run:
    """The job with its examples encoded. Raises as `as_tokens` does."""
    items = as_tokens(model, job.examples, job.config, job.name)
    held_out = as_tokens(model, job.validation, job.config, job.name) if job.validation else []
    return Run(model, job.name, items, held_out, job.config, job.folder)


def _steps_of_one(model: AdaptedModel, run: Run, observer: Observer) -> Generator[Step, None, None]:
    """The steps of a single run; an error that ends it is raised."""
    steps = _loop(model, [run], observer)
    try:
        for results in steps:
            step = results[run.name]
            if isinstance(step, TrainingError):
                raise step
            yield step
    finally:
        steps.close()


class _Steps(Generator[T, None, None]):
    """A generator that warns when it is dropped without having been iterated, since nothing was trained then."""

    def __init__(self, steps: Generator[T, None, None], name: str):
        self._steps, self._name, self._used = steps, name, False

    def send(self, value: None) -> T:
        self._used = True
        return self._steps.send(value)

    def throw(
        self,
        typ: type[BaseException] | BaseException,
        val: BaseException | object = None,
        tb: TracebackType | None = None,
    ) -> T:
        self._used = True
        return self._steps.throw(typ, val, tb)  # type: ignore[arg-type]

    def close(self) -> None:
        self._used = True
        self._steps.close()

    def __del__(self) -> None:
        if not self._used:
            instead = " or call halka.fit" if self._name == "train" else ""
            warnings.warn(f"nothing was trained: iterate over halka.{self._name}(…){instead}", stacklevel=2)
