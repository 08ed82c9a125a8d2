"""train() and train_many(): the only loop. A generator of steps, the same for every method: print, stop, resume it.

Adapters that are trained together go through the base together: rows of all of them in one pass, each with its own
adapter, loss, gradients and optimiser. One adapter is the simplest case.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from halka.core import AdaptedModel, in_mode
from halka.data.batches import plan
from halka.data.examples import Example, Item
from halka.models import context, pad_id
from halka.models.attention.function import use_attention
from halka.objectives import objective_of
from halka.training.run import Run, Step, TrainConfig
from halka.util.errors import HalkaError, OutOfMemoryError, TrainingError
from halka.util.machine import ran_out, returning_memory

ALIKE = 1.25  # batches up to so many times as long as the shortest go through the base in one pass


def train(
    model: AdaptedModel,
    name: str,
    examples: Sequence[Example | Item],
    config: TrainConfig | None = None,
    *,
    validation: Sequence[Example | Item] = (),
    folder: str | Path | None = None,
) -> Generator[Step, None, None]:
    """Train adapter `name` of `model`; yields a `Step` after each optimiser step.

    With validation examples, the weights of the best evaluation are in place at the end. With a folder, each step is a
    line of `metrics.jsonl`, and a run that was killed goes on exactly where its last checkpoint was.

    Raises ValueError for data without labels, and `TrainingError` where training itself fails.
    """
    return _steps_of(_run_of(model, Job(name, examples, config or TrainConfig(), validation, folder)))


@dataclass(frozen=True)
class Job:
    """One of the adapters that `train_many` trains: what `train` takes for it."""

    name: str
    examples: Sequence[Example | Item]
    config: TrainConfig = field(default_factory=TrainConfig)
    validation: Sequence[Example | Item] = ()
    folder: str | Path | None = None


def train_many(model: AdaptedModel, jobs: Sequence[Job]) -> Generator[dict[str, Step | TrainingError], None, None]:
    """Train several adapters of `model` together; yields, by name, what one step did to each that is still going.

    Each has its own data, learning rate, length and seed, and learns what `train` alone would teach it (what dropout
    drops aside). Their batches go through the base in one pass where they are of like length; adapters of a
    language model's head and full copies of the weights go alone. The base is in memory once. One that fails is told
    once, by its TrainingError; the others go on.

    Raises ValueError for two jobs of one adapter or folder, and as `train` does; TrainingError where memory ran out.
    """
    if not jobs:
        raise HalkaError("there is nothing to train: give at least one job")
    folders = [str(Path(job.folder).resolve()) for job in jobs if job.folder is not None]
    for what, values in (("name", [job.name for job in jobs]), ("folder", folders)):
        if double := {value for value in values if values.count(value) > 1}:
            raise HalkaError(f"two jobs have the {what} {', '.join(sorted(double))}: give each its own")
    runs = []
    for job in jobs:
        try:
            runs.append(_run_of(model, job))
        except ValueError as error:
            raise HalkaError(f"{job.name}: {error}") from None
    return _together(model, runs)


def _run_of(model: AdaptedModel, job: Job) -> Run:
    """The job with its examples as the base reads them. Raises as `as_tokens` does."""
    items = as_tokens(model, job.examples, job.config, job.name)
    held_out = as_tokens(model, job.validation, job.config, job.name) if job.validation else []
    return Run(model, job.name, items, held_out, job.config, job.folder)


def as_tokens(
    model: AdaptedModel, examples: Sequence[Example | Item], config: TrainConfig, name: str | None = None
) -> list[Item]:
    """Examples as the base reads them for what it learns, with room for adapter `name`'s virtual tokens.

    None is longer than the base's context, whatever `max_length` allows. Raises ValueError where none is left, for
    items over the context, a label that the adapter does not know, and a model that came without a tokenizer.
    """
    objective = objective_of(model)
    tokens = [each for each in examples if not isinstance(each, Example)]
    raw = [each for each in examples if isinstance(each, Example)]
    room = context(model, name)
    if long := [str(i) for i, each in enumerate(tokens) if room is not None and len(each) > room]:
        raise HalkaError(
            f"{len(long)} of {len(tokens)} encoded examples, the first at {long[0]}, are longer than the {room} "
            "positions that the base has for text: cut them"
        )
    if raw:
        if model.tokenizer is None:
            raise HalkaError("to train on examples the model needs its tokenizer: `halka.adapt(base, tokenizer)`")
        length = min((each for each in (config.max_length, room) if each is not None), default=None)
        encoded = objective.encode(model, name, raw, length, config.too_long)
        tokens += encoded.items
        if encoded.dropped or encoded.cut:
            first = f", first {encoded.problems[0]}" if encoded.problems else ""
            warnings.warn(
                f"of {len(raw)} examples {encoded.cut} are cut to {length} tokens and "
                f"{encoded.dropped} left out{first}; `halka data preview` shows them all",
                stacklevel=2,
            )
    if not any(each.labels for each in tokens):
        raise HalkaError(f"no token to learn from in {len(examples)} examples: each needs an answer by the assistant")
    return tokens


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


def _steps_of(run: Run) -> Generator[Step, None, None]:
    """One run's steps."""
    steps = _together(run.model, [run])
    try:
        for told in steps:
            step = told[run.name]
            if isinstance(step, TrainingError):
                raise step
            yield step
    finally:
        steps.close()


