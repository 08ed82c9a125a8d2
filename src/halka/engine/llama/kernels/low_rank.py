"""A row's own low-rank products, read where their adapter keeps them.

`table` (L, S, 3) int64 holds the address of A (R, I), that of s·Bᵀ (R, O), and R, which is 0 where there is none.
"""

from __future__ import annotations

import numpy as np

from halka.kernels.arrays import room, stored
from halka.kernels.compiled import kernel
from halka.kernels.numbers import dot, narrowed, widen, widened
from halka.kernels.threads import parallel, part


@kernel
def add_slots(like, x_I, slots, widths, begin, end, out):
    """out += s·B(A x) at the outputs from begin to end: those of several layers, of these widths, side by side."""
    offset = 0
    for slot in range(widths.shape[0]):
        width, rank = widths[slot], slots[slot, 2]
        low, high = max(begin, offset), min(end, offset + width)
        if rank > 0 and low < high:
            A_RI = stored(slots[slot, 0], (rank, x_I.shape[0]), like)
            B_RO = stored(slots[slot, 1], (rank, width), like)
            own = out[low - begin : high - begin]
            for r in range(rank):
                inner = dot(A_RI[r], x_I)
                row = B_RO[r, low - offset : high - offset]
                for o in range(own.shape[0]):
                    own[o] += inner * widened(row[o])
        offset += width


@kernel
def _add_low_rank(thread, threads, x_NI, y_NO, tables, places, owners, layer, first, widths, pieces):
    width = y_NO.shape[1]
    low, high = part(places.shape[0] * pieces, thread, threads)
    x, room_for_added = room(x_NI.shape[1], np.float32), room(width // pieces + 1, np.float32)
    for task in range(low, high):
        one, piece = task // pieces, task % pieces
        begin, end = part(width, piece, pieces)
        added = room_for_added[: end - begin]
        added[:] = 0
        widen(x_NI[places[one]], x)
        slots = tables[owners[one], layer, first : first + widths.shape[0]]
        add_slots(y_NO, x, slots, widths, begin, end, added)
        y = y_NO[places[one], begin:end]
        for o in range(end - begin):
            y[o] = narrowed(widened(y[o]) + added[o], y_NO)


@kernel
def add_low_rank(threads, x_NI, y_NO, tables, places, owners, layer, first, widths, pieces):
    """y[n] += cat([s·B(A x[n]) of each slot]) for the tokens n at these places.

    tables  (adapters, L, S, 3)    places, owners  (T,) of tokens, and the adapter of each
    first   the first slot         widths  (slots,) of their outputs, which y has side by side
    pieces  of each token's outputs, one a task: more than one where tokens are fewer than threads
    """
    parallel(_add_low_rank, threads, (x_NI, y_NO, tables, places, owners, layer, first, widths, pieces))
