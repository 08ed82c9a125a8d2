"""Rows that use different parts of one kin are done in one go: a batch of products instead of a loop over adapters.

Each part's operands are padded to the widest, stacked, and gathered by row: matrices (B, R, I), vectors (B, 1, O).
Zeros in a rank's place add nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from halka.core.parts import Part


class Stack:
    """Parts of one class and kin at one target, one for each row."""

    def __init__(self, parts: Sequence[Part]):
        self.parts = tuple(parts)
        self._distinct = tuple(dict.fromkeys(parts))
        place = {part: i for i, part in enumerate(self._distinct)}
        self._which = torch.tensor([place[part] for part in parts])
        self._known: tuple[tuple, tuple[Tensor, ...]] | None = None

    def before(self, x: Tensor) -> Tensor:
        """`Part.before` of each row's part."""
        return self.parts[0].reads(x, *self._operands(x))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """`Part.forward` of each row's part."""
        return self.parts[0].writes(x, y, *self._operands(y))

    def _operands(self, like: Tensor) -> tuple[Tensor, ...]:
        """Each row's operands; known until a parameter changes, where nothing is differentiated."""
        times = like.shape[0] // len(self.parts)
        versions = tuple(p._version for part in self._distinct for p in part.parameters())
        state = (versions, times, like.dtype, like.device)
        if not torch.is_grad_enabled() and self._known is not None and self._known[0] == state:
            return self._known[1]
        rows = self._which.repeat_interleave(times).to(like.device)
        made = zip(*(part.operands(like.dtype) for part in self._distinct), strict=True)
        operands = tuple(stacked(each)[rows] for each in made)
        self._known = None if torch.is_grad_enabled() else (state, operands)
        return operands


def stacked(tensors: Sequence[Tensor]) -> Tensor:
    """(N, …) of N vectors or matrices, each filled up with zeros to the largest; vectors become (N, 1, O)."""
    shape = [max(sizes) for sizes in zip(*(tensor.shape for tensor in tensors), strict=True)]
    together = torch.stack([F.pad(tensor, _missing(tensor, shape)) for tensor in tensors])
    return together[:, None] if together.dim() == 2 else together


def _missing(tensor: Tensor, shape: Sequence[int]) -> list[int]:
    """What `F.pad` takes, to fill the tensor up at the ends of its sides."""
    sides = zip(reversed(tensor.shape), reversed(shape), strict=True)
    return [side for have, want in sides for side in (0, want - have)]
