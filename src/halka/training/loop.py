"""The training loop: data, forward, loss, backward, step, evaluate, record; the same for every method and objective.

It trains several adapters on one base together: rows of all of them go through the base in one pass, each with its own
adapter, loss, gradients and optimiser. One adapter is the simplest case. `fitting.py` has the functions that start it.
Where several processes train together (`ranks.py`), each makes its share of a step's passes.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from halka.core import AdaptedModel
from halka.data.batches import Batch
from halka.data.examples import Item
from halka.data.packing import PackedBatch
from halka.models import without_dropout
from halka.models.attention.function import use_attention
from halka.models.casting import casting
from halka.models.float32_products import float32_products
from halka.models.layer_kernels import layer_kernels
from halka.objectives import batch_of, summed_losses
from halka.training.config import Step, TrainConfig
from halka.training.memory_errors import SMALLER_ADAPTER, SMALLER_BATCHES, memory_errors, smaller_pass
from halka.training.ranks import Ranks
from halka.training.run import Run, batch_plan, packs_batches
from halka.training.saving import resume_together, save_together
from halka.training.sharing import Pass, own_passes
from halka.util.core_share import give_cores_back, take_cores
from halka.util.errors import DataError, DivergedError, HalkaError, LostRankError, OutOfMemoryError, TrainingError
from halka.util.files import FULL
from halka.util.machine import returning_memory
from halka.util.mode import in_mode
from halka.util.seeds import seeded
from halka.util.transfer import to_device

SIMILAR = 1.25  # batches up to so many times as long as the shortest go through the base in one pass
ALONE = TrainConfig(batch_tokens=4096)  # limits the batches of a mean loss that no training asked for


class Observer:
    """Surrounds parts of a training step, for whoever measures them from outside; this one adds nothing.

    Pass one to `train` as `observe`. The estimator's dry run is one: it counts the work of each pass, and returns
    memory in its model of the allocator.
    """

    def one_pass(self) -> AbstractContextManager[None]:
        """Entered around the forward and backward pass of one batch."""
        return nullcontext()

    def last_step(self, step: int, steps: int) -> int:
        """The step to end with, asked of each run in step `step` of `steps`: an earlier one ends the schedule, too."""
        return steps

    def returning_memory(self) -> AbstractContextManager[None]:
        """Entered around the passes of a step that recomputes activations on a CPU."""
        return returning_memory()


def loop(
    model: AdaptedModel, runs: list[Run], observer: Observer, ranks: Ranks
) -> Generator[dict[str, Step | TrainingError], None, None]:
    """Train the runs together until each is over; yields by name the step of each, or the error that ends it."""
    if torch.is_inference_mode_enabled():
        raise HalkaError("torch.inference_mode() computes no gradients: train outside of it")
    resume_together(runs, ranks)
    device = next(model.base.parameters()).device
    before: dict[Run, int] = {}  # of the step under way: after how many steps its runs were
    changing = False  # whether weights are being changed, so that an error may leave them between two steps
    try:
        if any(run.progress.unrecorded for run in runs):  # an error ended its evaluation
            yield _evaluate_and_record(model, runs, [*runs], ranks)
        ahead = StepWork(model, {run: run.next_batches() for run in runs if not run.over}, ranks)
        while active := [run for run in runs if not run.over]:
            before = {run: run.progress.step for run in active}
            results: dict[str, Step | TrainingError] = {}
            started = time.perf_counter()
            take_cores(device)

            # data: the batches whose gradients make each run's next step
            same = [*ahead.batches] == active
            work = ahead if same else StepWork(model, {run: ahead.batches[run] for run in active}, ranks)

            # forward, loss, backward: the gradients of all passes add up
            losses: dict[Run, Tensor | float] = dict.fromkeys(active, 0.0)
            with _training_mode(model, active, observer, ranks.rank):
                for shared, batch, labels in work.passes:
                    with observer.one_pass():
                        pass_losses = _forward_backward(model, shared, batch, labels)
                    for run, loss in pass_losses.items():
                        losses[run] = losses[run] + loss
            following = {run: run.next_batches() for run in active if run.number < run.steps}
            ahead = StepWork(model, following, ranks)  # meanwhile
            read: dict[Run, tuple[float, float]] = {}
            computed: dict[Run, int] = {}
            for run in active:
                own = losses[run], work.computed[run]
                with memory_errors(f"at step {run.number}, in the optimiser", SMALLER_ADAPTER):
                    loss, computed[run] = ranks.reduce(run.adapter.parameters(), *own)
                    read[run] = _read(loss, run.clip())  # the host waits for the GPU
            seconds = time.perf_counter() - started

            # step
            changing = True
            for run in active:
                try:
                    run.end_with(observer.last_step(run.number, run.steps))
                    with memory_errors(f"at step {run.number}, in the optimiser", SMALLER_ADAPTER):
                        run.optimise(*read[run], work.tokens[run], computed[run], seconds)
                except DivergedError as error:  # this run ends, the others go on
                    results[run.name] = run.with_best(error)
                    runs.remove(run)
                finally:
                    run.optimizer.zero_grad()
            changing = False

            yield results | _evaluate_and_record(model, runs, [run for run in active if run in runs], ranks)
    except BaseException as error:
        for run in runs:
            run.optimizer.zero_grad()
        _save_whole_step(runs, before, error, changing)
        raise
    finally:
        give_cores_back()


def _save_whole_step(runs: list[Run], before: Mapping[Run, int], error: BaseException, changing: bool) -> None:
    """Write the runs' checkpoints if the error that ends them left their last step whole.

    It does where memory did not suffice, another process is lost, or the caller stops; and any error does, such as
    Ctrl-C, but one while weights were changing. Nothing is written to a full disk, where some runs have taken the step
    and others not, or of runs that are divided: of these all processes would have to write their parts.

    before     after how many steps the runs were before the step under way
    changing   whether optimisers were taking it
    """
    stops = isinstance(error, OutOfMemoryError | LostRankError | GeneratorExit)
    full = isinstance(error, OSError) and error.errno in FULL
    at_one_step = len({run.progress.step > before[run] for run in runs if run in before}) < 2
    if (stops or not (changing or full)) and at_one_step and not any(run.divided for run in runs):
        try:
            save_together([run for run in runs if run.progress.step], Ranks())  # else there is nothing to go on with
        except Exception as failed:
            if stops:
                raise
            error.add_note(f"No checkpoint was written: {failed}")


def _evaluate_and_record(
    model: AdaptedModel, runs: list[Run], active: Sequence[Run], ranks: Ranks
) -> dict[str, Step | TrainingError]:
    """Evaluate the last step of each active run where that is due, record and save it.

    Returns by name the step of each, or the error that ends it; such a run is removed from `runs`.
    """
    results: dict[str, Step | TrainingError] = {}
    for run in active:
        if (step := run.progress.unrecorded) is None:
            continue
        try:
            # evaluate
            if run.evaluation_due and step.validation is None:
                with memory_errors(f"in the evaluation after step {step.step}", SMALLER_BATCHES):
                    loss = mean_loss(model, run.name, run.held_out, run.config, ranks=ranks)
                    score = run.scored(ranks) if math.isfinite(loss) else None
                    with ranks.raised_in_all():
                        step = run.validated(step, loss, score)
            # record
            with ranks.raised_in_all():
                run.keep_adapter(step)
                run.record(step)
            results[run.name] = step
        except (OutOfMemoryError, LostRankError):  # all runs end
            raise
        except DivergedError as error:  # this run ends, the others go on
            results[run.name] = run.with_best(error)
            runs.remove(run)
        except TrainingError as error:  # so here, and it may go on later
            results[run.name] = error
            runs.remove(run)
            save_together([run], ranks)
    going_on = [run for run in active if run in runs]
    if any(run.save_due for run in going_on):
        save_together(going_on, ranks)
    return results


class StepWork:
    """What a step computes of each run's batches, made while a GPU computes the step before.

    tokens     of each run's batches, without padding
    labels     of each run's batches, one at least
    passes     each of this rank's passes: its items by run, the batch of all of them on the base's device, and what
               each run's loss there is divided by
    computed   of each run, the tokens that this rank's passes compute
    """

    def __init__(self, model: AdaptedModel, batches: dict[Run, list[list[Item]]], ranks: Ranks):
        self.batches = batches
        items = {run: [item for batch in own for item in batch] for run, own in batches.items()}
        self.tokens = {run: sum(map(len, own)) for run, own in items.items()}
        self.labels: dict[Run, float] = {run: max(1, sum(item.labels for item in own)) for run, own in items.items()}
        self.passes: list[tuple[Pass, PackedBatch | Batch, dict[Run, float]]] = []
        self.computed = dict.fromkeys(batches, 0)
        for shared, idle in own_passes([*_passes(batches)], ranks):
            with _memory_errors(shared):
                batch = batch_of(model, _groups(shared), packed=_packed(shared))
            self.passes.append((shared, batch, self.labels | dict.fromkeys(idle, math.inf)))
            for run, tokens in zip(shared, _computed(model, shared, batch), strict=True):
                self.computed[run] += tokens


def _read(loss: Tensor | float, norm: Tensor) -> tuple[float, float]:
    """The loss and the gradients' norm; of one device in one copy, for which the host waits once."""
    if not isinstance(loss, Tensor) or loss.device != norm.device:
        return float(loss), float(norm)
    both = torch.stack([loss, norm.to(loss.dtype)]).cpu()
    return float(both[0]), float(both[1])


