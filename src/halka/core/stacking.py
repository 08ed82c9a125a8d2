"""Parts of several adapters at one target, in one go: their tensors are stacked, a row's own for each row.

Of one part, the tensors are its own. Of several they are padded to the widest, stacked, and gathered by row: matrices
(B, R, I), vectors (B, 1, O); a batch of products takes the place of a loop over adapters. Zeros in a rank's place add
nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from halka.core.parts import ModulePart
from halka.util.cached import Cached


class Grouped(NamedTuple):
    """A weight (O, I) for each run of tokens; run i is the next `sizes[i]` of them, or none."""

    weights: Sequence[Tensor]
    sizes: Sequence[int]


def linear(x: Tensor, weight: Tensor | Grouped, bias: Tensor | None = None) -> Tensor:
    """x (…, I) times a weight (R, I); or x (B, T, I) times a weight for each row (B, R, I); bias (R,), or (B, 1, R).

    Of experts: x (C, I) times a weight for each run of tokens; bias (C, R).
    """
    if isinstance(weight, Grouped):
        runs = zip(x.split(list(weight.sizes)), weight.weights, strict=True)
        result = torch.cat([_of_run(run, own) for run, own in runs if len(run)])
        return result if bias is None else result + bias
    if weight.dim() == 2:
        return F.linear(x, weight, bias)
    by_input = weight.device.type == "cpu" and weight.mT.is_contiguous() and not torch.is_grad_enabled()
    result = _one_token(x, weight) if by_input and x.shape[1] == 1 else x @ weight.mT
    return result if bias is None else result + bias


def _of_run(x: Tensor, weight: Tensor) -> Tensor:
    """x (C, I) times a weight (R, I), with C filled up in bf16: a CPU makes a kernel anew for every other C.

    Every run is copied, so that none keeps all of them for the backward pass.
    """
    if x.dtype != torch.bfloat16 or x.device.type != "cpu":
        return F.linear(x, weight)
    return F.linear(F.pad(x, (0, 0, 0, -len(x) % 16)), weight)[: len(x)]


def _one_token(x: Tensor, weight: Tensor) -> Tensor:
    """x (B, 1, I) times a weight for each row (B, R, I), laid out as (B, I, R): weighted sums, as embedding bags are.

    Each weight is read once, on a CPU; torch's batched product of one row takes up to four times as long.
    """
    batch, width, length = weight.shape
    rows, starts = _bags(batch, length)
    table = weight.mT.reshape(batch * length, width)
    return torch.embedding_bag(table, rows, starts, False, 0, False, x.reshape(-1))[0][:, None]


@lru_cache(maxsize=64)
def _bags(count: int, length: int) -> tuple[Tensor, Tensor]:
    """The rows of `count` bags of `length` rows each, one after another, and where each bag starts."""
    with torch.inference_mode(False):
        rows = torch.arange(count * length, dtype=torch.int32)
        return rows, rows[::length].contiguous()


class StackedParts:
    """Parts of one class and stack key at one target, and the rows of a batch that use them.

    distinct   the parts, each once; the first one's edit serves all
    which      the place of each row's part among them
    """

    def __init__(self, rows: Sequence[int], parts: Sequence[ModulePart]):
        self.rows = rows
        places = {part: place for place, part in enumerate(dict.fromkeys(parts))}
        self.distinct = tuple(places)
        self.which = [places[part] for part in parts]
        self._places: Tensor | None = None  # the rows, on the batch's device
        self._tensors = Cached[tuple[Tensor, ...]]()

    @cached_property
    def _parameters(self) -> tuple[nn.Parameter, ...]:
        return tuple(parameter for part in self.distinct for parameter in part.parameters())

    def edit(self, values: Sequence[Tensor]) -> Tensor:
        """The last of `values`, (rows of the batch, repeats of each, …), with these rows edited."""
        last, every = values[-1], len(self.rows) == len(values[-1])
        if self._places is None or self._places.device != last.device:
            self._places = torch.tensor(self.rows, device=last.device)
        own = values if every else [value[self._places] for value in values]
        if len(self.distinct) == 1:
            batch = [value.flatten(0, 1) for value in own]
        else:  # a row's tokens, and those of its repeats, are one row to the stack
            batch = [value.reshape(len(self.rows), -1, value.shape[-1]) for value in own]
        edited = self.distinct[0].edit(batch, self.tensors(batch[-1])).reshape(own[-1].shape)
        return edited if every else last.index_copy(0, self._places, edited)

    def tensors(self, like: Tensor) -> tuple[Tensor, ...]:
        """The rows' tensors for an input like this one, (…, T, I).

        While a mixed batch decodes, token by token, nobody looks for values written by hand: to look at each of its
        many parameters takes a third of the time that the products do.
        """
        return self.joined(self._by_row, like, look=len(self.distinct) == 1 or like.shape[-2] > 1)

    def joined(self, join: Callable[[Sequence[Tensor]], Tensor], like: Tensor, look: bool = True) -> tuple[Tensor, ...]:
        """The tensors of one part as they are; of several parts, each first one, each second one … joined by `join`."""

        def make() -> tuple[Tensor, ...]:
            own = [part.tensors(like.dtype) for part in self.distinct]
            if len(own) == 1:
                return own[0]
            assert own[0], f"{type(self.distinct[0]).__name__} has no tensors to stack: its stack_key is to be None"
            return tuple(join(tensors) for tensors in zip(*own, strict=True))

        return self._tensors.get(self._parameters, make, like.dtype, like.device, look=look)

    def _by_row(self, tensors: Sequence[Tensor]) -> Tensor:
        by_input = not torch.is_grad_enabled()
        stack = stacked(tensors, by_input=by_input)
        if len(self.distinct) == len(self.which):  # they are the rows already
            return stack
        rows = torch.tensor(self.which, device=stack.device)
        return stack.mT[rows].mT if by_input else stack[rows]


def stacked(tensors: Sequence[Tensor], *, by_input: bool = False) -> Tensor:
    """(N, …) of N vectors or matrices, each filled up with zeros to the largest; vectors become (N, 1, O).

    by_input: matrices (N, R, I) lie as (N, I, R) in memory, which `linear` reads fastest for one token a row.
    """
    same_shape = filled(tensors)
    if same_shape[0].dim() == 1:
        return torch.stack(same_shape)[:, None]
    return torch.stack([tensor.mT for tensor in same_shape]).mT if by_input else torch.stack(same_shape)


def filled(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Tensors of one dimensionality, each filled up with zeros to the largest."""
    shape = torch.Size(max(sizes) for sizes in zip(*(tensor.shape for tensor in tensors), strict=True))
    return [tensor if tensor.shape == shape else _padded(tensor, shape) for tensor in tensors]


def _padded(tensor: Tensor, shape: Sequence[int]) -> Tensor:
    sides = zip(reversed(tensor.shape), reversed(shape), strict=True)
    return F.pad(tensor, [side for have, want in sides for side in (0, want - have)])
