"""Low-rank products of many tokens of one adapter, by pairs of bf16: `low_rank` has them for single tokens."""

from __future__ import annotations

import numpy as np

from halka.engine.llama.kernels.products import LANES, TILE, tile_of_two
from halka.kernels.arrays import room, stored
from halka.kernels.compiled import kernel
from halka.kernels.numbers import narrowed, widened
from halka.kernels.threads import parallel, part

TOKENS = 2 * LANES  # that are computed at once


@kernel
def _inner(x, A_RI, sums, inner_NR):
    """inner = F.linear(x, A), of as many tokens as are packed in x."""
    for low in range(0, A_RI.shape[0], TILE):
        rows = A_RI[low : low + TILE]
        tile_of_two(x.ctypes.data, rows.ctypes.data, rows.shape[0] - 1, A_RI.shape[1] // 2, sums.ctypes.data)
        for r in range(rows.shape[0]):
            for n in range(inner_NR.shape[0]):
                inner_NR[n, low + r] = narrowed(sums[r * TOKENS + n], inner_NR)


@kernel
def _add_outputs(inner_NR, B_RO, first, y_NO, start, low, high, packed, sums):
    """y[start : start + N, low:high] += inner @ B[:, first:], for as many outputs as tiles have lanes; R is even here.

    Rows are cut one by one: a compiler makes vectors of what it knows to lie side by side.
    """
    tokens, pairs, width = inner_NR.shape[0], inner_NR.shape[1] // 2, high - low
    for pair in range(pairs):
        even, own = B_RO[2 * pair, first : first + width], packed[pair * TOKENS : pair * TOKENS + width]
        if 2 * pair + 1 < B_RO.shape[0]:
            odd = B_RO[2 * pair + 1, first : first + width]
            for o in range(width):
                own[o] = np.uint32(even[o]) | np.uint32(np.uint32(odd[o]) << np.uint32(16))
        else:
            for o in range(width):
                own[o] = np.uint32(even[o])
    for begin in range(0, tokens, TILE):
        rows = inner_NR[begin : begin + TILE]
        tile_of_two(packed.ctypes.data, rows.ctypes.data, rows.shape[0] - 1, pairs, sums.ctypes.data)
        for n in range(rows.shape[0]):
            y, added = y_NO[start + begin + n, low:high], sums[n * TOKENS : n * TOKENS + width]
            for o in range(width):
                y[o] = narrowed(widened(y[o]) + added[o], y_NO)


@kernel
def _add_low_rank_chunks(thread, threads, x_NI, y_NO, tables, owners, starts, ends, layer, first, widths, pieces):
    most = 0
    for slot in range(first, first + widths.shape[0]):
        for one in range(owners.shape[0]):
            most = max(most, tables[owners[one], layer, slot, 2])
    rank, pairs, total = (most + 1) // 2 * 2, x_NI.shape[1] // 2, y_NO.shape[1]
    x, packed = room(pairs * TOKENS, np.uint32), room(rank // 2 * TOKENS, np.uint32)
    sums, inner = room(TILE * TOKENS, np.float32), room(TOKENS * rank, np.uint16)
    for task in range(*part(starts.shape[0] * pieces, thread, threads)):
        one, (begin, end) = task // pieces, part(total, task % pieces, pieces)
        tokens, slots, offset = ends[one] - starts[one], tables[owners[one], layer, first:], 0
        for n in range(tokens):
            own = x_NI[starts[one] + n].view(np.uint32)
            for pair in range(pairs):
                x[pair * TOKENS + n] = own[pair]
        for slot in range(widths.shape[0]):
            width, own_rank = widths[slot], slots[slot, 2]
            even = (own_rank + 1) // 2 * 2
            low, high = max(begin, offset), min(end, offset + width)
            if own_rank > 0 and low < high:
                inner_NR = stored(inner.ctypes.data, (tokens, even), inner)
                inner_NR[:, even - 1] = 0
                _inner(x, stored(slots[slot, 0], (own_rank, x_NI.shape[1]), x_NI), sums, inner_NR)
                B_RO = stored(slots[slot, 1], (own_rank, width), x_NI)
                for o in range(low, high, TOKENS):
                    stop = min(o + TOKENS, high)
                    _add_outputs(inner_NR, B_RO, o - offset, y_NO, starts[one], o, stop, packed, sums)
            offset += width


@kernel
def add_low_rank_chunks(threads, x_NI, y_NO, tables, owners, starts, ends, layer, first, widths, pieces):
    """y[start:end] += cat([s·B(A x[start:end]) of each slot]), all bf16, of chunks of at most TOKENS tokens.

    I is at most WIDEST.

    tables  (adapters, L, S, 3), as `low_rank` has them    owners  (chunks,) the adapter of each
    first   the first slot, of `widths` (slots,)           pieces  of a chunk's outputs, one a task
    """
    arguments = (x_NI, y_NO, tables, owners, starts, ends, layer, first, widths, pieces)
    parallel(_add_low_rank_chunks, threads, arguments)