def _groups(shared: Pass) -> dict[str | None, Sequence[Item]]:
    return {run.name: items for run, items in shared.items()}


def _packed(shared: Pass) -> bool:
    return all(run.packed for run in shared)


def _computed(model: AdaptedModel, shared: Pass, batch: PackedBatch | Batch) -> Sequence[int]:
    """The tokens of a pass that are computed of each run: of its line, or of its rows with their padding."""
    if isinstance(batch, PackedBatch):
        return batch.forest.runs
    base: Any = model.base
    longest = batch.input_ids.shape[1]
    if base.config.is_encoder_decoder:
        longest += batch.labels.shape[1]  # the answers' tokens
    return [len(items) * longest for items in shared.values()]


def _forward_backward(
    model: AdaptedModel, shared: Pass, batch: PackedBatch | Batch, labels: Mapping[Run, float]
) -> dict[Run, Tensor]:
    """One pass forward and back over a batch of each run; returns what it adds to each run's mean loss."""
    groups, packed = _groups(shared), _packed(shared)
    names = [*groups] if packed else [run.name for run, items in shared.items() for _ in items]
    with (
        torch.enable_grad(),
        _memory_errors(shared),
        model.use(names if len(groups) > 1 else names[0]),
    ):
        summed_R = summed_losses(model, groups, packed=packed, batch=batch)
        (labels_R,) = to_device([torch.tensor([labels[run] for run in shared], device="cpu")], summed_R.device)
        mean_R = summed_R / labels_R
        scaled = [mean if run.scale == 1 else mean * run.scale for run, mean in zip(shared, mean_R, strict=True)]
        torch.stack(scaled).sum().backward()  # pyright: ignore[reportUnknownMemberType]
    return dict(zip(shared, mean_R.detach(), strict=True))


