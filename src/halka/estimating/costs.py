"""What an operation costs: the FLOPs of its matrix products, and the bytes that it reads and writes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

aten: Any = torch.ops.aten


class Layout(NamedTuple):
    """A tensor's sizes, strides and dtype; of a few integers, on which the work may depend, also the values."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    values: tuple[int, ...] | None = None


class Plain(NamedTuple):
    """Any other argument, with its type: True is not 1."""

    kind: type
    value: Any


class Call(NamedTuple):
    """An operation with its arguments, hashable: calls in layers that are alike are equal."""

    func: Any
    args: tuple[Any, ...]
    kwargs: tuple[Any, ...]


class Work(NamedTuple):
    """The work of one operation.

    flops   of its matrix products
    bytes   that it reads and writes
    fresh   of these, bytes that the process did not hold before, which the system maps and clears (on a CPU)
    call    the operation, for `measured_device` to run
    """

    flops: int
    bytes: int
    fresh: int = 0
    call: Call | None = None


def work_of(func: Any, args: Any, kwargs: Any, out: Any, call: Call | None = None) -> Work | None:
    """The work of computing `out` in memory that the process has; None for a view, which is free."""
    if is_free(func):
        return None
    packet = func._overloadpacket
    flops = _flops().get(packet)
    moved = sum(tensor.numel() * tensor.element_size() for tensor in _moved(func, args, kwargs, out))
    return Work(flops(*args, **kwargs, out_val=out) if flops else 0, moved, call=call)


def tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    """The tensors among values, and in lists and tuples of them."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from tensors(value)


def grouped_flops(tokens: Tensor, weights: Tensor, *rest: Any, out_val: Any = None, **more: Any) -> int:
    """FLOPs of tokens (S, I) by weights (E, I, O), or for the weights' gradient of (O, S) by (S, I)."""
    return 2 * tokens.numel() * weights.shape[-1]


@functools.cache
def _flops() -> dict[Any, Callable[..., int]]:
    """Functions for the FLOPs of operations: torch's, and those of what torch does not count."""
    from torch.utils.flop_counter import flop_registry  # imports Triton

    forward, backward = aten._scaled_dot_product_flash_attention, aten._scaled_dot_product_flash_attention_backward
    return flop_registry | {
        aten._grouped_mm: grouped_flops,
        aten._scaled_dot_product_flash_attention_for_cpu: flop_registry[forward],
        aten._scaled_dot_product_flash_attention_for_cpu_backward: flop_registry[backward],
    }


@functools.cache
def is_free(func: Any) -> bool:
    """Whether an operation only makes a view."""
    shared = [value.alias_info for value in func._schema.returns if value.alias_info is not None]
    return func._overloadpacket is aten._unsafe_view or (bool(shared) and not any(alias.is_write for alias in shared))


def _moved(func: Any, args: Any, kwargs: Any, out: Any) -> list[Tensor]:
    """The tensors that are read and those that are written; one that is both is listed twice."""
    packet = func._overloadpacket
    if packet in _EMPTY:
        return []
    unread = _UNREAD.get(packet)
    read = [*tensors((*(value for place, value in enumerate(args) if place != unread), *kwargs.values()))]
    written = [*tensors((out,))]
    if packet in _PICKING:
        return [*read, *written, *written]
    if not func._schema.returns:  # it changes its inputs: an optimiser all but the gradients
        arguments = zip(func._schema.arguments, args, strict=False)
        written = [*tensors(value for schema, value in arguments if schema.alias_info and schema.name != "grads")]
    return [*read, *written]


_EMPTY = {aten.empty, aten.empty_like, aten.empty_strided, aten.new_empty, aten.new_empty_strided}
_PICKING = {aten.embedding, aten.gather, aten.index, aten.index_select}  # they read as much as they return
_OVERWRITING = {aten.copy_, aten.fill_, aten.zero_}
_LIKE = {aten.full_like, aten.new_full, aten.new_ones, aten.new_zeros, aten.ones_like, aten.zeros_like}
_UNREAD = {  # the argument that is not read, or hardly
    **dict.fromkeys(_PICKING | _OVERWRITING | _LIKE | {aten.nll_loss_forward}, 0),
    aten.nll_loss_backward: 1,
}
