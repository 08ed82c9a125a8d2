"""One adapter's training, without the loop: its data order, its optimiser, its best weights, its place on the disk."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from halka.core import AdaptedModel, described, form_of
from halka.data.batches import plan
from halka.data.examples import Item
from halka.data.truncation import LENGTH_POLICIES
from halka.models.fingerprint import own_fingerprint
from halka.objectives import objective_of
from halka.training.checkpoint import Progress, load_checkpoint, save_checkpoint
from halka.util.errors import HalkaError, TrainingError
from halka.util.files import write_file, write_text
from halka.util.machine import held

CHECKPOINT, METRICS, BEST = "checkpoint.safetensors", "metrics.jsonl", "best.safetensors"
DEFAULT_BATCH_TOKENS = 1024


@dataclass(frozen=True)
class TrainConfig:
    """How to train, whatever the method."""

    lr: float | None = field(default=None, metadata={"help": "peak learning rate; the method's own if not given"})
    epochs: float = field(default=3.0, metadata={"help": "passes over the training examples, unless steps is given"})
    steps: int | None = field(default=None, metadata={"help": "optimiser steps"})
    batch_size: int | None = field(default=None, metadata={"help": "examples a batch; no limit if not given"})
    batch_tokens: int | None = field(
        default=None,
        metadata={"help": f"tokens a batch, padding included; {DEFAULT_BATCH_TOKENS} if there is no batch_size either"},
    )
    accumulate: int = field(default=1, metadata={"help": "batches whose gradients make one step"})
    max_length: int | None = field(
        default=None, metadata={"help": "tokens an example; the base's context if not given"}
    )
    too_long: str = field(default="cut", metadata={"help": "an example over max_length: cut, drop or error"})
    schedule: str = field(default="cosine", metadata={"help": "after warm-up: cosine (to a tenth) or constant"})
    warmup: float = field(default=0.06, metadata={"help": "share of the steps with a rising learning rate"})
    weight_decay: float = field(default=0.0, metadata={"help": "AdamW's"})
    clip: float = field(default=1.0, metadata={"help": "largest gradient norm; 0 for none"})
    checkpointing: bool = field(
        default=False, metadata={"help": "recompute activations in backward: less memory, a third more time"}
    )
    evaluate_every: int | None = field(
        default=None, metadata={"help": "steps between evaluations; 10 in all if not given"}
    )
    patience: int | None = field(default=None, metadata={"help": "stop after so many evaluations without improvement"})
    save_every: int | None = field(
        default=100, metadata={"help": "steps between checkpoints, if there is a folder; none writes none"}
    )
    seed: int = field(default=0, metadata={"help": "order of the examples and dropout"})

    def __post_init__(self) -> None:
        for name in ("lr", "epochs", "steps", "batch_size", "batch_tokens", "accumulate", "max_length", "save_every"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise HalkaError(f"{name} must be above 0, not {value}")
        for name in ("evaluate_every", "patience"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise HalkaError(f"{name} must be at least 1, not {value}")
        if not 0 <= self.warmup < 1:
            raise HalkaError(f"warmup is a share of the steps, at least 0 and below 1, not {self.warmup}")
        if self.schedule not in ("cosine", "constant"):
            raise HalkaError(f"schedule is 'cosine' or 'constant', not {self.schedule!r}")
        if self.too_long not in LENGTH_POLICIES:
            raise HalkaError(f"too_long is one of {', '.join(LENGTH_POLICIES)}, not {self.too_long!r}")
        for name in ("clip", "weight_decay"):
            if getattr(self, name) < 0:
                raise HalkaError(f"{name} must be at least 0, not {getattr(self, name)}")

    def limits(self) -> dict[str, Any]:
        """What bounds a batch, for `batches` and `plan`."""
        tokens = DEFAULT_BATCH_TOKENS if self.batch_tokens is self.batch_size is None else self.batch_tokens
        return {"batch_tokens": tokens, "batch_size": self.batch_size}


@dataclass(frozen=True)
class Step:
    """What one optimiser step did."""

    step: int
    steps: int  # of the whole run
    loss: float  # mean over the step's labels: the answers' tokens, or what a classifier or a tagger is to say
    lr: float
    gradient_norm: float
    tokens: int  # useful tokens (no padding) so far
    seconds: float  # training time so far
    tokens_per_second: float  # of this step
    memory: int  # bytes that the process holds: in memory, or on the GPU
    validation: float | None = None  # mean loss over the validation labels, where evaluated
    best: bool = False  # the best validation so far


class Run:
    """One adapter's training: what its next step reads, and what becomes of the gradients that it gave."""

    def __init__(
        self,
        model: AdaptedModel,
        name: str,
        items: list[Item],
        held_out: list[Item],
        config: TrainConfig,
        folder: str | Path | None,
    ):
        self.model, self.name, self.items, self.held_out, self.config = model, name, items, held_out, config
        self.adapter = model.adapter(name)
        self.objective = objective_of(model)
        roles = {target.role for target in self.adapter.targets.values()}
        self.alone = "base" in roles or ("head" in roles and not self.objective.head_sees_rows)
        self.lengths = [len(item) for item in items]
        self.steps = config.steps or max(1, math.ceil(round(len(self._plan(0)) / config.accumulate * config.epochs, 6)))
        self.evaluate_every = config.evaluate_every or max(1, self.steps // 10)
        self.peak_lr = config.lr or self.adapter.method.lr
        self.optimizer = torch.optim.AdamW(
            self.adapter.parameters(), lr=self.peak_lr, weight_decay=config.weight_decay, fused=True
        )
        self.folder = None if folder is None else Path(folder)
        self.best: dict[str, Tensor] | None = None
        self.progress = Progress()

    # ── from step to step ───────────────────────────────────────────────────────────────────────────────────────

    def begin(self) -> None:
        """Go to where the last checkpoint was, if there is one."""
        if self.folder is not None:
            self._resume(self.folder)
        self._stream = self._from(self.progress.step * self.config.accumulate)
        if self.over:
            self.restore_best()

    @property
    def number(self) -> int:
        """The step that comes next, from 1."""
        return self.progress.step + 1

    @property
    def over(self) -> bool:
        return self.progress.step >= self.steps or self.progress.stopped

    def take(self) -> list[list[Item]]:
        """The batches whose gradients make the next step."""
        return [next(self._stream) for _ in range(self.config.accumulate)]

    def apply(self, loss: float) -> tuple[float, float]:
        """Let the optimiser take the gradients that are there. Returns their norm and the learning rate.

        Raises TrainingError, with the weights as they were, where loss or gradients are not finite.
        """
        lr = self._lr(self.number)
        norm = float(torch.nn.utils.clip_grad_norm_(self.adapter.parameters(), self.config.clip or math.inf))
        if not math.isfinite(loss + norm):
            raise TrainingError(
                f"the loss became {loss} (gradient norm {norm}) at step {self.number} with learning rate {lr:.3g}: "
                "try a lower learning rate, a longer warm-up, or fp32; the weights are those before this step"
            )
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        with self.model.lock:  # no other thread computes with values half changed
            self.optimizer.step()
        return norm, lr

    def stepped(self, loss: float, norm: float, lr: float, tokens: int, seconds: float) -> Step:
        """What the step was, now that it is done."""
        step = Step(
            step=self.number,
            steps=self.steps,
            loss=loss,
            lr=lr,
            gradient_norm=norm,
            tokens=self.progress.tokens + tokens,
            seconds=self.progress.seconds + seconds,
            tokens_per_second=tokens / seconds,
            memory=held(self.optimizer.param_groups[0]["params"][0].device),
        )
        self.progress = replace(self.progress, step=step.step, tokens=step.tokens, seconds=step.seconds)
        return step

    @property
    def wants_evaluation(self) -> bool:
        done = self.progress.step
        return bool(self.held_out) and (done % self.evaluate_every == 0 or done == self.steps)

    def judged(self, step: Step, loss: float) -> Step:
        """Keep the weights if they are the best so far; stop when patience is at its end."""
        if not math.isfinite(loss):
            raise TrainingError(
                f"the validation loss became {loss} at step {step.step}: try a lower learning rate, a longer "
                "warm-up, or fp32"
            )
        step = replace(step, validation=loss, best=loss < self.progress.best_loss)
        if step.best:
            state = {key: tensor.detach().clone() for key, tensor in self.adapter.state_dict().items()}
            if self.folder is None:
                self.best = state
            else:
                write_file(self.folder / BEST, lambda beside: save_file(state, beside))
            self.progress = replace(self.progress, best_step=step.step, best_loss=loss, waited=0)
        else:
            waited = self.progress.waited + 1
            stopped = self.config.patience is not None and waited >= self.config.patience
            self.progress = replace(self.progress, waited=waited, stopped=stopped)
        return step

    def record(self, step: Step) -> None:
        """Write the step down, and a checkpoint where one is due; at the end, take the best weights."""
        if self.folder is not None:
            with (self.folder / METRICS).open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(step)) + "\n")
        if self.over or (self.config.save_every and step.step % self.config.save_every == 0):
            self.save()
        if self.over:  # before the last step is told, so that nobody has to ask for one more
            self.restore_best()

    def restore_best(self) -> None:
        """Let the weights of the best evaluation be the adapter's, if there was one."""
        if self.progress.best_step:
            state = self.best if self.folder is None else load_file(self.folder / BEST)
            assert state is not None
            with self.model.lock:
                self.adapter.load_state_dict(state)

    def _lr(self, number: int) -> float:
        """The learning rate of step `number`: rising over the warm-up, then constant or a cosine to a tenth."""
        warmup = math.ceil(self.config.warmup * self.steps)
        if number <= warmup:
            return self.peak_lr * number / warmup
        if self.config.schedule == "constant":
            return self.peak_lr
        done = (number - warmup) / max(1, self.steps - warmup)
        return self.peak_lr * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * done)))

    def _plan(self, epoch: int) -> list[list[int]]:
        return plan(self.lengths, seed=self.config.seed, epoch=epoch, **self.config.limits())

    def _from(self, skip: int) -> Iterator[list[Item]]:
        """Batches without end, epoch after epoch; the first `skip` are passed over."""
        indices = (each for epoch in itertools.count() for each in self._plan(epoch))
        for chosen in itertools.islice(indices, skip, None):
            yield [self.items[i] for i in chosen]

    # ── the disk ────────────────────────────────────────────────────────────────────────────────────────────────

    def save(self) -> None:
        """Write a checkpoint, where the run has a folder and is to have checkpoints."""
        if self.folder is not None and self.config.save_every:
            save_checkpoint(self.folder / CHECKPOINT, self._identity, self.progress, self.adapter, self.optimizer)

    def _resume(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        progress = load_checkpoint(folder / CHECKPOINT, self._identity, self.adapter, self.optimizer)
        self.progress = progress or Progress()
        metrics = folder / METRICS
        if metrics.exists():
            lines = metrics.read_text(encoding="utf-8").splitlines()
            write_text(metrics, "".join(f"{line}\n" for line in lines if _step_of(line) <= self.progress.step))

    @cached_property
    def _identity(self) -> dict[str, Any]:
        """What must be the same for a run to go on."""
        method = self.adapter.method
        return {
            "method": method.name,
            **{f"{method.name}'s {key}": value for key, value in described(method)["fields"].items()},
            **asdict(replace(self.config, save_every=None, steps=self.steps, lr=self.peak_lr)),
            "dtype": str(self.model.base.dtype),
            "quantize": form_of(self.model.base),
            "data": _digest(self.items),
            "validation": _digest(self.held_out),
            "base": own_fingerprint(self.model)["weights"],
        }


def _step_of(line: str) -> float:
    """The step that a line of `metrics.jsonl` tells of; beyond all steps where the line was cut off."""
    try:
        return json.loads(line)["step"]
    except ValueError:
        return math.inf


def _digest(items: Sequence[Item]) -> str:
    return hashlib.sha256(repr([tuple(vars(item).values()) for item in items]).encode()).hexdigest()[:16]