def _together(model: AdaptedModel, runs: list[Run]) -> Generator[dict[str, Step | TrainingError], None, None]:
    for run in runs:
        run.begin()
    while going := [run for run in runs if not run.over]:
        told: dict[str, Step | TrainingError] = {}
        try:
            losses, tokens, seconds = _gradients(model, going)
        except TrainingError:  # memory ran out: what is done can be gone on with
            for run in going:
                run.save()
            raise
        for run in going:
            try:
                told[run.name] = _finished(run, losses[run], tokens[run], seconds)
            except TrainingError as error:
                told[run.name] = error
                runs.remove(run)
            finally:
                run.optimizer.zero_grad()
        try:
            yield told
        except GeneratorExit:
            for run in runs:
                if not run.over:
                    run.save()
            raise


def _finished(run: Run, loss: float, tokens: int, seconds: float) -> Step:
    """The rest of a step, whose gradients are there: the optimiser, an evaluation if one is due, the disk."""
    started = time.perf_counter()
    with _watched(f"at step {run.number}, in the optimiser"):
        norm, lr = run.apply(loss)
    step = run.stepped(loss, norm, lr, tokens, seconds + time.perf_counter() - started)
    if run.wants_evaluation:
        with _watched(f"in the evaluation after step {step.step}"):
            step = run.judged(step, mean_loss(run.model, run.name, run.held_out))
    run.record(step)
    return step


def _gradients(model: AdaptedModel, runs: list[Run]) -> tuple[dict[Run, float], dict[Run, int], float]:
    """Every run's gradients of its next step; its loss, its tokens, and the seconds it took in all."""
    started = time.perf_counter()
    taken = {run: run.take() for run in runs}
    labels = {run: max(1, sum(item.labels for batch in taken[run] for item in batch)) for run in runs}
    losses = dict.fromkeys(runs, 0.0)
    try:
        with _training(model, runs):
            for number in range(max(run.config.accumulate for run in runs)):
                for shared in _passes({run: taken[run][number] for run in runs if number < run.config.accumulate}):
                    for run, loss in _backward(model, shared, labels).items():
                        losses[run] += loss
    except BaseException:
        for run in runs:
            run.optimizer.zero_grad()
        raise
    tokens = {run: sum(len(item) for batch in taken[run] for item in batch) for run in runs}
    return losses, tokens, time.perf_counter() - started


def _passes(given: dict[Run, list[Item]]) -> Iterator[dict[Run, list[Item]]]:
    """The batches that go through the base in one pass: those of like length, so that little of it is padding."""
    longest = {run: max(map(len, items)) for run, items in given.items()}
    shared: dict[Run, list[Item]] = {}
    shortest = 0
    for run in sorted(given, key=longest.__getitem__):
        if run.alone:
            yield {run: given[run]}
            continue
        if shared and longest[run] > ALIKE * shortest:
            yield shared
            shared = {}
        shortest = longest[run] if not shared else shortest
        shared[run] = given[run]
    if shared:
        yield shared


def _backward(model: AdaptedModel, shared: dict[Run, list[Item]], labels: dict[Run, int]) -> dict[Run, float]:
    """One pass forward and back over the batches of several runs; what each adds to its mean loss."""
    device = next(model.base.parameters()).device
    first = next(iter(shared))
    together = [item for items in shared.values() for item in items]
    batch = first.objective.collate(together, pad_id(model)).to(device)
    names = [run.name for run, items in shared.items() for _ in items]
    rows, longest = batch.input_ids.shape
    losses: dict[Run, float] = {}
    number = "/".join(map(str, sorted({run.number for run in shared})))
    with (
        _watched(f"at step {number}, with a batch of {rows} rows of {longest} tokens"),
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
        total.backward()
    return losses


@contextmanager
def _training(model: AdaptedModel, runs: list[Run]) -> Iterator[None]:
    """The base and these adapters, ready for a step; dropout follows from the seed and the step."""
    base: Any = model.base
    with model.use(None), use_attention(base), torch.random.fork_rng(), in_mode(True, base):
        recompute = any(run.config.checkpointing for run in runs) and not base.is_activation_checkpointing
        for run in runs:
            run.adapter.train()
        try:
            torch.manual_seed(runs[0].config.seed * 1_000_003 + runs[0].number)
            if recompute:
                base.activation_checkpointing_enable({"use_reentrant": False})
            with returning_memory() if recompute and base.device.type == "cpu" else nullcontext():
                yield
        finally:
            if recompute:
                base.activation_checkpointing_disable()
            for run in runs:
                run.adapter.train(False)


@contextmanager
def _watched(when: str) -> Iterator[None]:
    """Let memory that ran out be said with the way out."""
    try:
        yield
    except RuntimeError as error:
        if not ran_out(error):
            raise
        raise OutOfMemoryError(
            f"out of memory {when}: lower batch_tokens (and raise accumulate to keep the step's size), "
            "turn checkpointing on, or train fewer adapters together"
        ) from error
