"""Attention of single tokens to the blocks of their texts."""

from __future__ import annotations

from typing import Any

import numpy as np

from halka.engine.llama.kernels.arrays import room
from halka.engine.llama.kernels.compiled import kernel
from halka.engine.llama.kernels.numbers import ZERO, dot, exp, narrowed, widen, widened
from halka.engine.llama.kernels.threads import meet, parallel, part
from halka.models.attention.paged import ALWAYS, SIZE

LOWEST = np.float32(-3e38)


@kernel
def attend_blocks(q_GW, kv, layer, head, blocks, counts, begins, position, window, scale, sums_GW, state_G2):
    """Softmax over what a token sees of these blocks, with its heads that share one key/value head.

    sums  (G, W) fp32, weighted values    state  (G, 2) the highest score, and the sum of weights
    """
    groups, width = q_GW.shape
    q, scores = room((groups, width), np.float32), room((groups, SIZE), np.float32)
    for g in range(groups):
        widen(q_GW[g], q[g])
        state_G2[g, 0], state_G2[g, 1] = LOWEST, ZERO
        for i in range(width):
            q[g, i] *= scale
            sums_GW[g, i] = ZERO
    for m in range(blocks.shape[0]):
        low, high = 0, counts[m]
        if begins[m] != ALWAYS:
            high = min(high, position - begins[m] + 1)
            if window > 0:
                low = max(low, position - begins[m] - window + 1)
        if low >= high:
            continue
        keys, values = kv[blocks[m], layer, 0, head], kv[blocks[m], layer, 1, head]
        for j in range(low, high):
            for g in range(groups):
                scores[g, j] = dot(keys[j], q[g])
        for g in range(groups):
            highest, own, sums = state_G2[g, 0], scores[g], sums_GW[g]
            for j in range(low, high):
                highest = max(highest, own[j])
            shrink, total = exp(state_G2[g, 0] - highest), ZERO
            for j in range(SIZE):  # all of a block, which a compiler then makes vectors of
                weight = exp(own[j] - highest)
                own[j] = weight if low <= j < high else ZERO
                total += own[j]
            state_G2[g, 0], state_G2[g, 1] = highest, state_G2[g, 1] * shrink + total
            for i in range(width):
                sums[i] *= shrink
            for j in range(low, high):
                weight, value = own[j], values[j]
                for i in range(width):
                    sums[i] += weight * widened(value[i])


@kernel
def gathered(sums_PGW, state_PG2, like, out):
    """The softmax over all pieces P of a text, of which each was attended to by itself; out (G·W,)."""
    pieces, groups, width = sums_PGW.shape
    shares, total_W = room(pieces, np.float32), room(width, np.float32)
    for g in range(groups):
        highest, total = LOWEST, ZERO
        for piece in range(pieces):
            highest = max(highest, state_PG2[piece, g, 0])
        for piece in range(pieces):
            shares[piece] = exp(state_PG2[piece, g, 0] - highest)
            total += shares[piece] * state_PG2[piece, g, 1]
        total_W[:] = ZERO
        for piece in range(pieces):
            share, sums = shares[piece] / total, sums_PGW[piece, g]
            for i in range(width):
                total_W[i] += share * sums[i]
        own = out[g * width : (g + 1) * width]
        for i in range(width):
            own[i] = narrowed(total_W[i], like)


@kernel
def _attend(
    thread, threads, q_NQW, kv, layer, places, texts, tables, counts, begins, positions, window, scale, sums, states,
    out_N, gate,
):  # fmt: skip
    heads, groups, width = kv.shape[3], q_NQW.shape[1] // kv.shape[3], q_NQW.shape[2]
    pieces = sums.shape[2]
    for task in range(*part(places.shape[0] * heads * pieces, thread, threads)):
        one, piece = task // pieces, task % pieces
        t, head = one // heads, one % heads
        n, text = places[t], texts[t]
        low, high = part(tables.shape[1], piece, pieces)
        attend_blocks(
            q_NQW[n, head * groups : (head + 1) * groups],
            kv,
            layer,
            head,
            tables[text, low:high],
            counts[text, low:high],
            begins[text, low:high],
            positions[n],
            window,
            scale,
            sums[t, head, piece],
            states[t, head, piece],
        )
    if pieces > 1:
        meet(gate, threads)
    for one in range(*part(places.shape[0] * heads, thread, threads)):
        t, head = one // heads, one % heads
        own = out_N[places[t], head * groups * width : (head + 1) * groups * width]
        gathered(sums[t, head], states[t, head], out_N, own)


def partial_sums(texts: int, pieces: int, kv: Any, queries: int) -> tuple[Any, Any]:
    """Memory for what `attend` sums in pieces: with many rows or threads too much for a thread's stack."""
    heads, width = kv.shape[3], kv.shape[5]
    shape = texts, heads, pieces, queries // heads
    return np.empty((*shape, width), np.float32), np.empty((*shape, 2), np.float32)


@kernel
def attend(
    threads, q_NQW, kv, layer, places, texts, tables, counts, begins, positions, window, scale, sums, states, out_N
):
    """grouped_products(q, *KVBlocks.read(layer, tables), PagedPlan.mask(window), scale) for texts of one token.

    places  (T,) the token's place in the line    texts  (T,) the number of its text, a row of the next three
    tables, counts, begins  (texts, M), as `PagedPlan` has them    positions  (N,)    window  0 where there is none
    sums, states  of `partial_sums`, with a text's blocks in pieces: more than one where texts are few and threads many
    """
    gate = room(1, np.int64)
    gate[0] = 0
    arguments = (q_NQW, kv, layer, places, texts, tables, counts, begins, positions, window, scale)
    parallel(_attend, threads, (*arguments, sums, states, out_N, gate))
