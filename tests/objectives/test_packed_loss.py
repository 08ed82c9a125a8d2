"""A packed batch's loss and gradients, through a whole base, are the padded batch's."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

import halka
from contract import disturb
from halka.data.packing import pack
from halka.data.tokens import Tokens
from halka.models.attention.function import use_attention
from halka.objectives.language_modelling import LanguageModelling
from tiny import CONFIGS, UNEVEN, tiny

OBJECTIVE = LanguageModelling()


def examples(seed: int = 0) -> list[Tokens]:
    """Two instructions with several answers, labels within one of them, a repeated example and a beginning of one."""
    draw = random.Random(seed)

    def words(count: int) -> list[int]:
        return [draw.randrange(3, 97) for _ in range(count)]

    items: list[Tokens] = []
    for instruction, loss in ((words(12), False), (words(9), True)):
        for length in (3, 6, 4):
            answer = words(length)
            items.append(Tokens(instruction + answer, [loss] * len(instruction) + [True] * length))
    items.append(items[1])
    items.append(Tokens(items[4].ids[:-2], items[4].loss[:-2]))
    draw.shuffle(items)
    return items


def packed(model, items: list[Tokens], least_saved: int, multiple: int = 1) -> Tensor:
    return OBJECTIVE.packed_losses(model, ["a"], pack([items], least_saved).filled(multiple)).sum()


def padded(model, items: list[Tokens]) -> Tensor:
    batch = OBJECTIVE.collate(items, 0)
    return OBJECTIVE.loss(model, "a", OBJECTIVE.outputs(model, batch), batch.labels)


@pytest.mark.parametrize(
    ("least_saved", "multiple"),
    [(0, 1), (4, 1), (10_000, 1), (0, 32)],
    ids=["all shared", "some shared", "none shared", "filled"],
)
@pytest.mark.parametrize("architecture", [*CONFIGS, *UNEVEN])
def test_a_packed_batchs_loss_and_gradients_are_the_padded_ones(architecture, least_saved, multiple):
    model = halka.adapt(tiny(architecture))
    model.add("a", halka.LoRA(rank=4))
    disturb(model, "a")
    items = examples()
    results: list[list[Tensor]] = []
    for loss_of in (lambda: packed(model, items, least_saved, multiple), lambda: padded(model, items)):
        with model.use("a"), use_attention(model.base):
            loss = loss_of()
            results.append([loss.detach(), *torch.autograd.grad(loss, list(model.parameters("a")))])
    for ours, expected in zip(*results, strict=True):
        assert expected.norm() > 0
        assert (ours - expected).norm() <= 1e-5 * expected.norm()
