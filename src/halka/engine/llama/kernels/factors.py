"""A row's own factors on what linear layers read or return, read where their adapter keeps them.

`table` (L, S + 2, 1) int64 holds their addresses, or 0: of the S layers' outputs, then of the inputs of o and down.
"""

from __future__ import annotations

from halka.kernels.arrays import stored
from halka.kernels.compiled import kernel
from halka.kernels.numbers import narrowed, widened
from halka.kernels.threads import parallel, part


@kernel
def scale_slots(like, slots, widths, begin, end, y_O):
    """y *= l from begin to end; y holds what several slots scale, of these widths, side by side."""
    offset = 0
    for slot in range(widths.shape[0]):
        low, high = max(begin, offset), min(end, offset + widths[slot])
        if slots[slot, 0] != 0 and low < high:
            own = stored(slots[slot, 0], widths[slot], like)[low - offset : high - offset]
            y = y_O[low:high]
            for o in range(own.shape[0]):
                y[o] = narrowed(widened(y[o]) * widened(own[o]), y_O)
        offset += widths[slot]


@kernel
def _scale(thread, threads, y_NO, tables, places, owners, layer, first, widths):
    for one in range(*part(places.shape[0], thread, threads)):
        slots = tables[owners[one], layer, first : first + widths.shape[0]]
        scale_slots(y_NO, slots, widths, 0, y_NO.shape[1], y_NO[places[one]])


@kernel
def scale(threads, y_NO, tables, places, owners, layer, first, widths):
    """y[n] *= cat([l of each slot, or 1]) for the tokens n at these places.

    tables  (adapters, L, S + 2, 1)    places, owners  (T,) of tokens, and the adapter of each
    first   the first slot             widths          (slots,) of what they scale, which y has side by side
    """
    parallel(_scale, threads, (y_NO, tables, places, owners, layer, first, widths))
