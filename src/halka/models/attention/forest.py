"""`ForestPlan`: what attention needs to know of a batch's forest, computed once a batch and read by every layer.

The decoder is called with `input_ids` (1, N), `position_ids` (1, N), `use_cache=False` and `**plan.inputs`, of which
transformers hands `forest` on to `attend`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from typing import Any, TypeVar

import torch
from torch import Tensor

from halka.models.attention.layer_stack import LayerMemory
from halka.util.forest import Forest
from halka.util.transfer import to_device

Value = TypeVar("Value")

FAR = 2**30  # a virtual token's position, which no window leaves behind


@dataclass(eq=False)
class Visibility:
    """Which of K keys each of N tokens sees: the virtual tokens stand first, then the line's own.

    A key is seen by the tokens at places [first, end), of a line's token from its own place to the end of its subtree,
    of a run's virtual token the whole run; with a window, by those of them whose bound is below its position. All are
    tensors: of what else differs from call to call, FlexAttention would be compiled anew.

    first, end, position   (K,) of a key
    bound                  (N,) of a token: the position of the last key that its window leaves behind; None without one
    virtual                (R, P): P virtual tokens for R runs, or one for all
    tokens                 N
    """

    first: Tensor
    end: Tensor
    position: Tensor
    bound: Tensor | None
    virtual: tuple[int, int]
    tokens: int

    def sees(self, token: Tensor, key: Tensor) -> Tensor:
        """Whether tokens at these places see keys of these numbers, which broadcast."""
        visible = (self.first[key] <= token) & (token < self.end[key])
        if self.bound is not None:
            visible = visible & (self.bound[token] < self.position[key])
        return visible

    @cached_property
    def dense(self) -> Tensor:
        """(N, K), true where a token sees a key."""
        tokens, keys = (torch.arange(count, device=self.first.device) for count in (self.tokens, len(self.first)))
        return self.sees(tokens[:, None], keys)


class SegmentPlan:
    """A line's segments and what layers share: what a base's pass receives as `forest` (`core.interfaces.LinePlan`)."""

    def __init__(self, forest: Forest, device: torch.device):
        self.forest, self.device = forest, device
        self._cache: dict[Hashable, Any] = {}

    @property
    def runs(self) -> tuple[int, ...]:
        return self.forest.runs

    @property
    def inputs(self) -> dict[str, Any]:
        """Keywords for the decoder's call. Transformers takes a mask of four dimensions as it is and builds none."""
        return {"forest": self, "attention_mask": torch.ones(1, 1, 1, 1, dtype=torch.bool, device=self.device)}

    def cached(self, key: Hashable, compute: Callable[[], Value]) -> Value:
        """What `compute` returned the first time that this key was asked for; tensors in a key are told by identity."""
        if key not in self._cache:
            self._cache[key] = compute()
        return self._cache[key]


class ForestPlan(SegmentPlan):
    """A forest with the tensors that all layers share.

    positions   (N,) each token's place counted from its root's first token
    """

    def __init__(self, forest: Forest, device: torch.device | str = "cpu"):
        super().__init__(forest, torch.device(device))
        self.positions, self._ends = to_device([forest.positions, forest.ends_of_tokens], self.device)

    def on_device(self, device: torch.device) -> ForestPlan:
        """The plan with its tensors there: of a base on several devices, each has one."""
        return self if device == self.device else self.cached(("plan", device), lambda: ForestPlan(self.forest, device))

    def memory_on_device(self, layer: LayerMemory) -> LayerMemory:
        """A layer's virtual tokens there, with one tensor `valid` for all layers: masks are looked up by it."""
        valid = layer.valid
        if valid is not None:
            layer = replace(layer, valid=self.cached(("valid there", valid), lambda: valid.to(self.device)))
        return layer.on_device(self.device)

    def is_one_text(self, window: int | None) -> bool:
        """Whether every token sees all before it."""
        return len(self.forest.lengths) == 1 and (window is None or self.forest.tokens <= window)

    @cached_property
    def by_run(self) -> list[ForestPlan | None]:
        """A plan for each run alone; None for one without tokens."""
        forest, plans, first = self.forest, list[ForestPlan | None](), 0
        for run, tokens in enumerate(forest.runs):
            own = slice(first, first + forest.run_of_segment.count(run))
            parents = tuple(parent if parent < 0 else parent - first for parent in forest.parents[own])
            plans.append(ForestPlan(Forest(forest.lengths[own], parents, (tokens,)), self.device) if tokens else None)
            first = own.stop
        return plans

    def visibility(self, window: int | None, memory: LayerMemory | None = None) -> Visibility:
        """Who sees whom; memory's rows are the runs', or one is for all."""
        virtual, valid = ((1, 0), None) if memory is None else (memory.shape, memory.valid)
        assert virtual[0] in (1, len(self.forest.runs)), f"virtual tokens of {virtual[0]} runs, not of every run"
        key = ("visibility", window, virtual, valid)
        return self.cached(key, lambda: self._visibility(window, virtual, valid))

    def _visibility(self, window: int | None, virtual: tuple[int, int], valid: Tensor | None) -> Visibility:
        forest = self.forest
        run_ends = [*accumulate(forest.runs)] if virtual[0] > 1 else [forest.tokens]
        bounds = (torch.tensor(bound, device="cpu") for bound in ([0, *run_ends[:-1]], run_ends))
        starts, ends = (bound.view(-1, 1).expand(virtual) for bound in to_device([*bounds], self.device))
        if valid is not None:
            ends = ends.where(valid, starts)
        own = (torch.arange(forest.tokens, device=self.device), self._ends, self.positions)
        fronts = (starts, ends, torch.full_like(starts, FAR))
        tables = [torch.cat([front.flatten(), line]) for front, line in zip(fronts, own, strict=True)]
        bound = None if window is None else self.positions - window
        return Visibility(*tables, bound=bound, virtual=virtual, tokens=forest.tokens)
