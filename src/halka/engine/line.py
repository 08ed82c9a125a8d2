"""`Line`: what the engine computes in one step; `Forward`: whatever computes it."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol

from torch import Tensor

from halka.models.attention.paged import PagedPlan


@dataclass(frozen=True)
class Line:
    """The next tokens of some texts, one text after another: one of each that decodes, a chunk of each that is read.

    tokens   (N,) token ids
    plan     their positions and the blocks of keys and values; its runs are the stretches with one adapter
    names    the adapter of each run, as the model calls it; None for the bare base
    last     places in the line of the tokens whose next token is wanted, in order
    """

    tokens: Sequence[int]
    plan: PagedPlan
    names: tuple[str | None, ...]
    last: Sequence[int]

    @property
    def names_of_last(self) -> tuple[str | None, ...]:
        """The adapter of each token in `last`."""
        ends = [*accumulate(self.plan.forest.runs)]
        return tuple(self.names[bisect(ends, place)] for place in self.last)


class Forward(Protocol):
    """A pass of the base over lines; keys and values are kept in the blocks of the line's plan."""

    def __call__(self, line: Line) -> Tensor:
        """The logits (len(line.last), vocabulary), fp32, of the tokens after `line.last`."""
        ...

    def forget(self) -> None:
        """Let go of what was made of adapters: one of them has left, or another has come."""
        ...

    def close(self) -> None:
        """Leave the base as it was."""
        ...