def _memory_errors(shared: Pass) -> AbstractContextManager[None]:
    number = "/".join(map(str, sorted({run.number for run in shared})))
    items = [item for own in shared.values() for item in own]
    when = f"at step {number}, with a batch of {len(items)} examples of up to {max(map(len, items))} tokens"
    return memory_errors(when, smaller_pass(shared))


def _passes(batches: dict[Run, list[list[Item]]]) -> Iterator[dict[Run, list[Item]]]:
    """The batches that share a pass: each run's first, then their second ones …

    Padded ones do if of similar length, and if the longest text has room beside the most virtual tokens.
    """
    for turn in itertools.zip_longest(*batches.values()):
        batch_of = {run: items for run, items in zip(batches, turn, strict=True) if items is not None}
        longest = {run: max(map(len, items)) for run, items in batch_of.items()}
        packed: dict[Run, list[Item]] = {}
        padded: dict[Run, list[Item]] = {}
        most = 0.0  # tokens of a text in the padded pass
        for run in sorted(batch_of, key=longest.__getitem__):
            if run.alone:
                yield {run: batch_of[run]}
            elif run.packed:
                packed[run] = batch_of[run]
            else:
                if padded and longest[run] > min(most, run.room):
                    yield padded
                    padded = {}
                most = min(most if padded else SIMILAR * longest[run], run.room)
                padded[run] = batch_of[run]
        yield from (shared for shared in (packed, padded) if shared)


