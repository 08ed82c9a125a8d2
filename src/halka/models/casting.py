"""`casting`: the fp32 masters of parts in the base's precision, cast once for all passes of an optimiser's step.

`prepare` does so once for all batches of an adapter that is not trained.

The operands of parts that act at modules are cast by one operation for all, and so are their gradients, which wait for
the end of the backward pass. Those of a full copy of the weights are not: each is too large to wait.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from halka.core import Adapter, ModulePart, Part, WeightPart
from halka.util.cached import Cached
from halka.util.transfer import by_device

aten: Any = torch.ops.aten
_prepared = WeakKeyDictionary[Adapter, Cached[bool]]()  # the adapters that have what they compute with


@contextmanager
def casting(parts: Iterable[Part], dtype: torch.dtype) -> Iterator[None]:
    """Within the block `Part.cast` of these parts returns what was cast at its begin. Masters must not change in it."""
    parts = [*parts] if dtype != torch.float32 else []
    small = [part for part in parts if not isinstance(part, WeightPart)]
    masters = [part.get_parameter(name) for part in small for name in part.operands]
    factors = [part.scale_of(name) for part in small for name in part.operands]
    casts = iter(_Cast.apply(dtype, factors, *masters) if masters else ())  # type: ignore[arg-type]
    try:
        for part in parts:
            if isinstance(part, WeightPart):
                part.casts = {name: part.get_parameter(name).to(dtype) for name in part.operands}
            else:
                part.casts = {name: next(casts) for name in part.operands}
        yield
    finally:
        for part in parts:
            part.casts = {}


def prepare(adapter: Adapter, dtype: torch.dtype) -> None:
    """Make what the adapter's parts compute with in `dtype`, unless it is there already, for all batches to come."""

    def make() -> bool:
        parts = [part for part in adapter.parts.values() if isinstance(part, ModulePart)]
        with casting(parts, dtype):
            for part in parts:
                part.prepared(dtype)
        return True

    _prepared.setdefault(adapter, Cached()).get(adapter.parameters(), make, dtype)


class _Cast(torch.autograd.Function):
    """Tensors in another precision, times factors. Nothing is saved, so several backward passes may go through it."""

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, factors: Sequence[float], *masters: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.factors = factors
        casts = _cast(masters, dtype)
        return tuple(_times(casts, factors))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        there = [
            (gradient, factor) for gradient, factor in zip(gradients, ctx.factors, strict=True) if gradient is not None
        ]
        scaled = _times([gradient for gradient, _ in there], [factor for _, factor in there])
        exact = iter(_cast(scaled, torch.float32))
        return None, None, *(None if gradient is None else next(exact) for gradient in gradients)


def _times(tensors: Sequence[Tensor], factors: Sequence[float]) -> Sequence[Tensor]:
    """The tensors times their factors, by one operation a device if there is anything to multiply."""
    if {*factors} <= {1.0}:
        return tensors
    results = [*tensors]
    for places in by_device(tensors):
        products = aten._foreach_mul([tensors[place] for place in places], [factors[place] for place in places])
        for place, product in zip(places, products, strict=True):
            results[place] = product
    return results


def _cast(tensors: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    results = [torch.empty_like(tensor, dtype=dtype) for tensor in tensors]
    for places in by_device(tensors):
        aten._foreach_copy_([results[place] for place in places], [tensors[place] for place in places])
    return results
