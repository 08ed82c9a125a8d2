"""`ForestPlan`: what attention needs to know of a batch's forest, computed once a batch and read by every layer.

The decoder is called with `input_ids` (1, N), `position_ids` (1, N), `use_cache=False` and `**plan.inputs`, of which
transformers hands `forest` on to `attend`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any, TypeVar

import torch
from torch import Tensor

from halka.core import Forest

Value = TypeVar("Value")

FAR = 2**30  # a virtual token's position, which no window leaves behind


@dataclass(eq=False)
class Visibility:
    """Which of K keys each of N tokens sees: the virtual tokens stand first, then the line's own.

    Segments are numbered so that a segment and all behind it in its tree are one range: a key is seen by tokens whose
    `number` lies in [first, end), that do not stand before it in the line, and less than `window` positions behind it.

    number, position   (N,) of a token
    first, end, place, key_position   (K,) of a key; place is -1 for a virtual one
    """

    number: Tensor
    position: Tensor
    first: Tensor
    end: Tensor
    place: Tensor
    key_position: Tensor
    window: int | None
    valid: Tensor | None  # of virtual keys, as they came: `ForestPlan` finds this again by their id

    def sees(self, token: Tensor, key: Tensor) -> Tensor:
        """Whether tokens of these numbers see keys of these numbers, which broadcast."""
        number = self.number[token]
        visible = (self.first[key] <= number) & (number < self.end[key]) & (self.place[key] <= token)
        if self.window is not None:
            visible = visible & (self.position[token] - self.key_position[key] < self.window)
        return visible

    @cached_property
    def dense(self) -> Tensor:
        """(N, K), true where a token sees a key."""
        return self.of_first(len(self.first))

    def of_first(self, keys: int) -> Tensor:
        """(N, keys), true where a token sees one of the first keys."""
        device = self.number.device
        return self.sees(torch.arange(len(self.number), device=device)[:, None], torch.arange(keys, device=device))


class ForestPlan:
    """A forest with the tensors that all layers share.

    positions   (N,) each token's place counted from its root's first token
    runs        (N,) the number of each token's run
    """

    def __init__(self, forest: Forest, device: torch.device | str = "cpu"):
        self.forest, self.device = forest, torch.device(device)
        self.positions = forest.positions().to(self.device)
        self.runs = self.of_tokens(forest.run_of_segment)
        self._kept: dict[Any, Any] = {}

    @property
    def inputs(self) -> dict[str, Any]:
        """Keywords for the decoder's call. Transformers takes a mask of four dimensions as it is and builds none."""
        return {"forest": self, "attention_mask": torch.ones(1, 1, 1, 1, dtype=torch.bool, device=self.device)}

    def is_one_text(self, window: int | None) -> bool:
        """Whether every token sees all before it."""
        return len(self.forest.lengths) == 1 and (window is None or self.forest.tokens <= window)

    @cached_property
    def by_run(self) -> list[ForestPlan]:
        """A plan for each run alone."""
        forest, run_of_segment = self.forest, self.forest.run_of_segment
        plans: list[ForestPlan] = []
        for run, tokens in enumerate(forest.runs):
            first = run_of_segment.index(run)
            own = slice(first, first + run_of_segment.count(run))
            parents = tuple(parent if parent < 0 else parent - first for parent in forest.parents[own])
            plans.append(ForestPlan(Forest(forest.lengths[own], parents, (tokens,)), self.device))
        return plans

    def of_tokens(self, of_segments: tuple[int, ...]) -> Tensor:
        """(N,), each token's number of these, one for each segment."""
        lengths = torch.tensor(self.forest.lengths)
        return torch.tensor(of_segments).repeat_interleave(lengths).to(self.device)

    def kept(self, key: Any, compute: Callable[[], Value]) -> Value:
        """What `compute` returned the first time that this key was asked for."""
        if key not in self._kept:
            self._kept[key] = compute()
        return self._kept[key]

    def visibility(
        self, window: int | None, virtual: tuple[int, int] = (1, 0), valid: Tensor | None = None
    ) -> Visibility:
        """Who sees whom; `virtual` (R, P) are P virtual tokens for R runs, or one for all, valid (R, P) or None."""
        assert virtual[0] in (1, len(self.forest.runs)), f"virtual tokens of {virtual[0]} runs, not of every run"
        key = ("visibility", window, virtual, id(valid))
        return self.kept(key, lambda: self._visibility(window, virtual, valid))

    def _visibility(self, window: int | None, virtual: tuple[int, int], valid: Tensor | None) -> Visibility:
        number, first, end = self._numbers
        place = torch.arange(self.forest.tokens, device=self.device)
        bounds = self._bounds_of_runs if virtual[0] > 1 else (0, len(self.forest.lengths))
        starts, ends = (torch.tensor(bound, device=self.device).view(-1, 1).expand(virtual) for bound in bounds)
        if valid is not None:
            ends = ends.where(valid, starts)
        before, far = torch.full_like(starts, -1), torch.full_like(starts, FAR)
        fronts = (starts, ends, before, far)
        owns = (first, end, place, self.positions)
        tables = [torch.cat([front.flatten(), own]) for front, own in zip(fronts, owns, strict=True)]
        return Visibility(number, self.positions, tables[0], tables[1], tables[2], tables[3], window, valid)

    @cached_property
    def _numbers(self) -> tuple[Tensor, Tensor, Tensor]:
        """(N,) each token's segment, numbered along the tree, and the range [first, end) of those that see it."""
        parents = self.forest.parents
        sizes = [1] * len(parents)  # segments of each subtree
        for segment in reversed(range(len(parents))):
            if parents[segment] >= 0:
                sizes[parents[segment]] += sizes[segment]
        first, free, roots = [], [], 0
        for segment, parent in enumerate(parents):
            first.append(free[parent] if parent >= 0 else roots)
            free.append(first[-1] + 1)  # the number of this segment's next child
            if parent >= 0:
                free[parent] += sizes[segment]
            else:
                roots += sizes[segment]
        end = [number + size for number, size in zip(first, sizes, strict=True)]
        number = self.of_tokens(tuple(first))
        return number, number, self.of_tokens(tuple(end))

    @property
    def _bounds_of_runs(self) -> tuple[list[int], list[int]]:
        """Of each run the first segment and the one behind its last: a run's numbers are one range."""
        runs = self.forest.run_of_segment
        ends = list(accumulate(runs.count(run) for run in range(len(self.forest.runs))))
        return [0, *ends[:-1]], ends
