"""What an operation of a step costs: floating-point operations of its products, and bytes that it reads and writes."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry

aten: Any = torch.ops.aten


class Layout(NamedTuple):
    """All that there is of a tensor without content; of a few whole numbers, which may decide over the work, these."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    values: tuple[int, ...] | None = None


class Plain(NamedTuple):
    """Any other argument; its kind counts, for True is not 1."""

    kind: type
    value: Any


class Call(NamedTuple):
    """An operation and what it is given, by which it is known again: layers are alike."""

    func: Any
    args: tuple[Any, ...]
    kwargs: tuple[Any, ...]


class Work(NamedTuple):
    """
    flops   of its products
    bytes   that it reads and writes
    fresh   bytes of these that no freed memory is used for again, so that the system clears them (on a CPU)
    call    the operation, for whoever can do it
    """

    flops: int
    bytes: int
    fresh: int = 0
    call: Call | None = None


def work_of(func: Any, args: Any, kwargs: Any, out: Any, fresh: int = 0, call: Call | None = None) -> Work | None:
    """What it cost to compute `out`; None for what is free: another view of the same memory."""
    if _free(func):
        return None
    packet = func._overloadpacket
    flops = _FLOPS.get(packet) or flop_registry.get(packet)
    moved = sum(each.numel() * each.element_size() for each in _moved(func, args, kwargs, out))
    return Work(flops(*args, **kwargs, out_val=out) if flops else 0, moved, fresh, call)


def tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for each in values:
        if isinstance(each, Tensor):
            yield each
        elif isinstance(each, list | tuple):
            yield from tensors(each)


def grouped_flops(tokens: Tensor, weights: Tensor, *rest: Any, out_val: Any = None, **more: Any) -> int:
    """Tokens (S, I) and weights (E, I, O), or for the weights' gradient (O, S) and (S, I)."""
    return 2 * tokens.numel() * weights.shape[-1]


@functools.cache
def _free(func: Any) -> bool:
    shared = [each.alias_info for each in func._schema.returns if each.alias_info is not None]
    return func._overloadpacket is aten._unsafe_view or (bool(shared) and not any(each.is_write for each in shared))


def _moved(func: Any, args: Any, kwargs: Any, out: Any) -> list[Tensor]:
    """What is read and what is written; a tensor that is both is there twice."""
    packet = func._overloadpacket
    if packet in _EMPTY:
        return []
    unread = _UNREAD.get(packet)
    read = [*tensors((*(each for place, each in enumerate(args) if place != unread), *kwargs.values()))]
    written = [*tensors((out,))]
    if packet in _PICKING:
        return [*read, *written, *written]
    if not func._schema.returns:  # it changes what it is given: an optimiser all but the gradients
        told = zip(func._schema.arguments, args, strict=False)
        written = [*tensors(each for about, each in told if about.alias_info and about.name != "grads")]
    return [*read, *written]


_FLOPS = {  # that torch does not count
    aten._grouped_mm: grouped_flops,
    aten._scaled_dot_product_flash_attention_for_cpu: flop_registry[aten._scaled_dot_product_flash_attention],
    aten._scaled_dot_product_flash_attention_for_cpu_backward: flop_registry[
        aten._scaled_dot_product_flash_attention_backward
    ],
}
_EMPTY = {aten.empty, aten.empty_like, aten.empty_strided, aten.new_empty, aten.new_empty_strided}
_PICKING = {aten.embedding, aten.gather, aten.index, aten.index_select}  # as much is read as comes out
_OVERWRITING = {aten.copy_, aten.fill_, aten.zero_}
_LIKE = {aten.full_like, aten.new_full, aten.new_ones, aten.new_zeros, aten.ones_like, aten.zeros_like}
_UNREAD = {  # which argument is not read, or next to nothing of it
    **dict.fromkeys(_PICKING | _OVERWRITING | _LIKE | {aten.nll_loss_forward}, 0),
    aten.nll_loss_backward: 1,
}
