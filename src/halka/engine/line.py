"""`Line`: what the engine computes in one step; `Forward`: whatever computes it."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol

from torch import Tensor

from halka.core import Adapter
from halka.engine.schedule import Work
from halka.models.attention.paged import KVBlocks, PagedPlan


@dataclass(frozen=True)
class Line:
    """The next tokens of some texts, one text after another: one of each that decodes, a chunk of each that is read.

    tokens   (N,) token ids
    plan     their positions and the blocks of keys and values; its runs are the stretches with one adapter
    names    the adapter of each run, as the model calls it; None for the bare base
    last     places in the line of the tokens whose next token is wanted, in order
    long     its texts are beyond the base's `longrope_start`
    """

    tokens: Sequence[int]
    plan: PagedPlan
    names: tuple[str | None, ...]
    last: Sequence[int]
    long: bool = False

    @property
    def names_of_last(self) -> tuple[str | None, ...]:
        """The adapter of each token in `last`."""
        ends = [*accumulate(self.plan.forest.runs)]
        return tuple(self.names[bisect(ends, place)] for place in self.last)


def line_of(work: Work, kv: KVBlocks) -> Line:
    """One line of all that a step computes; texts of one adapter stand side by side, in an order that steps share."""
    work.sort(key=lambda pair: pair[0].version.key or "")
    runs, names = [], list[str | None]()
    for text, slots in work:
        if names and names[-1] == text.version.key:
            runs[-1] += len(slots)
        else:
            names.append(text.version.key)
            runs.append(len(slots))
    tokens, positions, texts, last = list[int](), list[int](), [], list[int]()
    for text, slots in work:
        end = text.done + len(slots)
        tokens += text.tokens[text.done : end]
        positions += range(text.version.shift + text.done, text.version.shift + end)
        texts.append(text.paged(len(slots)))
        if end == len(text.tokens):
            last.append(len(tokens) - 1)
    slots = [slot for _, own in work for slot in own]
    return Line(tokens, PagedPlan(kv, texts, positions, slots, runs), tuple(names), last, work[0][0].long)


class Forward(Protocol):
    """A pass of the base over lines; keys and values are kept in the blocks of the line's plan."""

    def __call__(self, line: Line) -> Tensor:
        """The logits (len(line.last), vocabulary), fp32, of the tokens after `line.last`."""
        ...

    @property
    def intact(self) -> bool:
        """Whether it computes as fast as it did at first: what it was made of is still the base's."""
        ...

    def bytes_of(self, adapter: Adapter) -> int:
        """What it keeps of an adapter for as long as that is there, beside what the model has."""
        ...

    def forget(self) -> None:
        """Let go of what was made of adapters: one of them has left, or another has come."""
        ...

    def close(self) -> None:
        """Leave the base as it was."""
        ...
