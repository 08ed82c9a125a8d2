"""One adapter's training run, without the loop: data order, optimiser, early stopping, best weights, checkpoints."""

from __future__ import annotations

import hashlib
import itertools
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from halka.core import AdaptedModel, quantization_of
from halka.data.batches import plan, plan_packed
from halka.data.examples import Item
from halka.data.tokens import Tokens
from halka.methods import described
from halka.models import context, shares_lines
from halka.models.fingerprint import own_fingerprint
from halka.models.rates import own_rate
from halka.models.rotary import changing_rotary
from halka.objectives import objective_of, packs
from halka.storage.save_load import help_save
from halka.training.checkpoint import (
    BEST_BY,
    PLAN,
    START,
    WRITTEN,
    Checkpoint,
    Progress,
    adapter_tensors,
    restore,
    save_checkpoint,
    shards_name,
)
from halka.training.config import Step, TrainConfig, learning_rate
from halka.training.job import EncodedJob
from halka.training.loss_scale import LEAST, after_step, unscale
from halka.training.memory_errors import SMALLER_SCORE, memory_errors
from halka.training.ranks import Ranks
from halka.training.run_folder import RunFolder
from halka.util.divided import checked_by_first, part_like, whole
from halka.util.errors import DivergedError, HalkaError, TrainingError
from halka.util.machine import held
from halka.util.tensor_file import iter_tensors, write_tensors

EVALUATIONS = 10  # of a run that does not say how often, evenly apart; of a shorter one as many as it has steps


