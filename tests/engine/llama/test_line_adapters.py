"""Kernels compute low-rank products, bottlenecks and factors; the core's edits what a part of another kind does."""

from __future__ import annotations

import pytest
import torch

import halka
from halka.core import Method
from halka.core.routing import Place
from halka.engine.llama.line_adapters import RowAdapters
from halka.engine.llama.weights import PLACES, LlamaWeights
from tiny import tiny

KERNELS = [
    halka.LoRA(rank=4),
    halka.IA3(),
    halka.IA3(targets=("attn.o", "mlp.up"), feedforward=("attn.o",)),
    *(halka.Bottleneck(width=3, reads=reads, activation="mish") for reads in ("output", "input", "residual", "sum")),
    halka.Bottleneck(targets=("mlp",), scaling="learned"),
]
EDITS = [halka.NormedBottleneck(), halka.BitFit(), halka.DoRA(rank=4)]


def adapters_of(*methods: Method, training: bool = False):
    model = halka.adapt(tiny("llama"))
    names = tuple(f"adapter{number}" for number in range(len(methods)))
    for name, method in zip(names, methods, strict=True):
        for part in model.add(name, method).parts.values():
            part.train(training)
    weights = LlamaWeights(model.base)
    places: dict[Place, tuple[int, int]] = {
        (layer.keys[role], edits): (number, place)
        for number, layer in enumerate(weights.layers)
        for place, (role, edits) in enumerate(PLACES)
    }
    with torch.inference_mode():
        return RowAdapters(model, places, len(weights.layers), torch.float32).of_line((*names, None))


@pytest.mark.parametrize("method", KERNELS, ids=str)
def test_kernels_compute_all_of_it(method):
    adapters = adapters_of(method)
    assert adapters.misplaced is None
    assert not adapters.edits
    assert sum(any(table.owners) for table in adapters.tables) == 1


@pytest.mark.parametrize("method", EDITS, ids=str)
def test_the_core_s_edits_compute_all_of_it(method):
    adapters = adapters_of(method)
    assert adapters.edits
    assert not any(any(table.owners) for table in adapters.tables)


def test_dropout_is_for_the_core_s_edits():
    for method in (halka.LoRA(rank=4, dropout=0.1), halka.Bottleneck(dropout=0.1)):
        assert adapters_of(method, training=True).edits
        assert not adapters_of(method).edits


def test_a_table_knows_who_has_a_part_and_where():
    low_rank, bottlenecks, factors = adapters_of(
        halka.LoRA(rank=4, targets=("attn.v",)), halka.Bottleneck(widths=(0, 4), targets=("mlp",))
    ).tables
    assert low_rank.owners == [True, False]
    assert bottlenecks.owners == [False, True]
    assert not any(factors.owners)
    assert low_rank.slots == [[False, False, True, *[False] * 4]] * 2
    assert bottlenecks.slots == [[False] * 4, [False, False, True, False]]
