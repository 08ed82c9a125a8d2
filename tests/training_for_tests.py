"""Data without words to train on, an adapter to train, and what training made of it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

import halka
from halka.core import AdaptedModel, Method
from halka.data.tokens import Tokens
from tiny import tiny


def items(count: int = 6, seed: int = 0, length: int | None = None) -> list[Tokens]:
    """Random tokens of unlike length, the first third of each without loss."""
    draw = random.Random(seed)
    made = []
    for _ in range(count):
        size = length or draw.randint(6, 12)
        made.append(Tokens([draw.randint(3, 96) for _ in range(size)], [i >= size // 3 for i in range(size)]))
    return made


def contradicting() -> list[Tokens]:
    """The beginnings of `items()`, each with another token behind it: the more is learned, the higher is their loss."""
    starts = [(item.ids, item.loss.index(True)) for item in items()]
    return [Tokens([*ids[:start], 99 - ids[start]], [False] * start + [True]) for ids, start in starts]


def items_without_a_loss(model: AdaptedModel) -> list[Tokens]:
    """Examples whose loss is NaN: of a token whose embedding in the base is no number from now on."""
    model.base.get_input_embeddings().weight.data[2] = torch.nan
    return [Tokens([5, 2, 6, 7], [False, True, True, True])]


def model_for(method: Method | None = None, architecture: str = "llama", **changes) -> AdaptedModel:
    model = halka.adapt(tiny(architecture, **changes))
    model.add("a", method or halka.LoRA(rank=4))
    return model


def weights(model: AdaptedModel, name: str = "a") -> dict[str, torch.Tensor]:
    return {key: tensor.clone() for key, tensor in model.adapters[name].state_dict().items()}


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


@contextmanager
def recorded_gradients() -> Iterator[list[list[torch.Tensor]]]:
    """The gradients that optimisers are given, one after another, clipped where they are."""
    found: list[list[torch.Tensor]] = []

    def record(optimizer, args, kwargs):
        found.append([p.grad.clone() for group in optimizer.param_groups for p in group["params"]])

    handle = register_optimizer_step_pre_hook(record)
    yield found
    handle.remove()
