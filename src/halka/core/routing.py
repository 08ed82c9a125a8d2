"""A route says which row of a batch uses which adapter, resolved to what happens at each module."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from halka.core.parts import VIRTUAL_ROLES, Adapter, Part
from halka.core.stacking import Stack
from halka.util.errors import HalkaError

STACKING = True  # False: adapter by adapter, the slow twin


class Memory(Protocol):
    """Where virtual tokens join the base's own (`models/attention/virtual_tokens.py`); the core only says whose."""

    @property
    def stacks(self) -> Sequence[nn.Module]:
        """The modules where passes of the base begin: its decoder, its encoder, or both."""
        ...

    def enter(
        self, parts: Mapping[str, Sequence[Part | None]], bare: Callable[[], AbstractContextManager[None]]
    ) -> None:
        """From now on row i, or every row if there is one part, attends to what parts[role][i] holds.

        Within `with bare():` the base runs without adapters.
        """
        ...

    def leave(self) -> None: ...

    def aside(self) -> AbstractContextManager[None]:
        """Within the block every row attends to its own text alone."""
        ...

    def begin(self, stack: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
        """What a pass of that stack shall receive instead of args and kwargs; None: these."""
        ...

    def end(self, stack: nn.Module, kwargs: dict[str, Any], output: Any) -> Any:
        """What the pass, which received kwargs, shall return instead of output; None: that."""
        ...


@dataclass(frozen=True)
class Use:
    """What is done at one target with the rows named; None serves every row."""

    act: Part | Stack
    rows: tuple[int, ...] | None
    _known: dict[Any, Tensor] = field(default_factory=dict)

    def rows_of(self, batch: int, named: int, device: torch.device) -> Tensor:
        """The rows in a batch that may have repeated each row named in place."""
        if (batch, device) not in self._known:
            times = repeats(batch, named)
            rows = [row * times + i for row in self.rows or () for i in range(times)]
            self._known[batch, device] = torch.tensor(rows, device=device)
        return self._known[batch, device]


@dataclass(frozen=True)
class Route:
    """Which adapter each row of a batch uses, resolved to what happens at each module."""

    names: tuple[str | None, ...]
    reading: Mapping[str, list[Use]]  # by the target's key: what it shall receive
    writing: Mapping[str, list[Use]]  # what it shall return
    memory: Mapping[str, tuple[Part | None, ...]] = field(default_factory=dict)  # by role
    full: Part | None = None
    experts: bool = False  # some part acts on experts

    def forget(self) -> None:
        """Let go of what the parts computed with; another block makes it anew."""
        for uses in (*self.reading.values(), *self.writing.values()):
            for use in uses:
                if isinstance(use.act, Stack):
                    use.act.forget()

    def before(self, key: str, x: Tensor) -> Tensor:
        """What the module of target `key` shall receive instead of x (B, T, I)."""
        for use in self.reading[key]:
            x = self._on_rows(use, use.act.before, x)
        return x

    def after(self, key: str, x: Tensor, y: Tensor) -> Tensor:
        """What it shall return instead of y (B, T, O), given x."""
        for use in self.writing[key]:
            y = self._on_rows(use, use.act.forward, x, y)
        return y

    def _on_rows(self, use: Use, act: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
        """The last of `tensors` with the use's rows as `act` makes them."""
        if use.rows is None:
            return act(*tensors)
        last = tensors[-1]
        rows = use.rows_of(last.shape[0], len(self.names), last.device)
        return last.index_copy(0, rows, act(*(tensor[rows] for tensor in tensors)))


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
    alone = len(set(names)) == 1
    memory: dict[str, dict[str, Part]] = defaultdict(dict)  # role -> adapter's name -> part
    full = None
    at: dict[str, dict[str, Part]] = defaultdict(dict)  # target's key -> adapter's name -> part
    for name, adapter in adapters.items():
        for path, part in adapter.parts.items():
            target = adapter.targets[path]
            if target.role == "base":
                if not alone:
                    raise HalkaError(f"{name!r} is a full copy of the weights: it cannot share a batch with others")
                full = part
            elif target.role in VIRTUAL_ROLES:
                memory[target.role][name] = part
            else:
                at[target.key][name] = part
    rows = names[:1] if alone else names
    return Route(
        names,
        {key: uses for key, parts in at.items() if (uses := _uses(names, parts, "reads", "before"))},
        {key: uses for key, parts in at.items() if (uses := _uses(names, parts, "writes", "forward"))},
        {role: tuple(parts.get(name or "") for name in rows) for role, parts in memory.items()},
        full,
        any(target.stack for adapter in adapters.values() for target in adapter.targets.values()),
    )


def _uses(names: tuple[str | None, ...], parts: Mapping[str, Part], *ways: str) -> list[Use]:
    """The rows at one target whose parts override one of `ways`, those of like parts together."""
    acting = {name: part for name, part in parts.items() if any(_overrides(type(part), way) for way in ways)}
    if len(set(names)) == 1:
        return [Use(_act([part]), None) for part in acting.values()]
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for row, name in enumerate(names):
        if name in acting:
            groups[_kin(acting[name])].append(row)
    uses = []
    for rows in groups.values():
        act = _act([acting[names[row] or ""] for row in rows])
        uses.append(Use(act, None if len(rows) == len(names) else tuple(rows)))
    return uses


def _act(parts: Sequence[Part]) -> Part | Stack:
    """Parts of one kin, as one that acts."""
    return parts[0] if _acts_itself(parts[0]) else Stack(parts)


@functools.cache
def _overrides(kind: type[Part], way: str) -> bool:
    return getattr(kind, way) is not getattr(Part, way)


def _kin(part: Part) -> Hashable:
    """What is equal for parts that can be done in one go."""
    return (type(part), part.kin()) if STACKING and not _acts_itself(part) else id(part)


def _acts_itself(part: Part) -> bool:
    return _overrides(type(part), "before") or _overrides(type(part), "forward")