class Run:
    """One adapter's training run: the batches of its next step, and what is done with the gradients.

    items, held_out   the job's training and validation examples
    alone             whether its batches share no pass with another adapter's: it does not act token by token, or on
                      a head that is called without whole rows, or texts change each other (`models/rotary.py`)
    packed            whether its batches are packed
    room              the positions for text beside the adapter's virtual tokens
    divided           whether each process holds a part of the adapter; then all of them write files together
    """

    def __init__(self, model: AdaptedModel, job: EncodedJob):
        name, config = job.name, job.config
        if job.score is not None and not job.validation:
            raise HalkaError("a score is made at evaluations, and there are none: give validation examples")
        if config.patience is not None and not job.validation:
            raise HalkaError(
                "patience counts evaluations, and there are none: give validation examples, or leave it out"
            )
        self.model, self.name, self.config = model, name, config
        self.items, self.held_out = job.examples, job.validation
        self.folder = None if job.folder is None else RunFolder(job.folder)
        self._score, self._written, self._start = job.score, job.written, job.start
        self.adapter = model.adapter(name)
        if not any(parameter.requires_grad for parameter in self.adapter.parameters()):
            raise HalkaError(f"nothing of adapter {name!r} trains: something set requires_grad=False on its parameters")
        if model.pool is not None:
            model.pool.removed(name)  # from now on it is the model's own: not what is in the store, and not evicted
        self.objective = objective_of(model)
        roles = {target.role for target in self.adapter.targets.values()}
        head = "head" in roles and not self.objective.head_sees_rows
        self.alone = head or not shares_lines(model, self.adapter) or changing_rotary(model.base) is not None
        self.divided = self.adapter.divided
        self.packed = packs_batches(model, config)
        self.room = context(model, name) or math.inf
        if config.group_shared and not self.packed:
            raise HalkaError(f"group_shared is for packed batches, and those of {type(model.base).__name__} are padded")
        self.steps = config.steps or max(1, math.ceil(round(len(self._plan(0)) / config.accumulate * config.epochs, 6)))
        self.peak_lr = config.lr or own_rate(model, name)
        self.optimizer = torch.optim.AdamW(
            self.adapter.parameters(), lr=self.peak_lr, weight_decay=config.weight_decay, fused=True
        )
        self.best: dict[str, Tensor] | None = None  # on the CPU, without a folder: weights of the best evaluation
        self.progress = Progress()
        self._next_checkpoint: Path | None = None  # the first process's, beside which all write what is divided
        self._saved: str | None = None  # the name of the last checkpoint's shards, whether it has any or not
        self._saved_best = 0  # the best step of the last checkpoint, whose weights stay until the next one

    def resume(self, ranks: Ranks) -> None:
        """Go on from the folder's checkpoint, if there is one: the first rank reads it and sends it to the others.

        Raises HalkaError for the checkpoint of another run, and where ranks do not train the same.
        """
        checkpoint = checked_by_first(self._checkpoint)
        if ranks.count > 1:
            ranks.check_same(self._identity)
        self._next_checkpoint = ranks.from_first(self.folder and self.folder.next_checkpoint.absolute())
        progress, divided = ranks.from_first((checkpoint.progress, checkpoint.divided) if checkpoint else (None, None))
        if progress is not None:
            self.progress, self._saved_best = progress, progress.best_step
            self._saved = shards_name(progress)
            tensors = ranks.stream(() if checkpoint is None else checkpoint.tensors())
            parts = () if divided is None else divided.tensors(self.adapter)
            restore(itertools.chain(tensors, parts), self.adapter, self.optimizer)
        elif ranks.count > 1 and not self.divided:
            restore(ranks.stream(adapter_tensors(self.adapter).items()), self.adapter, self.optimizer)
        if ranks.count > 1 and self.progress.best_step:
            self._share_best(ranks)
        self._batches = self._batches_from(self.progress.step * self.config.accumulate)
        if self.over:
            with ranks.raised_in_all():
                self.restore_best()

    def _checkpoint(self) -> Checkpoint | None:
        """The folder's, which fits the adapter. Raises HalkaError for that of another run."""
        checkpoint = None if self.folder is None else self.folder.resume(self._identity)
        if checkpoint is not None:
            checkpoint.check_fits(self.adapter)
        return checkpoint

    def _share_best(self, ranks: Ranks) -> None:
        """Let the others have the weights of the best evaluation that the first rank's folder has, or their parts."""
        own, here, step = self.adapter.state_dict(), self.folder is not None, self.progress.best_step
        best = {
            key: part_like(tensor, own[key]).cpu()
            for key, tensor in ranks.stream(() if self.folder is None else iter_tensors(self.folder.best(step)))
            if not here
        }
        self.best = None if here else best

    @property
    def scale(self) -> float:
        """The factor on the loss that gradients are computed of: 1 but in fp16."""
        return self.progress.scale if self._half else 1.0

    @property
    def _half(self) -> bool:
        return self.model.base.dtype == torch.float16

    @property
    def number(self) -> int:
        """The number of the next step, from 1."""
        return self.progress.step + 1

    @property
    def over(self) -> bool:
        done = self.progress.step >= self.steps or self.progress.stopped
        return done and self.progress.unrecorded is None

    def end_with(self, last: int) -> None:
        """End with that step, if it is not past yet and no later than planned."""
        self.steps = max(self.number, min(self.steps, last))

    def next_batches(self) -> list[list[Item]]:
        """The batches whose gradients make the next step."""
        return [next(self._batches) for _ in range(self.config.accumulate)]

    def clip(self) -> Tensor:
        """Clip the gradients; returns their norm before that, for which the host does not wait."""
        unscale(self.adapter.parameters(), self.scale)
        return whole(torch.nn.utils.clip_grad_norm_(self.adapter.parameters(), self.config.clip or math.inf))

    def optimise(self, loss: float, norm: float, tokens: int, computed: int, seconds: float) -> None:
        """Let the optimiser take a step with the clipped gradients of so many tokens, which took `seconds` to compute.

        In fp16 a step whose gradients overflow changes no weights; its gradient norm is recorded as 0. Raises
        DivergedError, with the weights unchanged, where else loss or gradients are not finite.
        """
        started = time.perf_counter()
        lr = learning_rate(self.number, self.steps, self.peak_lr, self.config)
        computed += self.progress.computed
        overflow = self._half and self.scale > LEAST and math.isfinite(loss) and not math.isfinite(norm)
        if not math.isfinite(loss + norm) and not overflow:
            raise DivergedError(
                f"the loss became {loss} (gradient norm {norm}) at step {self.number} with learning rate {lr:.3g}: "
                "try a lower learning rate, a longer warm-up, or fp32"
            )
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        with self.model.lock:  # no other thread computes with values half changed
            if not overflow:
                self.optimizer.step()  # pyright: ignore[reportUnknownMemberType]
        seconds += time.perf_counter() - started
        step = Step(
            step=self.number,
            steps=self.steps,
            loss=loss,
            lr=lr,
            gradient_norm=0.0 if overflow else norm,
            tokens=self.progress.tokens + tokens,
            seconds=self.progress.seconds + seconds,
            tokens_per_second=tokens / seconds,
            memory=held(self.optimizer.param_groups[0]["params"][0].device),
            computed=computed,
        )
        self.progress = replace(
            self.progress,
            **{"step": step.step, "tokens": step.tokens, "computed": computed, "seconds": step.seconds},
            unrecorded=step,
        )
        if self._half:
            self.progress = after_step(self.progress, overflow=overflow)

    @property
    def evaluation_due(self) -> bool:
        done, every = self.progress.step, self.config.evaluate_every
        if every is None:
            due = done * EVALUATIONS // self.steps > (done - 1) * EVALUATIONS // self.steps
        else:
            due = done % every == 0 or done == self.steps
        return bool(self.held_out) and due

    def scored(self, ranks: Ranks) -> float | None:
        """What `score` returns in the first process, where there is one; all processes call it.

        Raises TrainingError for what is no number.
        """
        if self._score is None:
            return None
        scoring = memory_errors(f"in the score after step {self.progress.step}", SMALLER_SCORE)
        with ranks.raised_in_all(), scoring:
            value: Any = self._score()
        score, shown = ranks.from_first((_number(value), str(value)[:80]))  # of several, all decide by the first one's
        if score is None:
            raise TrainingError(
                f"the score at step {self.progress.step} is {shown}, and no number: return one, such as "
                "halka.evaluate(…).scores[NAME].value"
            )
        return score

    def validated(self, step: Step, loss: float, score: float | None = None) -> Step:
        """The step with its validation loss and score; keeps the best weights and decides on early stopping.

        Raises DivergedError for a loss that is not finite, TrainingError for such a score.
        """
        if not math.isfinite(loss):
            raise DivergedError(
                f"the validation loss became {loss} at step {step.step}: try a lower learning rate, a longer "
                "warm-up, or fp32"
            )
        if score is not None and not math.isfinite(score):
            raise TrainingError(f"the score became {score} at step {step.step}: it must be a number, more for better")
        progress = after_evaluation(self.progress, loss, self.config.patience, score)
        step = replace(step, validation=loss, score=score, best=progress.best_step == step.step)
        if step.best:
            weights = self.adapter.state_dict()
            if self.folder is None:
                self.best = {key: tensor.detach().to("cpu", copy=True) for key, tensor in weights.items()}
            if self._writes:
                write_tensors(None if self.folder is None else self.folder.best(step.step), weights)
        self.progress = replace(progress, unrecorded=step)  # once its best weights are kept
        if step.best and self.folder is not None:
            self.folder.keep_bests(self._saved_best, step.step)
        return step

    def keep_adapter(self, step: Step) -> None:
        """Save the adapter as it is after this step, where the run has a folder and `keep_every` asks for it.

        Raises DivergedError for weights that are not finite.
        """
        if self._next_checkpoint is None or not self.config.keep_every or step.step % self.config.keep_every:
            return
        if not self.divided and not all(weight.isfinite().all() for weight in self.adapter.state_dict().values()):
            raise DivergedError(
                f"the weights are not finite after step {step.step}: try a lower learning rate, or a longer warm-up"
            )
        if self.folder is None:
            help_save(self.model, self.name)
        else:
            self.folder.keep_adapter(self.model, self.name, self.config, step, self._start)

    def record(self, step: Step) -> None:
        """Write the step to the folder's metrics."""
        if self.folder is not None:
            self.folder.record(step)
        self.progress = replace(self.progress, unrecorded=None)

    @property
    def save_due(self) -> bool:
        """Whether a checkpoint is to be written after this step."""
        return self.over or bool(self.config.save_every and self.progress.step % self.config.save_every == 0)

    @property
    def unsaved(self) -> bool:
        """Whether there were steps since the last checkpoint, or its step was recorded since."""
        return shards_name(self.progress) != self._saved

    def write_checkpoint(self) -> None:
        """Write a checkpoint beside the last one, where the run has a folder and `save_every` allows it."""
        if self._writes and self._next_checkpoint is not None and self.config.save_every:
            save_checkpoint(self._next_checkpoint, self._identity, self.progress, self.adapter, self.optimizer)

    def keep_checkpoint(self) -> None:
        """Put the checkpoint that was written in the place of the one before. After the last step, restore the best
        weights: a caller that leaves its loop there has them, too."""
        saved = shards_name(self.progress)
        if self.folder is not None and self.config.save_every:
            self.folder.keep_next()
            self._saved_best = self.progress.best_step
            self.folder.keep_parts(saved)
            self.folder.keep_bests(self._saved_best)
        self._saved = saved
        if self.over:
            self.restore_best()

    @property
    def _writes(self) -> bool:
        """Whether this process takes part in writing files."""
        return self.folder is not None or self.divided

    def restore_best(self) -> None:
        """Give the adapter the weights of the best evaluation, if there was one."""
        if self.progress.best_step:
            weights = self.best if self.folder is None else self.folder.load_best(self.progress.best_step)
            assert weights is not None
            with self.model.lock:
                self.adapter.load_state_dict(weights)

    def with_best(self, error: DivergedError) -> DivergedError:
        """The error, which says where the best weights are; the adapter has them then, where an evaluation came before.

        They are saved in the run's folder, too, but for those that are divided among processes.
        """
        step, loss = self.progress.best_step, self.progress.best_loss
        if not step:
            return DivergedError(f"{error}; no evaluation came before this step, whose weights would be kept")
        self.restore_best()
        where = "the adapter"
        if self.folder is not None and not self.divided:
            where = self.folder.save_best(self.model, self.name, self.config, step, loss, self._start)
        return DivergedError(f"{error}; the best weights, of step {step} (validation loss {loss:.4g}), are in {where}")

    def _plan(self, epoch: int) -> list[list[int]]:
        return batch_plan(self.model, self.items, self.config, epoch) if epoch else self._first_plan

    @cached_property
    def _first_plan(self) -> list[list[int]]:
        return batch_plan(self.model, self.items, self.config)

    def _batches_from(self, skip: int) -> Iterator[list[Item]]:
        """Batches without end, epoch after epoch, without the first `skip`."""
        indices = (batch for epoch in itertools.count() for batch in self._plan(epoch))
        for batch in itertools.islice(indices, skip, None):
            yield [self.items[i] for i in batch]

    @cached_property
    def _identity(self) -> dict[str, Any]:
        """What must be the same for a run to be resumed."""
        method = self.adapter.method
        return {
            "method": method.name,
            **{f"{method.name}'s {key}": value for key, value in described(method)["fields"].items()},
            **asdict(replace(self.config, save_every=None, keep_every=None, steps=self.steps, lr=self.peak_lr)),
            "batches": "packed" if self.packed else "padded",
            **({} if self._written is None else {WRITTEN: str(self._written)}),
            **({} if self._start is None else {START: self._start.id[:16]}),
            "dtype": str(self.model.base.dtype),
            "quantize": quantization_of(self.model.base),
            "data": _digest(_plain(self.items)),
            "validation": _digest(_plain(self.held_out)),
            BEST_BY: "loss" if self._score is None else getattr(self._score, "name", "score"),
            PLAN: _digest(self._first_plan),
            "base": own_fingerprint(self.model)["weights"],
        }


