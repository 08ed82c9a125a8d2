"""`TrainConfig`: how to train; `Step` and `TrainResult`: what a step, and a whole run, came to."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypedDict, TypeVar

from halka.data.truncation import LengthPolicy
from halka.util.errors import HalkaError
from halka.util.fields import checked
from halka.util.settings import converted, documented, no_such_setting, settings_of

T = TypeVar("T")

DEFAULT_BATCH_TOKENS = 1024
WARMUP = 0.06
Schedule = Literal["cosine", "linear", "constant"]


class BatchLimits(TypedDict):
    """The limits of a batch, as `data.batches.plan` takes them."""

    batch_tokens: int | None
    batch_size: int | None


def _checked(cls: type[T]) -> type[T]:
    return checked(cls, lambda unknown: no_such_setting(next(iter(unknown)), settings_of(cls)))


@documented
@_checked
@dataclass(frozen=True)
class TrainConfig:
    """How to train an adapter, whatever its method.

    Raises HalkaError naming the closest field for an unknown one, and the field for a wrong value.
    """

    lr: float | None = field(
        default=None, metadata={"help": "peak learning rate; the method's own, by the base's width, if not given"}
    )
    epochs: float = field(default=3.0, metadata={"help": "passes over the training examples, unless steps is given"})
    steps: int | None = field(default=None, metadata={"help": "optimiser steps"})
    batch_size: int | None = field(default=None, metadata={"help": "examples a batch; no limit if not given"})
    batch_tokens: int | None = field(
        default=None,
        metadata={
            "help": f"tokens that a batch computes, padding included; {DEFAULT_BATCH_TOKENS} if there is no batch_size "
            "either"
        },
    )
    batches: Literal["packed", "padded"] = field(
        default="packed",
        metadata={
            "help": "packed: no padding, and what examples of a batch begin with is computed once; padded: rows as "
            "long as the longest, as bases other than language models always have them"
        },
    )
    group_shared: bool = field(
        default=False, metadata={"help": "bring examples that begin alike into one batch, so that more is shared"}
    )
    accumulate: int = field(default=1, metadata={"help": "batches whose gradients make one step"})
    max_length: int | None = field(
        default=None, metadata={"help": "tokens an example; the base's context if not given"}
    )
    too_long: LengthPolicy = field(default="cut", metadata={"help": "an example over max_length: cut, drop or error"})
    schedule: Schedule = field(
        default="cosine", metadata={"help": "after warm-up: cosine (to a tenth), linear (to zero) or constant"}
    )
    warmup: float = field(default=WARMUP, metadata={"help": "share of the steps with a rising learning rate"})
    warmup_steps: int | None = field(default=None, metadata={"help": "how many steps these are, instead of a share"})
    weight_decay: float = field(
        default=0.0, metadata={"help": "AdamW's, on all that is trained (Trainer leaves out biases and norms)"}
    )
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
    keep_every: int | None = field(
        default=None, metadata={"help": "steps between adapters that stay in the folder (adapters/step-N)"}
    )
    seed: int = field(default=0, metadata={"help": "order of the examples and dropout"})

    def __post_init__(self) -> None:
        for name in ("lr", "epochs", "steps", "batch_size", "batch_tokens", "accumulate", "max_length", "save_every"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise HalkaError(f"{name} must be above 0, not {value!r}")
        for name in ("evaluate_every", "patience", "keep_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise HalkaError(f"{name} must be at least 1, not {value!r}")
        if self.group_shared and self.batches == "padded":
            raise HalkaError("group_shared is for packed batches, and batches is padded: leave one out")
        if not 0 <= self.warmup < 1:
            raise HalkaError(f"warmup is a share of the steps, at least 0 and below 1, not {self.warmup!r}")
        if self.warmup_steps is not None and self.warmup != WARMUP:
            raise HalkaError(f"warmup_steps is {self.warmup_steps} and the share warmup {self.warmup}: leave one out")
        for name in ("clip", "weight_decay", "warmup_steps"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise HalkaError(f"{name} must be at least 0, not {value!r}")

    def limits(self) -> BatchLimits:
        """The limits of a batch: the default number of tokens where neither limit is set."""
        tokens = DEFAULT_BATCH_TOKENS if self.batch_tokens is self.batch_size is None else self.batch_tokens
        return {"batch_tokens": tokens, "batch_size": self.batch_size}


def config_of(config: TrainConfig | Mapping[str, Any] | None) -> TrainConfig:
    """The config itself, or one made from a mapping of its fields.

    Raises HalkaError that names the closest field for an unknown one, and for a wrong value.
    """
    if isinstance(config, TrainConfig):
        return config
    return TrainConfig(**converted(settings_of(TrainConfig), config or {}))


INSTEAD_OF = {"epochs": "steps", "warmup": "warmup_steps", "warmup_steps": "warmup"}
"""Fields of TrainConfig, and that which one of them takes the place of: `steps` would win over `epochs`."""


def laid_over(before: Mapping[str, T], layer: Mapping[str, T], prefix: str = "") -> dict[str, T]:
    """Both layers of settings, the second over the first, without what fields of the second take the place of.

    prefix  before TrainConfig's fields in the settings' names
    """
    replaced = {prefix + other for name, other in INSTEAD_OF.items() if prefix + name in layer}
    return {name: value for name, value in before.items() if name not in replaced} | dict(layer)


def learning_rate(step: int, steps: int, peak: float, config: TrainConfig) -> float:
    """The learning rate of step `step` (from 1) of `steps`: linear warm-up, then as the schedule says.

    A cosine ends at a tenth; a line would be at zero one step later, so that the last step changes weights, too.
    """
    warmup = math.ceil(config.warmup * steps) if config.warmup_steps is None else config.warmup_steps
    if step <= warmup:
        return peak * step / warmup
    if config.schedule == "constant":
        return peak
    if config.schedule == "linear":
        return peak * (steps + 1 - step) / (steps + 1 - warmup)
    done = (step - warmup) / max(1, steps - warmup)
    return peak * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * done)))


@dataclass(frozen=True)
class Step:
    """What one optimiser step did."""

    step: int
    steps: int  # of the whole run
    loss: float  # mean over the step's labels: the answers' tokens, or a classifier's or tagger's labels
    lr: float
    gradient_norm: float
    tokens: int  # so far, without padding
    seconds: float  # of training so far
    tokens_per_second: float  # of this step
    memory: int  # bytes that the process holds: in memory, or on the GPU
    validation: float | None = None  # mean loss over the validation labels, where evaluated
    score: float | None = None  # what `score` returned there, where the run has one
    best: bool = False  # the best validation so far
    computed: int | None = None  # tokens so far: shared ones once, padding too; None in files that lack it

    @property
    def saved(self) -> float | None:
        """The share of the tokens so far that did not have to be computed; below 0 where padding was more."""
        return None if self.computed is None else 1 - self.computed / self.tokens


@dataclass(frozen=True)
class TrainResult:
    """What a whole run came to."""

    steps: int
    loss: float  # of the last step
    validation_loss: float | None  # of the best evaluation; None without validation examples
    best_step: int  # whose weights the adapter has: that of the best evaluation, else the last
    score: float | None  # of the best evaluation, where the run has one
    tokens: int  # in all, without padding
    seconds: float  # of training
    parameters: int  # trained numbers
    adapter: Path | None = None  # folder that the adapter was saved in, if the run has one

    @staticmethod
    def of(steps: Sequence[Step], parameters: int, adapter: Path | None = None) -> TrainResult:
        """The result of a run's steps, of which there is at least one."""
        last = steps[-1]
        best = next((step for step in reversed(steps) if step.best), None)
        return TrainResult(
            steps=last.step,
            loss=last.loss,
            validation_loss=best.validation if best else None,
            best_step=best.step if best else last.step,
            score=best.score if best else None,
            tokens=last.tokens,
            seconds=last.seconds,
            parameters=parameters,
            adapter=adapter,
        )