@contextmanager
def _training_mode(model: AdaptedModel, runs: list[Run], observer: Observer, rank: int) -> Generator[None]:
    """The base and the runs' adapters in train mode; dropout follows from the seed, the step and the rank."""
    base: Any = model.base
    seed = runs[0].config.seed * 1_000_003 + runs[0].number + rank * 1_000_000_007
    devices = {parameter.device for parameter in base.parameters()}
    parts = [part for run in runs for part in run.adapter.parts.values()]
    with (
        model.use(None),
        use_attention(base),
        in_mode(True, base),  # upon which transformers may give modules other forwards: before halka's
        layer_kernels(base),
        float32_products(base),
        seeded(seed, devices),
        ExitStack() as casts,
    ):
        with memory_errors(f"at step {runs[0].number}, before its first batch", SMALLER_ADAPTER):
            casts.enter_context(casting(parts, base.dtype))
        recompute = any(run.config.checkpointing for run in runs) and not base.is_activation_checkpointing
        for run in runs:
            run.adapter.train()
        try:
            if recompute:
                base.activation_checkpointing_enable(
                    {"use_reentrant": False, "context_fn": lambda: (nullcontext(), model.as_now())}
                )
            with observer.returning_memory() if recompute and base.device.type == "cpu" else nullcontext():
                yield
        finally:
            if recompute:
                base.activation_checkpointing_disable()
            for run in runs:
                run.adapter.train(False)


def mean_loss(
    model: AdaptedModel,
    name: str | None,
    items: Sequence[Item],
    config: TrainConfig = ALONE,
    *,
    ranks: Ranks | None = None,
) -> float:
    """The mean loss per label of `items` with adapter `name` (None: the bare base), without dropout.

    Batches are packed and limited as those of training with `config`; packed ones have examples that begin alike
    together. With `ranks`, all of which call this, each computes its share of the batches. Raises DataError for items
    without a label.
    """
    if not any(item.labels for item in items):
        raise DataError("there is no token to score: give items that have labels")
    ranks, device = ranks or Ranks(), next(model.base.parameters()).device
    packed = packs_batches(model, config)
    losses: list[Tensor] = []
    with (
        torch.no_grad(),
        model.use(name),
        use_attention(model.base),
        without_dropout(model, [name]),
        float32_products(model.base),
    ):
        batches = batch_plan(model, items, replace(config, group_shared=packed))
        for start in range(0, len(batches), ranks.count):  # as many passes on every rank
            take_cores(device)
            own = start + ranks.rank
            batch = [items[i] for i in batches[min(own, len(batches) - 1)]]
            losses.append(summed_losses(model, {name: batch}, packed=packed) * (own < len(batches)))
    of_batches = torch.cat(losses).cpu()  # for which the host waits once
    return ranks.sum(sum(float(loss) for loss in of_batches)) / sum(item.labels for item in items)
