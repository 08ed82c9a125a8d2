"""What the adapters of a line do in a step: by kernels what these compute, and all other parts by the core's edits."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from halka.core import AdaptedModel, Adapter, Edits, ModulePart
from halka.core.routing import Place
from halka.engine.llama.row_adapter import RowAdapter, Slot, Tables, contents
from halka.util.cached import Cached, Changes


class Table:
    """Where all adapters' parts of one kind are.

    array   (adapters, L, slots, columns), as `Tables` has it
    owners  for each adapter, whether it has any
    slots   for each layer and slot, whether some adapter has one there
    """

    def __init__(self, arrays: Sequence[np.ndarray]):
        self.array = np.stack(arrays)
        present = self.array[..., 0] != 0
        self.owners, self.slots = present.any((1, 2)).tolist(), present.any(0).tolist()


def stacked(tables: Sequence[Tables]) -> tuple[Table, Table, Table]:
    """Of low-rank products, bottlenecks and factors."""
    low_rank, bottlenecks, factors = map(Table, zip(*tables, strict=True))
    return low_rank, bottlenecks, factors


@dataclass(frozen=True)
class LineAdapters:
    """The adapters of a line's runs.

    names      as `Line.names`
    distinct   those that differ; empty without any
    which      for each run the number of its adapter, or -1
    tables     `stacked` of theirs
    edits      what parts of other kinds do, by their places
    misplaced  what keeps a step from computing the line, or None
    """

    names: tuple[str | None, ...]
    distinct: tuple[RowAdapter, ...]
    which: tuple[int, ...]
    tables: tuple[Table, Table, Table]
    edits: Mapping[Place, Edits]
    misplaced: str | None


class KeptAdapter(NamedTuple):
    """An adapter, what it had at the last look, and what was made of that."""

    adapter: Adapter
    parameters: list[Tensor]
    settings: Hashable
    cached: Cached[RowAdapter]


class RowAdapters:
    """Makes `LineAdapters` of names, and keeps each adapter's `RowAdapter` while it is in the model and unchanged."""

    def __init__(self, model: AdaptedModel, places: Mapping[Place, Slot], layers: int, dtype: torch.dtype):
        """places: where a step lets parts act, each in its layer one of `weights.PLACES`."""
        self._model = model
        self._arguments = places, layers, dtype
        self._bare = Tables.empty(layers)
        self._kept: dict[str, KeptAdapter] = {}
        self._last: LineAdapters | None = None
        self._changes = Changes.count

    def of_line(self, names: tuple[str | None, ...]) -> LineAdapters:
        """What the adapters of a line's runs do now, by their names; changes by hand count when the names change."""
        distinct = [name for name in dict.fromkeys(names) if name is not None]
        other = self._last is None or self._last.names != names
        look, self._changes = other or self._changes != Changes.count, Changes.count
        own = tuple(self._adapter(name, look) for name in distinct)
        if self._last is not None and not other and all(a is b for a, b in zip(own, self._last.distinct, strict=True)):
            return self._last
        self._last = None
        number = {name: index for index, name in enumerate(distinct)}
        self._last = LineAdapters(
            names,
            own,
            tuple(-1 if name is None else number[name] for name in names),
            stacked([adapter.tables for adapter in own] or [self._bare]),
            self._edits(names, dict(zip(distinct, own, strict=True))),
            next((adapter.misplaced for adapter in own if adapter.misplaced), None),
        )
        return self._last

    def _adapter(self, name: str, look: bool) -> RowAdapter:
        adapter, kept = self._model.adapter(name), self._kept.get(name)
        if look or kept is None or kept.adapter is not adapter:
            parameters, settings = contents(adapter)
            replaced = kept is None or [*map(id, kept.parameters)] != [*map(id, parameters)]
            cached = Cached[RowAdapter]() if kept is None or replaced else kept.cached
            self._kept[name] = kept = KeptAdapter(adapter, parameters, settings, cached)
        return kept.cached.get(kept.parameters, lambda: RowAdapter(adapter, *self._arguments), kept.settings, look=look)

    @staticmethod
    def _edits(names: tuple[str | None, ...], adapters: Mapping[str, RowAdapter]) -> dict[Place, Edits]:
        rows = names[:1] if len(set(names)) == 1 else names  # one part for all of the line
        places = dict.fromkeys(place for adapter in adapters.values() for place in adapter.others)
        others: list[Mapping[Place, ModulePart]] = [{} if name is None else adapters[name].others for name in rows]
        return {place: Edits([parts.get(place) for parts in others]) for place in places}

    def forget(self) -> None:
        """Let go of adapters that have left the model, and of what edits computed with."""
        self._last = None
        here = self._model.adapters
        self._kept = {name: kept for name, kept in self._kept.items() if here.get(name) is kept.adapter}
