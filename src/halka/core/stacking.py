"""What parts compute with, made once a block; rows that use different parts of one kin are done in one go.

Of one part, the operands are its own. Of several they are padded to the widest, stacked, and gathered by row: matrices
(B, R, I), vectors (B, 1, O); a batch of products takes the place of a loop over adapters. Zeros in a rank's place add
nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from halka.core.parts import Edits, Part, state_of


class Stack:
    """Parts of one class and kin at one target: one for each row, or the same one for all."""

    def __init__(self, parts: Sequence[Part]):
        self._rows = len(parts)
        self.distinct = tuple(dict.fromkeys(parts))
        place = {part: i for i, part in enumerate(self.distinct)}
        self.which = [place[part] for part in parts]
        self._parameters = tuple(parameter for part in self.distinct for parameter in part.parameters())
        self._seen: tuple = ()  # the parameters' state when last looked at
        self._known: tuple[tuple, tuple[Tensor, ...]] | None = None

    def forget(self) -> None:
        """Let go of the operands."""
        self._known = None

    def before(self, x: Tensor) -> Tensor:
        """`Part.before` of each row's part."""
        return self.distinct[0].reads(x, *self._operands(x))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """`Part.forward` of each row's part."""
        return self.distinct[0].writes(x, y, *self._operands(y))

    def _operands(self, like: Tensor) -> tuple[Tensor, ...]:
        """The rows' operands; where nothing is differentiated, known until a parameter changes.

        While a mixed batch decodes, token by token, that is noticed of optimiser steps and loads alone: to look at each
        of its many parameters takes a third of the time that the products do.
        """
        if torch.is_grad_enabled() or torch.compiler.is_compiling():  # a compiled graph makes them in every pass
            self._known = None
            return self._made(like)
        if like.shape[1] > 1 or len(self.distinct) == 1:
            self._seen = state_of(self._parameters)
        state = (Edits.count, self._seen, like.shape[0], like.dtype, like.device)
        if self._known is None or self._known[0] != state:
            self._known = (state, self._made(like))
        return self._known[1]

    def by_expert(self, like: Tensor) -> tuple[Tensor, ...]:
        """At experts: the distinct parts' operands, those of one expert side by side, (E·N, R, I) and (E·N, O)."""
        state = (state_of(self._parameters), like.dtype, like.device)
        if torch.is_grad_enabled() or self._known is None or self._known[0] != state:
            each = [part.operands(like.dtype) for part in self.distinct]
            made = each[0] if len(each) == 1 else tuple(map(_beside, zip(*each, strict=True)))
            self._known = None if torch.is_grad_enabled() else (state, made)
            return made
        return self._known[1]

    def _made(self, like: Tensor) -> tuple[Tensor, ...]:
        each = [part.operands(like.dtype) for part in self.distinct]
        if len(each) == 1:
            return each[0]
        times = like.shape[0] // self._rows
        by_input = not torch.is_grad_enabled()
        together = [stacked(operands, by_input=by_input) for operands in zip(*each, strict=True)]
        if times == 1 and len(each) == self._rows:  # they are the rows already
            return tuple(together)
        rows = torch.tensor(self.which, device=like.device).repeat_interleave(times)
        return tuple(whole.mT[rows].mT if by_input else whole[rows] for whole in together)


def stacked(tensors: Sequence[Tensor], *, by_input: bool = False) -> Tensor:
    """(N, …) of N vectors or matrices, each filled up with zeros to the largest; vectors become (N, 1, O).

    by_input: matrices (N, R, I) lie as (N, I, R) in memory, which `core.linear` reads fastest for one token a row.
    """
    filled = _filled(tensors)
    if filled[0].dim() == 1:
        return torch.stack(filled)[:, None]
    return torch.stack([tensor.mT for tensor in filled]).mT if by_input else torch.stack(filled)


def _beside(tensors: Sequence[Tensor]) -> Tensor:
    """(E·N, …) of N stacks (E, …), each filled up with zeros to the largest."""
    return torch.stack(_filled(tensors), dim=1).flatten(0, 1)


def _filled(tensors: Sequence[Tensor]) -> list[Tensor]:
    shape = torch.Size(max(sizes) for sizes in zip(*(tensor.shape for tensor in tensors), strict=True))
    return [tensor if tensor.shape == shape else F.pad(tensor, _missing(tensor, shape)) for tensor in tensors]


def _missing(tensor: Tensor, shape: Sequence[int]) -> list[int]:
    """What `F.pad` takes, to fill the tensor up at the ends of its sides."""
    sides = zip(reversed(tensor.shape), reversed(shape), strict=True)
    return [side for have, want in sides for side in (0, want - have)]
