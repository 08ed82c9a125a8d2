"""What the adapters of a line do in a step: low-rank products for kernels, and all other parts by the core's edits."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import accumulate, groupby, pairwise
from operator import itemgetter
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from halka.core import AdaptedModel, Adapter, Edits, ModulePart, VirtualPart
from halka.engine.llama.weights import PRODUCTS
from halka.methods.lora import LoRAPart
from halka.util.cached import Cached

Place = tuple[str, Literal["input", "output"]]
PRODUCT_OF = [name for name, roles in PRODUCTS.items() for _ in roles]  # by slot


class LowRank(NamedTuple):
    """What an adapter adds to a product: s·B(A x) at some of its linear layers.

    A        (ΣR, I) one below the other
    outputs  for each its slot, its columns of A x, and s·Bᵀ (R, O)
    """

    A: Tensor
    outputs: list[tuple[int, slice, Tensor]]


class RowAdapter:
    """One adapter, as a step needs it.

    table     (L, S, 3) int64: the addresses of A (R, I) and s·Bᵀ (R, O), and R, for the kernels
    products  for torch, by layer and the product's name, with R padded
    others    parts that are no LoRA, by their places
    misplaced a place that a step does not pass through, or None
    """

    def __init__(self, adapter: Adapter, slots: Mapping[str, tuple[int, int]], places: Set[Place], dtype: torch.dtype):
        self.table = np.zeros(shape_of(slots), np.int64)
        self.products: dict[tuple[int, str], LowRank] = {}
        self.others: dict[Place, ModulePart] = {}
        self.misplaced: str | None = None
        loras: list[tuple[tuple[int, int], LoRAPart]] = []
        for path, part in adapter.parts.items():
            target = adapter.targets[path]
            if isinstance(part, ModulePart) and (target.key, part.edits) in places:
                if target.key in slots and type(part) is LoRAPart and not (part.training and part.dropout):
                    loras.append((slots[target.key], part))
                else:
                    self.others[target.key, part.edits] = part
            elif not isinstance(part, VirtualPart) or target.role == "memory.gated":
                self.misplaced = f"{adapter.method.name} at {target.role}"
        if self.misplaced is None:
            self._pack(loras, dtype)

    def _pack(self, loras: Sequence[tuple[tuple[int, int], LoRAPart]], dtype: torch.dtype) -> None:
        """Copy all products into one storage, B transposed: a row's sum runs along its outputs."""
        own: list[tuple[tuple[int, int], int, Tensor, Tensor]] = []
        for slot, part in sorted(loras, key=itemgetter(0)):
            A_RI, B_OR = part.tensors(dtype)
            own.append((slot, part.lora_A.shape[0], A_RI, B_OR))
        self._storage = torch.empty(sum(A.numel() + B.numel() for *_, A, B in own), dtype=dtype)
        offset = 0

        def room(*shape: int) -> Tensor:
            nonlocal offset
            offset += math.prod(shape)
            return self._storage[offset - math.prod(shape) : offset].view(shape)

        for (layer, name), product in groupby(own, lambda lora: (lora[0][0], PRODUCT_OF[lora[0][1]])):
            slots, ranks, As, Bs = zip(*product, strict=True)
            A = torch.cat(As, out=room(sum(map(len, As)), As[0].shape[1]))
            columns = [slice(*ends) for ends in pairwise(accumulate(map(len, As), initial=0))]
            transposed = [room(*B_OR.mT.shape).copy_(B_OR.mT) for B_OR in Bs]
            numbers = [slot for _, slot in slots]
            self.products[layer, name] = LowRank(A, [*zip(numbers, columns, transposed, strict=True)])
            for slot, rank, its, B_RO in zip(slots, ranks, columns, transposed, strict=True):
                self.table[slot] = A[its].data_ptr(), B_RO.data_ptr(), rank


def shape_of(slots: Mapping[str, tuple[int, int]]) -> tuple[int, int, int]:
    """(L, S, 3) of a table with these slots."""
    layers, numbers = zip(*slots.values(), strict=True)
    return max(layers) + 1, max(numbers) + 1, 3


@dataclass(frozen=True)
class Rows:
    """The adapters of a line's runs.

    names      as `Line.names`
    adapters   those that differ; empty without any
    which      for each run the number of its adapter, or -1
    tables     (adapters, L, S, 3) for the kernels
    low_rank   some run has a low-rank product
    edits      what parts of other kinds do, by their places
    misplaced  what keeps a step from computing the line, or None
    """

    names: tuple[str | None, ...]
    adapters: tuple[RowAdapter, ...]
    which: tuple[int, ...]
    tables: np.ndarray
    low_rank: bool
    edits: Mapping[Place, Edits]
    misplaced: str | None


class RowAdapters:
    """Makes `Rows` of names, and keeps each adapter's `RowAdapter` while it is in the model and unchanged."""

    def __init__(
        self, model: AdaptedModel, slots: Mapping[str, tuple[int, int]], places: Set[Place], dtype: torch.dtype
    ):
        """slots: target key -> (layer, slot), of linear layers. places: where a step lets parts act."""
        self._model = model
        self._arguments = slots, places, dtype
        self._bare = np.zeros((1, *shape_of(slots)), np.int64)
        self._kept: dict[str, tuple[Adapter, list[nn.Parameter], Cached[RowAdapter]]] = {}
        self._rows: Rows | None = None

    def rows(self, names: tuple[str | None, ...]) -> Rows:
        """What the adapters of these names do now; changes by hand count when the names change."""
        distinct = [name for name in dict.fromkeys(names) if name is not None]
        other = self._rows is None or self._rows.names != names
        own = tuple(self._adapter(name, look=other) for name in distinct)
        if self._rows is not None and not other and all(a is b for a, b in zip(own, self._rows.adapters, strict=True)):
            return self._rows
        self._rows = None
        number = {name: index for index, name in enumerate(distinct)}
        tables = np.stack([adapter.table for adapter in own]) if own else self._bare
        self._rows = Rows(
            names,
            own,
            tuple(-1 if name is None else number[name] for name in names),
            tables,
            bool(tables[..., 2].any()),
            self._edits(names, dict(zip(distinct, own, strict=True))),
            next((adapter.misplaced for adapter in own if adapter.misplaced), None),
        )
        return self._rows

    def _adapter(self, name: str, look: bool) -> RowAdapter:
        adapter = self._model.adapter(name)
        if name not in self._kept or self._kept[name][0] is not adapter:
            self._kept[name] = adapter, adapter.parameters(), Cached[RowAdapter]()
        _, parameters, cached = self._kept[name]
        return cached.get(parameters, lambda: RowAdapter(adapter, *self._arguments), look=look)

    @staticmethod
    def _edits(names: tuple[str | None, ...], adapters: Mapping[str, RowAdapter]) -> dict[Place, Edits]:
        rows = names[:1] if len(set(names)) == 1 else names  # one part for all of the line
        places = dict.fromkeys(place for adapter in adapters.values() for place in adapter.others)
        others: list[Mapping[Place, ModulePart]] = [{} if name is None else adapters[name].others for name in rows]
        return {place: Edits([parts.get(place) for parts in others]) for place in places}

    def forget(self) -> None:
        """Let go of adapters that have left the model, and of what edits computed with."""
        self._rows = None
        here = self._model.adapters
        self._kept = {name: kept for name, kept in self._kept.items() if here.get(name) is kept[0]}
