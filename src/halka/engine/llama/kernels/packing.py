"""An adapter's low-rank products, brought to where and how `low_rank` reads them: once, when it is first used."""

from __future__ import annotations

import numpy as np

from halka.kernels.arrays import room, stored
from halka.kernels.compiled import kernel
from halka.kernels.numbers import narrowed, widened
from halka.kernels.threads import parallel, part


@kernel
def _pack_low_rank(thread, threads, factors, widths, scales, slots, like):
    most = 0
    for one in range(slots.shape[0]):
        most = max(most, slots[one, 2])
    row = room(most, np.float32)
    for one in range(*part(slots.shape[0], thread, threads)):
        rank, inputs, outputs, scale = slots[one, 2], widths[one, 0], widths[one, 1], scales[one]
        A, B_OR = stored(factors[one, 0], rank * inputs, scales), stored(factors[one, 1], (outputs, rank), scales)
        own_A, own_B_RO = stored(slots[one, 0], rank * inputs, like), stored(slots[one, 1], (rank, outputs), like)
        for i in range(rank * inputs):
            own_A[i] = narrowed(A[i], like)
        for o in range(outputs):
            its = B_OR[o]
            for r in range(rank):
                row[r] = widened(narrowed(its[r], like)) * scale
            for r in range(rank):
                own_B_RO[r, o] = narrowed(row[r], like)


@kernel
def pack_low_rank(threads, factors, widths, scales, slots, like):
    """At the addresses of each slot: A.to(dtype), (s * B.to(dtype)).T; dtype is that of `like`.

    factors (T, 2) int64, the addresses of A (R, I) and B (O, R), fp32    widths (T, 2)  I and O
    scales  (T,) fp32                                                     slots  (T, 3)  of `low_rank`'s table
    """
    parallel(_pack_low_rank, threads, (factors, widths, scales, slots, like))
