"""The learning rate that an adapter has where none is set: its method's, at the width of the base."""

from __future__ import annotations

from torch import nn

from halka.core import AdaptedModel
from halka.models.heads import own_methods
from halka.models.kinds import kind_of

WIDTH = 1408  # of the hidden states of the causal decoder that a method's `lr` is meant for
NARROWEST = 576  # that has been measured: SmolLM2-135M
POWER = 0.78


def own_rate(model: AdaptedModel, name: str) -> float:
    """The learning rate that adapter `name` has where none is set: the lowest of its methods', at the base's width.

    A head beside them learns at the same rate. At its own, lower one, prompts, prefixes and scales hardly learn.
    """
    return rate_at(min(one.lr for one in own_methods(model, name)), model.base)


def rate_at(lr: float, base: nn.Module) -> float:
    """A method's learning rate `lr` at the width of `base`: the wider a causal decoder, the lower.

    By (1408 / width) ** 0.78, the power that "LoRA Without Regret" (Schulman et al. 2025) fits to Llamas: so it is
    twice `lr` at 576, SmolLM2-135M's width, where docs/evidence.md has the best, and 0.43 times `lr` at 4,096. Narrower
    decoders have the rate of 576, and other kinds of bases `lr` itself: for these nobody has measured it.
    """
    if kind_of(base) != "causal-lm":
        return lr
    return rate_at_width(lr, base.config.get_text_config().hidden_size)  # type: ignore[union-attr]


def rate_at_width(lr: float, width: int) -> float:
    """`rate_at` of a causal decoder whose hidden states are so wide."""
    return float(f"{lr * (WIDTH / max(width, NARROWEST)) ** POWER:.2g}")
