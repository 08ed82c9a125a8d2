"""`RowAdapter`: one adapter as a step needs it, its parts where kernels read them."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from itertools import accumulate, groupby, pairwise
from operator import itemgetter
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from halka.core import Adapter, ModulePart, Part, VirtualPart
from halka.core.routing import Place
from halka.engine.llama.weights import PLACES, PRODUCTS, ROLES
from halka.kernels.shared import array_of
from halka.methods.bottleneck import ACTIVATIONS, BottleneckPart
from halka.methods.ia3 import InputScale, OutputScale
from halka.methods.lora import LoRAPart, padded_rank
from halka.util import huge_pages

Slot = tuple[int, int]  # a layer, and a row of a table
PRODUCT_OF = [name for name, roles in PRODUCTS.items() for _ in roles]  # by slot
FIRST_SUBLAYER = len(ROLES) + 2  # of PLACES
COPIED = LoRAPart, BottleneckPart, OutputScale, InputScale  # parts that a `RowAdapter` has copies of
READS = ("output", "input", "residual", "sum")
ACTIVATION_NAMES = (*ACTIVATIONS,)


class Tables(NamedTuple):
    """Where an adapter's parts are, for the kernels, whose files explain the columns: the first is 0 where none is."""

    low_rank: np.ndarray
    bottlenecks: np.ndarray
    factors: np.ndarray

    @classmethod
    def empty(cls, layers: int) -> Tables:
        sizes = (len(ROLES), 3), (len(PLACES) - FIRST_SUBLAYER, 7), (FIRST_SUBLAYER, 1)
        return cls(*(np.zeros((layers, *size), np.int64) for size in sizes))


class LowRank(NamedTuple):
    """What an adapter adds to a product: s·B(A x) at some of its linear layers.

    A        (ΣR, I) one below the other
    outputs  for each its slot, its columns of A x, and s·Bᵀ (R, O)
    """

    A: Tensor
    outputs: list[tuple[int, slice, Tensor]]


def contents(adapter: Adapter) -> tuple[list[Tensor], Hashable]:
    """The parameters that an adapter has now, and what else decides what its `RowAdapter` holds."""
    settings: list[Hashable] = []
    for part in adapter.parts.values():
        own = part.scale if isinstance(part, LoRAPart) else part.method if isinstance(part, BottleneckPart) else None
        settings.append((part, part.training, own))
    return [tensor for part in adapter.parts.values() for tensor in _tensors(part)], tuple(settings)


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    """As `module.parameters()`, in a tenth of its time."""
    yield from (tensor for tensor in module._parameters.values() if tensor is not None)
    for child in module._modules.values():
        if child is not None:
            yield from _tensors(child)


def elements_of(part: Part, dtype: torch.dtype) -> int:
    """How many elements a `RowAdapter` copies of a part, the padding of LoRA's R included."""
    if type(part) is LoRAPart:
        return padded_rank(len(part.lora_A), dtype) * (part.lora_A.shape[1] + len(part.lora_B))
    return sum(tensor.numel() for tensor in part.parameters()) if type(part) in COPIED else 0


