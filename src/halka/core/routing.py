"""A route says which row of a batch uses which adapter, and what its parts do at each module."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from halka.core.parts import Adapter, ModulePart, VirtualPart, WeightPart
from halka.core.stacking import StackedParts
from halka.util.errors import HalkaError


class Edits:
    """What the rows' parts do to what one module receives, or returns.

    parts    a row's each (None: nothing), or one for all rows
    stacks   those that are done in one go, each with the rows that it acts on
    """

    def __init__(self, parts: Sequence[ModulePart | None]):
        self.parts = tuple(parts)
        groups: dict[Hashable, list[int]] = defaultdict(list)
        for row, part in enumerate(self.parts):
            if part is not None:
                key = part.stack_key()
                groups[id(part) if key is None else (type(part), key)].append(row)
        self.stacks = [
            (StackedParts([part for row in rows if (part := self.parts[row])]), rows) for rows in groups.values()
        ]
        self._rows: dict[torch.device, list[Tensor]] = {}

    def input(self, x: Tensor, runs: Sequence[int]) -> Tensor:
        """What the module shall receive instead of x (B, T, I); with runs, x (1, N, I) or (N, I)."""
        return self._edit(lambda part, tensors, x: part.edit_input(x, *tensors), runs, x)

    def output(self, x: Tensor, y: Tensor, runs: Sequence[int]) -> Tensor:
        """What it shall return instead of y (B, T, O), given that it received x."""
        return self._edit(lambda part, tensors, x, y: part.edit_output(x, y, *tensors), runs, x, y)

    def forget(self) -> None:
        """Let go of what the parts computed with."""
        for stack, _ in self.stacks:
            stack.forget()

    def _edit(self, edit: Callable[..., Tensor], runs: Sequence[int], *tensors: Tensor) -> Tensor:
        """The last of `tensors`, edited."""
        if len(self.parts) == 1:
            ((stack, _),) = self.stacks
            return edit(stack.distinct[0], stack.tensors(tensors[-1]), *tensors)
        return self._by_run(edit, runs, tensors) if runs else self._by_row(edit, tensors)

    def _by_run(self, edit: Callable[..., Tensor], runs: Sequence[int], tensors: Sequence[Tensor]) -> Tensor:
        """Each run, of its own length, by its own part."""
        count = sum(runs)
        lines = [tensor if tensor.shape[0] == count else tensor.flatten(0, 1) for tensor in tensors]
        pieces = list(zip(*(line.split(list(runs)) for line in lines), strict=True))
        edited = [piece[-1] for piece in pieces]
        for stack, rows in self.stacks:
            for row, which in zip(rows, stack.which, strict=True):
                part = stack.distinct[which]
                edited[row] = edit(part, part.tensors(tensors[-1].dtype), *pieces[row])
        return torch.cat(edited).reshape(tensors[-1].shape)

    def _by_row(self, edit: Callable[..., Tensor], tensors: Sequence[Tensor]) -> Tensor:
        """Rows of one length, those of each stack in one go."""
        last, count = tensors[-1], len(self.parts)
        tensors = [tensor.unflatten(0, (count, repeats(tensor.shape[0], count))) for tensor in tensors]
        for (stack, rows), places in zip(self.stacks, self._places(last.device), strict=True):
            some = tensors if len(rows) == count else [tensor[places] for tensor in tensors]
            if len(stack.distinct) == 1:
                part = stack.distinct[0]
                flat = edit(part, stack.tensors(some[-1]), *(tensor.flatten(0, 1) for tensor in some))
            else:  # a row's tokens, and those of its repeats, are one row to the stack
                rowwise = [tensor.reshape(len(rows), -1, tensor.shape[-1]) for tensor in some]
                flat = edit(stack.distinct[0], stack.tensors(rowwise[-1]), *rowwise)
            edited = flat.reshape(some[-1].shape)
            tensors[-1] = edited if len(rows) == count else tensors[-1].index_copy(0, places, edited)
        return tensors[-1].reshape(last.shape)

    def _places(self, device: torch.device) -> list[Tensor]:
        """The rows of each stack."""
        if device not in self._rows:
            self._rows[device] = [torch.tensor(rows, device=device) for _, rows in self.stacks]
        return self._rows[device]


class ExpertEdits(NamedTuple):
    """What a route's parts do at one weight of a layer's experts (`models/experts.py` computes it).

    names   the adapters of the rows, of as many tokens each, or of `runs`
    """

    names: tuple[str | None, ...]
    runs: tuple[int, ...]
    inputs: Edits | None = None
    outputs: Edits | None = None


@dataclass(frozen=True)
class Route:
    """Which adapter each row of a batch uses, resolved to what happens at each module.

    inputs, outputs   by the target's key: what edits there
    virtual           by role: a row's part each, or one for all
    weights           what stands in for the base's weights
    experts           some part acts on experts
    """

    names: tuple[str | None, ...]
    inputs: Mapping[str, Edits] = field(default_factory=dict)
    outputs: Mapping[str, Edits] = field(default_factory=dict)
    virtual: Mapping[str, tuple[VirtualPart | None, ...]] = field(default_factory=dict)
    weights: WeightPart | None = None
    experts: bool = False

    def forget(self) -> None:
        """Let go of what the parts computed with; another block makes it anew."""
        for edits in (*self.inputs.values(), *self.outputs.values()):
            edits.forget()


def repeats(batch: int, named: int) -> int:
    """How many rows of a batch each row that `use` named has become: beam search repeats each one in place.

    Raises HalkaError if the batch is not a multiple of the rows that were named.
    """
    times, rest = divmod(batch, named)
    if rest or not times:
        raise HalkaError(
            f"the batch has {batch} rows, but `use` named an adapter for each of {named}: "
            "give one name a row, or a single name for all rows"
        )
    return times


def resolve(names: tuple[str | None, ...], adapters: Mapping[str, Adapter]) -> Route:
    """The route of a batch whose rows use the adapters of these names; a single name counts for every row.

    Raises HalkaError where a full copy of the weights would share a batch.
    """
    rows = names[:1] if len(set(names)) == 1 else names
    at_modules: dict[tuple[str, str], dict[str, ModulePart]] = defaultdict(dict)  # where and what it edits, by adapter
    virtual: dict[str, dict[str, VirtualPart]] = defaultdict(dict)  # by role and adapter
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
    edits = {key: Edits([parts.get(name or "") for name in rows]) for key, parts in at_modules.items()}
    return Route(
        names,
        {key: edit for (key, what), edit in edits.items() if what == "input"},
        {key: edit for (key, what), edit in edits.items() if what == "output"},
        {role: tuple(parts.get(name or "") for name in rows) for role, parts in virtual.items()},
        weights,
        any(target.experts for adapter in adapters.values() for target in adapter.targets.values()),
    )
