"""Parts of several adapters at one target, in one go: their tensors are stacked, and each row has its own part's.

Tensors of several parts are padded to the widest, stacked, and gathered by row: matrices (B, R, I), vectors (B, 1, O);
a batch of products takes the place of a loop over adapters. Zeros in a rank's place add nothing. In a line of tokens a
row is a run of any length: matrices are `Grouped`, and each token has its run's vectors. Where all rows have the same
part, its tensors are used as they are, not stacked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

import torch
from torch import Tensor, nn

from halka.core.parts import ModulePart
from halka.util.cached import Cached
from halka.util.products import Grouped, ShortRuns, stacked
from halka.util.transfer import numbers


class StackedParts:
    """Parts of one class and stack key at one target, and the rows of a batch that use them.

    What is stacked stays until an optimiser or a load changes a parameter. Values written by hand are looked for at a
    prompt, and in a line once, by the first pass: every block of `use` with names makes its own stacks. While a batch
    decodes, token by token, a look at each of many parameters would take a third of the products' time.
    """

    def __init__(self, rows: Sequence[int], parts: Sequence[ModulePart]):
        self.rows = rows
        places = {part: place for place, part in enumerate(dict.fromkeys(parts))}
        self.distinct = tuple(places)  # the parts, each once; the first one's edit serves all
        self.which = [places[part] for part in parts]  # the place of each row's part among them
        self._tensors = Cached[tuple[Tensor, ...]]()

    @cached_property
    def _parameters(self) -> tuple[nn.Parameter, ...]:
        return tuple(parameter for part in self.distinct for parameter in part.parameters())

    def edit(self, values: Sequence[Tensor]) -> Tensor:
        """The last of `values`, (rows of the batch, repeats of each, …), with these rows edited."""
        last = values[-1]
        places = None if len(self.rows) == len(last) else numbers(tuple(self.rows), last.device)
        own = values if places is None else [value[places] for value in values]
        if len(self.distinct) == 1:
            batch = [value.flatten(0, 1) for value in own]
        else:  # a row's tokens, and those of its repeats, are one row to the stack
            batch = [value.reshape(len(self.rows), -1, value.shape[-1]) for value in own]
        tensors = self.joined(self.by_row, batch[-1], look=batch[-1].shape[-2] > 1)
        edited = self.distinct[0].edit(batch, tensors).reshape(own[-1].shape)
        return edited if places is None else last.index_copy(0, places, edited)

    def edit_runs(self, runs: ShortRuns, values: Sequence[Tensor]) -> Tensor:
        """The last of `values` (C, …), a run of tokens for each row, edited; of several parts, in one go."""
        part, tensors = self.distinct[0], self.joined(self.by_row, values[-1], look=False)
        own = [
            Grouped(tensor, runs) if of_part.dim() == 2 else runs.of_tokens(tensor[:, 0])
            for tensor, of_part in zip(tensors, part.prepared(values[-1].dtype), strict=True)
        ]
        return part.edit(values, own)

    def joined(self, join: Callable[[Sequence[Tensor]], Tensor], like: Tensor, look: bool = True) -> tuple[Tensor, ...]:
        """The tensors of one part as they are; of several parts, each first one, each second one … joined by `join`."""
        if len(self.distinct) == 1:
            return self.distinct[0].prepared(like.dtype)

        def make() -> tuple[Tensor, ...]:
            own = [part.prepared(like.dtype) for part in self.distinct]
            assert own[0], f"{type(self.distinct[0]).__name__} has no tensors to stack: its stack_key is to be None"
            return tuple(join(tensors) for tensors in zip(*own, strict=True))

        if torch.compiler.is_compiling():  # Python 3.11 locks a cached property, where the graph would end
            return make()
        return self._tensors.get(self._parameters, make, like.dtype, like.device, look=look)

    def by_row(self, tensors: Sequence[Tensor]) -> Tensor:
        by_input = not torch.is_grad_enabled() and tensors[0].device.type == "cpu"  # which `linear` reads fastest
        stack = stacked(tensors, by_input=by_input)
        if len(self.distinct) == len(self.which):  # they are the rows already
            return stack
        rows = numbers(tuple(self.which), stack.device)
        return stack.mT[rows].mT if by_input else stack[rows]