class RowAdapter:
    """An adapter's parts, each in one of these.

    tables       for the kernels
    products     LoRA for torch, by layer and the product's name, with R padded
    bottlenecks  by slot, with their tensors, for `edit_output`
    others       those that no kernel computes, by their places
    misplaced    a place that a step does not pass through, or None
    """

    def __init__(self, adapter: Adapter, places: Mapping[Place, Slot], layers: int, dtype: torch.dtype):
        self.tables = Tables.empty(layers)
        self.products: dict[tuple[int, str], LowRank] = {}
        self.bottlenecks: dict[Slot, tuple[BottleneckPart, tuple[Tensor, ...]]] = {}
        self.others: dict[Place, ModulePart] = {}
        self.misplaced: str | None = None
        loras: list[tuple[Slot, LoRAPart]] = []
        bottlenecks: list[tuple[Slot, BottleneckPart]] = []
        scales: list[tuple[Slot, OutputScale | InputScale]] = []
        for path, part in adapter.parts.items():
            target = adapter.targets[path]
            if not isinstance(part, ModulePart) or (target.key, part.edits) not in places:
                if not isinstance(part, VirtualPart) or target.role == "memory.gated":
                    self.misplaced = f"{adapter.method.name} at {target.role}"
                continue
            slot = places[target.key, part.edits]
            if type(part) is LoRAPart and not (part.training and part.dropout):
                loras.append((slot, part))
            elif type(part) is BottleneckPart and not (part.training and part.method.dropout):
                bottlenecks.append((slot, part))
            elif type(part) is OutputScale or type(part) is InputScale:
                scales.append((slot, part))
            else:
                self.others[target.key, part.edits] = part
        if self.misplaced is None:
            self._pack(loras, dtype)
            self._pack_bottlenecks(bottlenecks, dtype)
            self._factors = _packed([part.ia3_l for _, part in scales], dtype)
            for (slot, _), own in zip(scales, self._factors, strict=True):
                self.tables.factors[slot] = own.data_ptr()

    def _pack(self, loras: Sequence[tuple[Slot, LoRAPart]], dtype: torch.dtype) -> None:
        """Copy all products into one storage, B transposed: a row's sum runs along its outputs."""
        from halka.engine.llama import kernels

        own = [
            (slot, part.lora_A.float().contiguous(), part.lora_B.float().contiguous(), part.scale)
            for slot, part in sorted(loras, key=itemgetter(0))
        ]
        self._storage = huge_pages.empty(sum(elements_of(part, dtype) for _, part in loras), dtype=dtype)
        offset = 0

        def room(*shape: int) -> Tensor:
            nonlocal offset
            offset += math.prod(shape)
            return self._storage[offset - math.prod(shape) : offset].view(shape)

        for (layer, name), product in groupby(own, lambda lora: (lora[0][0], PRODUCT_OF[lora[0][1]])):
            slots, As, Bs, _ = zip(*product, strict=True)
            ranks = [padded_rank(len(A), dtype) for A in As]
            A = room(sum(ranks), As[0].shape[1])
            columns = [slice(*ends) for ends in pairwise(accumulate(ranks, initial=0))]
            transposed = [room(rank, len(B)) for rank, B in zip(ranks, Bs, strict=True)]
            numbers = [slot for _, slot in slots]
            self.products[layer, name] = LowRank(A, [*zip(numbers, columns, transposed, strict=True)])
            for slot, its, B_RO, master in zip(slots, columns, transposed, As, strict=True):
                rank, A_RI = len(master), A[its]
                self.tables.low_rank[slot] = A_RI.data_ptr(), B_RO.data_ptr(), rank
                for padding in (A_RI[rank:], B_RO[rank:]) if rank < len(A_RI) else ():
                    padding.zero_()
        if own:
            kernels.pack_low_rank(
                torch.get_num_threads(),
                np.array([(A.data_ptr(), B.data_ptr()) for _, A, B, _ in own]),
                np.array([(A.shape[1], len(B)) for _, A, B, _ in own]),
                np.array([scale for *_, scale in own], np.float32),
                np.array([self.tables.low_rank[slot] for slot, *_ in own]),
                array_of(self._storage),
            )

    def _pack_bottlenecks(self, parts: Sequence[tuple[Slot, BottleneckPart]], dtype: torch.dtype) -> None:
        """Copy all matrices into one storage, those of outputs transposed: a row's sum runs along them, too."""
        own = [part.tensors(dtype) for _, part in parts]
        matrices = _packed([matrix for down, _, up, _ in own for matrix in (down, up.mT)], dtype)
        biases = _packed([bias for _, *both in own for bias in both[::2]], dtype)
        packed = zip(matrices[::2], biases[::2], matrices[1::2], biases[1::2], strict=True)
        for ((layer, place), part), tensors in zip(parts, packed, strict=True):
            slot, method = (layer, place - FIRST_SUBLAYER), part.method
            kind = READS.index(method.reads), ACTIVATION_NAMES.index(method.activation)
            addresses = [tensor.data_ptr() for tensor in tensors]
            self.tables.bottlenecks[slot] = *addresses, part.down.out_features, *kind
            D_RI, bias_R, U_RO, bias_O = tensors
            self.bottlenecks[slot] = part, (D_RI, bias_R, U_RO.mT, bias_O)


def _packed(tensors: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Copies of these, one after another in one storage."""
    sizes = [tensor.numel() for tensor in tensors]
    rooms = huge_pages.empty(sum(sizes), dtype=dtype).split(sizes)
    return [room.view(tensor.shape).copy_(tensor) for room, tensor in zip(rooms, tensors, strict=True)]
