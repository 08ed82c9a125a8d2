"""A route says which row of a batch uses which adapter, and what its parts do at each module."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from halka.core.adapter import Adapter
from halka.core.parts import ModulePart, VirtualPart, WeightPart
from halka.core.stacking import StackedParts
from halka.util.cached import Cached
from halka.util.errors import HalkaError
from halka.util.rows import repeats
from halka.util.runs import StackRows, shares_of

Place = tuple[str, Literal["input", "output"]]  # a target's key, and what parts edit there
AdapterNames = str | Sequence[str | None] | None  # as `use` takes them: one for all rows, one a row, or none
RowNames = tuple[str | None, ...]  # what `use` makes of them: one a row, or a single one for all; None: no adapter


class Edits:
    """What the rows' parts do to what one module receives, or returns."""

    def __init__(self, parts: Sequence[ModulePart | None]):
        self.parts = tuple(parts)  # one a row (None: nothing), or a single one for all rows
        groups: dict[Hashable, dict[int, ModulePart]] = defaultdict(dict)
        for row, part in enumerate(self.parts):
            if part is not None:
                key = part.stack_key()
                groups[id(part) if key is None else (type(part), key)][row] = part
        self.stacks = [StackedParts([*group], [*group.values()]) for group in groups.values()]  # each in one go
        self._rows = tuple(StackRows(tuple(stack.rows), len(stack.distinct) > 1) for stack in self.stacks)

    def edit(self, runs: Sequence[int], x: Tensor, y: Tensor | None = None) -> Tensor:
        """y, which the module returned of x, edited; without y, x edited, which the module is to receive.

        They are a padded batch's, (B, T, …) or (1, T, …), or with `runs` a line's, (1, N, …) or (N, …).
        """
        values, last = ((x,), x) if y is None else ((x, y), y)
        if len(self.parts) == 1:
            return _edited(self.parts[0], values)
        if not runs and len(last) == 1:  # positions, which all rows share until adapters change them
            values = [value.expand(len(self.parts), *value.shape[1:]) for value in values]
            last = values[-1]
        return (self._edit_line(tuple(runs), values) if runs else self._edit_rows(values)).reshape(last.shape)

    def _edit_rows(self, values: Sequence[Tensor]) -> Tensor:
        """A padded batch, stack by stack."""
        count = len(self.parts)
        return self._by_stack([torch.unflatten(it, 0, (count, repeats(it.shape[0], count))) for it in values])

    def _edit_line(self, runs: tuple[int, ...], values: Sequence[Tensor]) -> Tensor:
        """A line. What is differentiated, or compiled, is edited run by run, or as a rectangle where it is one."""
        lines = [value if value.shape[0] == sum(runs) else value.flatten(0, 1) for value in values]
        if not torch.is_grad_enabled() and not torch.compiler.is_compiling():
            return self._in_one_go(runs, lines)
        if len({*runs}) > 1:
            return self._by_run(runs, lines)
        return self._by_stack([torch.unflatten(line, 0, (len(runs), 1, runs[0])) for line in lines])

    def _by_stack(self, rows: list[Tensor]) -> Tensor:
        """Rows (those that `use` named, repeats of each, T, …)."""
        for stack in self.stacks:
            rows[-1] = stack.edit(rows)
        return rows[-1]

    def _in_one_go(self, runs: tuple[int, ...], lines: Sequence[Tensor]) -> Tensor:
        """Short runs by their stacks, each long one by its own part: lines (N, …). Nothing is differentiated."""
        shares = shares_of(runs, self._rows, lines[-1].device)
        edited = [
            stack.edit_runs(of_stack.runs, [line[of_stack.tokens] for line in lines])
            for stack, of_stack in zip(self.stacks, shares.together, strict=True)
            if of_stack is not None
        ]
        edited += [_edited(self.parts[row], [line[own] for line in lines]) for row, own in shares.alone]
        return shares.joined(lines[-1], edited)

    def _by_run(self, runs: Sequence[int], lines: Sequence[Tensor]) -> Tensor:
        """The way of training, and the slow twin of `_in_one_go`: each run, of its own length, by its own part."""
        pieces = zip(*(torch.split(line, list(runs)) for line in lines), strict=True)
        return torch.cat([_edited(part, piece) for part, piece in zip(self.parts, pieces, strict=True)])


def _edited(part: ModulePart | None, values: Sequence[Tensor]) -> Tensor:
    return values[-1] if part is None else part.edit(values, part.prepared(values[-1].dtype))


class ExpertEdits(NamedTuple):
    """What a route's parts do at one weight of a layer's experts (`models/experts.py` computes it).

    names   the adapters of the rows, of as many tokens each, or of `runs`
    """

    names: RowNames
    runs: tuple[int, ...]
    inputs: Edits | None = None
    outputs: Edits | None = None


@dataclass(frozen=True)
class Route:
    """Which adapter each row of a batch uses, resolved to what happens at each module.

    edits     what edits at each place
    virtual   by role: a row's part each, or one for all
    weights   what stands in for the base's weights; `cast`: in their precision, for as long as there is the route
    experts   some part acts on experts
    adapters  those whose parts these are, by name; none where they are merged into the base
    """

    names: RowNames
    edits: Mapping[Place, Edits] = field(default_factory=dict[Place, Edits])
    virtual: Mapping[str, tuple[VirtualPart | None, ...]] = field(default_factory=dict[str, Any])
    weights: WeightPart | None = None
    experts: bool = False
    adapters: Mapping[str, Adapter] = field(default_factory=dict[str, Adapter])
    cast: Cached[Mapping[str, Tensor]] = field(default_factory=Cached[Mapping[str, Tensor]], compare=False)


def resolve(names: RowNames, adapters: Mapping[str, Adapter]) -> Route:
    """The route of a batch whose rows use the adapters of these names; a single name counts for every row.

    Raises HalkaError where a full copy of the weights would share a batch.
    """
    rows = names[:1] if len(set(names)) == 1 else names
    at_modules: dict[Place, dict[str | None, ModulePart]] = defaultdict(dict)  # by adapter
    virtual: dict[str, dict[str | None, VirtualPart]] = defaultdict(dict)  # by role and adapter
    weights = None
    for name, adapter in adapters.items():
        for path, part in adapter.parts.items():
            target = adapter.targets[path]
            if isinstance(part, ModulePart):
                at_modules[target.key, part.edits][name] = part
            elif isinstance(part, VirtualPart):
                virtual[target.role][name] = part
            elif isinstance(part, WeightPart):
                if len(rows) > 1:
                    raise HalkaError(f"{name!r} is a full copy of the weights: it cannot share a batch with others")
                weights = part
    return Route(
        names,
        {place: Edits([parts.get(name) for name in rows]) for place, parts in at_modules.items()},
        {role: tuple(parts.get(name) for name in rows) for role, parts in virtual.items()},
        weights,
        any(target.experts for adapter in adapters.values() for target in adapter.targets.values()),
        dict(adapters),
    )
