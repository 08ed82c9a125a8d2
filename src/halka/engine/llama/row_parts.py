"""`RowParts`: what the parts of a line's rows do around a layer's products.

    N tokens of the line   I, O a product's widths   D hidden width

Short runs, and factors on any, are computed by kernels; low-rank products of longer runs by kernels or by torch,
bottlenecks by their own parts; parts of other kinds by the core's edits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from halka.engine.llama import kernels
from halka.engine.llama.line_adapters import LineAdapters, Table
from halka.engine.llama.weights import PRODUCTS, ROLES, LlamaLayer
from halka.kernels.shared import Shared

FEW = 4  # tokens of a run up to which its low-rank products are computed one by one
SHORT = 32  # tokens of a run up to which kernels compute its bottlenecks; torch's products are faster above
CUT = kernels.TOKENS  # tokens of a longer run whose low-rank products a kernel computes at once
FIRST = {name: ROLES.index(roles[0]) for name, roles in PRODUCTS.items()}  # of a product's slots
INPUTS = {"o": len(ROLES), "down": len(ROLES) + 1}  # the slots of factors on what a product reads
SUBLAYERS = {"o": ("attn", 0), "down": ("mlp", 2)}  # that a product ends, and the first of its bottlenecks' slots


class RowParts:
    """The parts of `adapters`, whose runs have these lengths."""

    def __init__(
        self, adapters: LineAdapters, runs: Sequence[int], h: Shared, residual: Shared, threads: int, pairs: bool
    ):
        """Arguments:
        h, residual  (N, D) what a sublayer reads, and what its output is added to
        pairs        kernels compute the low-rank products of long runs
        """
        self._adapters, self._runs, self._threads = adapters, runs, threads
        self._h, self._residual = h, residual
        self._low_rank, self._bottlenecks, self._factors = adapters.tables
        self._few = self._tokens(self._low_rank, FEW)
        self._short = self._tokens(self._bottlenecks, SHORT)
        self._scaled = self._tokens(self._factors, sum(runs))
        starts = np.cumsum([0, *runs]).tolist()
        long = [
            (which, start, start + run)
            for which, run, start in zip(adapters.which, runs, starts, strict=False)
            if run > FEW and which >= 0
        ]
        cut = [
            (which, first, min(first + CUT, end))
            for which, start, end in long
            if pairs and self._low_rank.owners[which]
            for first in range(start, end, CUT)
        ]
        self._long = [(adapters.distinct[which], slice(*ends)) for which, *ends in long]
        self._cuts = tuple(np.array(cut).T.copy()) if cut else None
        self._pieces, self._pieces_of_cuts = pieces_of(len(self._few[0]), threads), pieces_of(len(cut), threads)

    def _tokens(self, table: Table, most: int) -> tuple[Any, Any]:
        """The places of tokens whose adapters have parts in the table, in runs of at most so many, and the adapters."""
        which = [
            number if number >= 0 and run <= most and table.owners[number] else -1
            for number, run in zip(self._adapters.which, self._runs, strict=True)
        ]
        owners = np.repeat(np.array(which), self._runs)
        places = np.flatnonzero(owners >= 0)
        return places, owners[places]

    def edit_input(self, number: int, layer: LlamaLayer, name: str, x: Shared) -> None:
        """Edit what a product of the layer of this number reads, x (N, I)."""
        if name not in INPUTS or not self._adapters.distinct:
            return
        self._scale(number, INPUTS[name], [x.tensor.shape[1]], x)
        if (edits := self._adapters.edits.get((layer.keys[PRODUCTS[name][0]], "input"))) is not None:
            x.tensor.copy_(edits.edit(self._runs, x.tensor))

    def edit_output(self, number: int, layer: LlamaLayer, name: str, x: Shared, y: Shared) -> None:
        """Edit what it makes of x, y (N, O), then its sublayer's output, if it is that."""
        if not self._adapters.distinct:
            return
        widths, first = layer.products[name].widths, FIRST[name]
        if any(self._low_rank.slots[number][first : first + len(widths)]):
            self._add_low_rank(number, name, widths, x, y)
        self._scale(number, first, widths, y)
        if self._adapters.edits:
            for role, output in zip(PRODUCTS[name], y.tensor.split(widths, dim=1), strict=True):
                self._edit(layer.keys[role], x.tensor, output)
        if name in SUBLAYERS:
            sublayer, slot = SUBLAYERS[name]
            self._add_bottlenecks(number, slot, y)
            self._edit(layer.keys[sublayer], self._h.tensor, y.tensor)
            self._add_bottlenecks(number, slot + 1, y)
            self._edit(layer.keys[f"{sublayer}.residual"], self._residual.tensor, y.tensor)

    def _scale(self, number: int, first: int, widths: list[int], y: Shared) -> None:
        """Multiply y by the rows' factors of these slots, side by side."""
        if any(self._factors.slots[number][first : first + len(widths)]):
            arguments = self._factors.array, *self._scaled, number, first, np.array(widths)
            kernels.scale(self._threads, y.array, *arguments)

    def _add_low_rank(self, number: int, name: str, widths: list[int], x: Shared, y: Shared) -> None:
        first = FIRST[name]
        of_slots = number, first, np.array(widths)
        if len(self._few[0]):
            arguments = self._low_rank.array, *self._few, *of_slots, self._pieces
            kernels.add_low_rank(self._threads, x.array, y.array, *arguments)
        if self._cuts is not None and x.tensor.shape[1] <= kernels.WIDEST:
            arguments = self._low_rank.array, *self._cuts, *of_slots, self._pieces_of_cuts
            kernels.add_low_rank_chunks(self._threads, x.array, y.array, *arguments)
            return
        for adapter, run in self._long:
            if (own := adapter.products.get((number, name))) is not None:
                inner, outputs = x.tensor[run] @ own.A.mT, y.tensor[run].split(widths, dim=1)
                for slot, columns, B_RO in own.outputs:
                    outputs[slot - first].addmm_(inner[:, columns], B_RO)

    def _add_bottlenecks(self, number: int, slot: int, y: Shared) -> None:
        h, residual = self._h, self._residual
        if not self._bottlenecks.slots[number][slot]:
            return
        if len(self._short[0]):
            arguments = self._bottlenecks.array, *self._short, number, slot
            kernels.add_bottlenecks(self._threads, h.array, residual.array, y.array, *arguments)
        for adapter, run in self._long:
            if run.stop - run.start > SHORT and (own := adapter.bottlenecks.get((number, slot))) is not None:
                part, tensors = own
                x = residual if part.method.reads in ("residual", "sum") else h
                y.tensor[run] = part.edit_output(x.tensor[run].to(y.tensor.dtype), y.tensor[run], *tensors)

    def _edit(self, key: str, x: Tensor, y: Tensor) -> None:
        """Let the parts there edit y (N, O), of an input x (N, I)."""
        edits = self._adapters.edits.get((key, "output"))
        if edits is not None:
            y.copy_(edits.edit(self._runs, x.to(y.dtype), y))


def pieces_of(tasks: int, threads: int) -> int:
    """Into how many pieces each task is cut, so that all threads have as much to do."""
    return 1 if tasks % threads == 0 or tasks >= 4 * threads else threads
