"""A route says which row of a batch uses which adapter, resolved to what happens at each module."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from halka.core.parts import VIRTUAL_ROLES, Adapter, Part


class Memory(Protocol):
    """Where keys and values join the base's own (`models/memory.py`); the core only says whose."""

    def enter(self, parts: Sequence[Part | None], bare: Callable[[], AbstractContextManager[None]]) -> None:
        """From now on row i, or every row if there is one part, attends to what parts[i] holds.

        Within `with bare():` the base runs without adapters.
        """
        ...

    def leave(self) -> None: ...

    def aside(self) -> AbstractContextManager[None]:
        """Within the block every row attends to its own text alone."""
        ...

    def install(self) -> None: ...

    def uninstall(self) -> None: ...


@dataclass(frozen=True)
class Use:
    """What one part does at one target, and the rows it serves; None serves every row."""

    act: Callable[..., Tensor]
    rows: Tensor | None


@dataclass(frozen=True)
class Route:
    """Which adapter each row of a batch uses, resolved to what happens at each module."""

    names: tuple[str | None, ...]
    before: Mapping[str, list[Use]]
    after: Mapping[str, list[Use]]
    memory: tuple[Part | None, ...] = ()
    full: Part | None = None

    def edit(self, uses: Iterable[Use], *tensors: Tensor) -> Tensor:
        """The last of `tensors` as `uses` change it, each on its own rows."""
        result = tensors[-1]
        for use in uses:
            if use.rows is None:
                result = use.act(*tensors[:-1], result)
            else:
                times = repeats(result.shape[0], len(self.names))
                rows = (use.rows[:, None] * times + torch.arange(times)).flatten().to(result.device)
                mine = [tensor[rows] for tensor in (*tensors[:-1], result)]
                result = result.index_copy(0, rows, use.act(*mine))
        return result


def repeats(batch: int, named: int) -> int:
    """How many rows of a batch each row that `use` named has become: beam search repeats each one in place.

    Raises ValueError if the batch is not a multiple of the rows that were named.
    """
    times, rest = divmod(batch, named)
    if rest or not times:
        raise ValueError(
            f"the batch has {batch} rows, but `use` named an adapter for each of {named}: "
            "give one name a row, or a single name for all rows"
        )
    return times


def resolve(names: tuple[str | None, ...], adapters: Mapping[str, Adapter]) -> Route:
    """The route of a batch whose rows use the adapters of these names; a single name counts for every row.

    Raises ValueError where a full copy of the weights would share a batch.
    """
    alone = len(set(names)) == 1
    before: dict[str, list[Use]] = defaultdict(list)
    after: dict[str, list[Use]] = defaultdict(list)
    memory: dict[str, Part] = {}
    full = None
    for name, adapter in adapters.items():
        rows = None if alone else torch.tensor([i for i, each in enumerate(names) if each == name])
        for path, part in adapter.parts.items():
            target = adapter.targets[path]
            if target.role == "base":
                if not alone:
                    raise ValueError(f"{name!r} is a full copy of the weights: it cannot share a batch with others")
                full = part
            elif target.role in VIRTUAL_ROLES:
                memory[name] = part
            else:
                if type(part).before is not Part.before:
                    before[target.key].append(Use(part.before, rows))
                if type(part).forward is not Part.forward:
                    after[target.key].append(Use(part, rows))
    shared = tuple(memory.values()) if alone else tuple(memory.get(name or "") for name in names)
    return Route(names, dict(before), dict(after), shared if memory else (), full)