def batch_plan(model: AdaptedModel, items: Sequence[Item], config: TrainConfig, epoch: int = 0) -> list[list[int]]:
    """The items of each batch of an epoch, by their indices."""
    if packs_batches(model, config):
        tokens, shared = cast(Sequence[Tokens], items), config.group_shared
        return plan_packed(tokens, seed=config.seed, epoch=epoch, group_shared=shared, **config.limits())
    return plan([len(item) for item in items], seed=config.seed, epoch=epoch, **config.limits())


def packs_batches(model: AdaptedModel, config: TrainConfig) -> bool:
    """Whether batches are packed: the objective's can be, and the settings say so."""
    return config.batches == "packed" and packs(model)


def after_evaluation(progress: Progress, loss: float, patience: int | None, score: float | None = None) -> Progress:
    """The progress after an evaluation: a new best, or one more without improvement, `patience` of which stop.

    The best has the lowest loss; with scores the highest one, of the same the one with the lowest loss.
    """
    best = progress.best_score if score is None else score
    if (best, -loss) > (progress.best_score, -progress.best_loss):
        return replace(progress, best_step=progress.step, best_loss=loss, best_score=best, waited=0)
    waited = progress.waited + 1
    return replace(progress, waited=waited, stopped=patience is not None and waited >= patience)


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _plain(items: Sequence[Item]) -> list[tuple[Any, ...]]:
    return [tuple(vars(item).values()) for item in items]


def _digest(plain: Sequence[Any]) -> str:
    """Of the list's `repr`, which is not written whole: that of many examples would take gigabytes."""
    digest = hashlib.sha256(b"[")
    for number, item in enumerate(plain):
        digest.update(f"{', ' if number else ''}{item!r}".encode())
    digest.update(b"]")
    return digest.hexdigest()[:16]
