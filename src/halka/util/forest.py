"""`Forest`: which tokens of one line see which others, for examples that share their beginnings.

A batch of examples without padding is one line of N tokens, cut into segments. A segment continues its parent: rows
that begin alike are children of one segment, which is computed once. All that continues a segment, its subtree, stands
right behind it, so a token is seen by one stretch of the line: from its own place to the end of its subtree.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor


@dataclass(frozen=True)
class Forest:
    """Segments in one line of tokens; a token sees its own segment up to itself, and all of its ancestors.

    lengths   tokens of each segment, in the order of the line; above 0
    parents   the number of each segment's parent; -1 for a root. Subtrees are not torn apart: the parent is the
              segment before, or one that this continues
    runs      tokens of each run, in the order of the line. A tree lies within one run; a run holds one tree or several,
              or none. `model.use([...])` names an adapter for each

    Raises ValueError where these do not fit together.
    """

    lengths: tuple[int, ...]
    parents: tuple[int, ...]
    runs: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.lengths) != len(self.parents):
            raise ValueError(f"{len(self.lengths)} lengths, but {len(self.parents)} parents")
        if min(self.lengths, default=0) < 1:
            raise ValueError("a forest has a segment at least, and none is empty")
        if sum(self.runs) != self.tokens:
            raise ValueError(f"the runs have {sum(self.runs)} tokens, the segments {self.tokens}")
        run_of_segment, run_ends = self.run_of_segment, [*accumulate(self.runs)]
        path: list[int] = []  # of the segment before: its ancestors and itself
        for segment, parent in enumerate(self.parents):
            if self.starts[segment] + self.lengths[segment] > run_ends[run_of_segment[segment]]:
                raise ValueError(f"segment {segment} lies in more than one run")
            while path and path[-1] != parent:
                path.pop()
            if parent != -1 and not path:
                raise ValueError(f"segment {segment} does not stand behind its parent, {parent}, in its subtree")
            if path and run_of_segment[parent] != run_of_segment[segment]:
                raise ValueError(f"segment {segment} lies in another run than its parent, {parent}")
            path.append(segment)

    @cached_property
    def tokens(self) -> int:
        """N, the tokens of the line."""
        return sum(self.lengths)

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """The place in the line of each segment's first token."""
        return (0, *accumulate(self.lengths[:-1]))

    @cached_property
    def ends(self) -> tuple[int, ...]:
        """The place in the line behind each segment's subtree."""
        ends = [start + length for start, length in zip(self.starts, self.lengths, strict=True)]
        for segment in reversed(range(len(ends))):
            if (parent := self.parents[segment]) >= 0:
                ends[parent] = max(ends[parent], ends[segment])
        return tuple(ends)

    @cached_property
    def run_of_segment(self) -> tuple[int, ...]:
        """The number of each segment's run."""
        run_ends = [*accumulate(self.runs)]
        return tuple(bisect_right(run_ends, start) for start in self.starts)

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """The position of each segment's first token: how many tokens its ancestors have."""
        paths = (self.ancestors(segment) for segment in range(len(self.lengths)))
        return tuple(sum(self.lengths[ancestor] for ancestor in path) for path in paths)

    @cached_property
    def longest_of_runs(self) -> tuple[int, ...]:
        """The tokens of each run's longest text, from its root's first to its last; 0 of a run without text."""
        longest = [0] * len(self.runs)
        for run, offset, length in zip(self.run_of_segment, self.offsets, self.lengths, strict=True):
            longest[run] = max(longest[run], offset + length)
        return tuple(longest)

    def ancestors(self, segment: int) -> tuple[int, ...]:
        """A segment's ancestors, root first."""
        path: list[int] = []
        while (segment := self.parents[segment]) >= 0:
            path.append(segment)
        return tuple(reversed(path))

    @cached_property
    def ends_of_tokens(self) -> Tensor:
        """(N,) int64, the place in the line behind the subtree of each token's segment, up to which it is seen."""
        ends, lengths = (torch.tensor(it, device="cpu") for it in (self.ends, self.lengths))
        return ends.repeat_interleave(lengths)

    @cached_property
    def positions(self) -> Tensor:
        """(N,) int64, each token's place counted from its root's first token."""
        return torch.cat(
            [torch.arange(at, at + n, device="cpu") for at, n in zip(self.offsets, self.lengths, strict=True)]
        )
