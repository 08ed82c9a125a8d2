"""Attention of single tokens to the blocks of their texts."""

from __future__ import annotations

from typing import Any

import numpy as np

from halka.engine.llama.kernels.blocks import add_values, fetch, highest_of_16, scores
from halka.kernels.arrays import room
from halka.kernels.compiled import kernel
from halka.kernels.numbers import ZERO, exp, narrowed
from halka.kernels.threads import meet, parallel, part
from halka.models.attention.paged import ALWAYS, SIZE

LOWEST = np.float32(-3e38)
SPAN = 16  # blocks whose scores are known before their values are weighed


@kernel
def _visible(blocks, counts, begins, position, window, seen_M3):
    """Which blocks a token sees something of, with the first place in each and the one after the last; how many."""
    count = 0
    for m in range(blocks.shape[0]):
        low, high = 0, counts[m]
        if begins[m] != ALWAYS:
            high = min(high, position - begins[m] + 1)
            if window > 0:
                low = max(low, position - begins[m] - window + 1)
        if low < high:
            seen_M3[count, 0], seen_M3[count, 1], seen_M3[count, 2] = blocks[m], low, high
            count += 1
    return count


@kernel
def attend_blocks(q_QW, kv, layer, blocks, counts, begins, position, window, scale, sums_QW, state_Q2):
    """Softmax over what a token sees of these blocks, SPAN of them at a time, while the next block is fetched.

    scale  more than 0    sums  (Q, W) fp32, weighted values    state  (Q, 2) the highest score, and the sum of weights
    """
    (queries, width), heads = q_QW.shape, kv.shape[3]
    groups = queries // heads
    seen, weights = room((SPAN, 3), np.int64), room((groups, SPAN * SIZE), np.float32)
    for g in range(queries):
        state_Q2[g, 0], state_Q2[g, 1] = LOWEST, ZERO
        for i in range(width):
            sums_QW[g, i] = ZERO
    for start in range(0, blocks.shape[0], SPAN):
        span = slice(start, start + SPAN)
        count = _visible(blocks[span], counts[span], begins[span], position, window, seen)
        for head in range(heads if count > 0 else 0):
            first, last = head * groups, (head + 1) * groups
            for b in range(count):
                block, low, high = seen[b]
                if b + 1 < count:
                    fetch(kv[seen[b + 1, 0], layer, 0, head].ctypes.data, SIZE * width * kv.itemsize)
                for g in range(groups):
                    own = weights[g, b * SIZE : (b + 1) * SIZE]
                    scores(q_QW[first + g], kv[block, layer, 0, head], own)
                    if high - low < SIZE:
                        own[:low] = LOWEST
                        own[high:] = LOWEST
            for g in range(groups):
                own, sums, state = weights[g, : count * SIZE], sums_QW[first + g], state_Q2[first + g]
                highest, total = state[0], ZERO
                for b in range(count):
                    highest = max(highest, scale * highest_of_16(own[b * SIZE :].ctypes.data))
                for i in range(own.shape[0]):
                    own[i] = exp(scale * own[i] - highest)
                    total += own[i]
                shrink = exp(state[0] - highest)
                state[0], state[1] = highest, state[1] * shrink + total
                for i in range(width):
                    sums[i] *= shrink
            for b in range(count):
                if b + 1 < count:
                    fetch(kv[seen[b + 1, 0], layer, 1, head].ctypes.data, SIZE * width * kv.itemsize)
                add_values(weights[:, b * SIZE :], kv[seen[b, 0], layer, 1, head], sums_QW[first:last])


@kernel
def gathered(sums_PQW, state_PQ2, like, out):
    """The softmax over all pieces P of a text, of which each was attended to by itself; out (Q·W,)."""
    pieces, queries, width = sums_PQW.shape
    shares, total_W = room(pieces, np.float32), room(width, np.float32)
    for g in range(queries):
        highest, total = LOWEST, ZERO
        for piece in range(pieces):
            highest = max(highest, state_PQ2[piece, g, 0])
        for piece in range(pieces):
            shares[piece] = exp(state_PQ2[piece, g, 0] - highest)
            total += shares[piece] * state_PQ2[piece, g, 1]
        total_W[:] = ZERO
        for piece in range(pieces):
            share, sums = shares[piece] / total, sums_PQW[piece, g]
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
    pieces = sums.shape[1]
    for task in range(*part(places.shape[0] * pieces, thread, threads)):
        t, piece = task // pieces, task % pieces
        n, text = places[t], texts[t]
        low, high = part(tables.shape[1], piece, pieces)
        attend_blocks(
            q_NQW[n],
            kv,
            layer,
            tables[text, low:high],
            counts[text, low:high],
            begins[text, low:high],
            positions[n],
            window,
            scale,
            sums[t, piece],
            states[t, piece],
        )
    if pieces > 1:
        meet(gate, threads)
    for t in range(*part(places.shape[0], thread, threads)):
        gathered(sums[t], states[t], out_N, out_N[places[t]])


def partial_sums(texts: int, pieces: int, queries: int, width: int) -> tuple[Any, Any]:
    """Memory for what `attend` sums in pieces: with many rows or threads too much for a thread's stack."""
    return np.empty((texts, pieces, queries, width), np.float32), np.empty((texts, pieces, queries, 2), np.float32)


@kernel
def attend(
    threads, q_NQW, kv, layer, places, texts, tables, counts, begins, positions, window, scale, sums, states, out_N
):
    """grouped_products(q, *KVBlocks.read(layer, strips), PagedGroup.mask, scale) for texts of one token.

    places  (T,) the token's place in the line    texts  (T,) the number of its text, a row of the next three
    tables, counts, begins  (texts, M), as `PagedPlan` has them    positions  (N,)    window  0 where there is none
    sums, states  of `partial_sums`, with a text's blocks in pieces: more than one where texts are few and threads many
    """
    gate = room(1, np.int64)
    gate[0] = 0
    arguments = (q_NQW, kv, layer, places, texts, tables, counts, begins, positions, window, scale)
    parallel(_attend, threads, (*arguments, sums, states, out_N, gate))
