"""What stands around the two products by which tiles of queries attend to the blocks of their texts.

B tiles   T queries of the longest   M blocks, C filled slots that the largest sees
"""

from __future__ import annotations

from halka.engine.llama.kernels.attention import LOWEST
from halka.kernels.compiled import kernel
from halka.kernels.numbers import narrowed, widened
from halka.kernels.threads import parallel, part


@kernel
def _gather(thread, threads, q_NQW, kv, layer, starts, counts, tables, ends, scale, q_BHGTW, keys_BHCW, values_BHCW):
    heads, groups, longest, width = q_BHGTW.shape[1:]
    slots, most = values_BHCW.shape[2], tables.shape[1]
    for task in range(*part(starts.shape[0] * most, thread, threads)):
        b, m = task // most, task % most
        begin, end = ends[b, m - 1] if m > 0 else 0, ends[b, m]
        for head in range(heads):
            keys, values = kv[tables[b, m], layer, 0, head], kv[tables[b, m], layer, 1, head]
            for j in range(end - begin):
                key, value = keys_BHCW[b, head, begin + j], values_BHCW[b, head, begin + j]
                for i in range(width):
                    key[i] = keys[j, i]
                    value[i] = values[j, i]
            if m == most - 1:
                for j in range(end, slots):
                    keys_BHCW[b, head, j] = 0
                    values_BHCW[b, head, j] = 0
    for task in range(*part(starts.shape[0] * longest, thread, threads)):
        b, t = task // longest, task % longest
        for head in range(heads):
            for g in range(groups):
                own = q_BHGTW[b, head, g, t]
                if t < counts[b]:
                    q = q_NQW[starts[b] + t, head * groups + g]
                    for i in range(width):
                        own[i] = narrowed(widened(q[i]) * scale, q_NQW)
                else:
                    own[:] = 0


@kernel
def gather(threads, q_NQW, kv, layer, starts, counts, tables, ends, scale, q_BHGTW, keys_BHCW, values_BHCW):
    """q = q[places] · scale; keys, values = KVBlocks.read(layer, strips), of filled slots; all are 0 behind them.

    What memory had there may be no number, and torch's products on processors with AMX multiply the beginning of a
    row's neighbour by 0 where rows have an odd width.

    starts, counts  (B,) the place in the line of a tile's first token, and how many it has
    tables, ends    (B, M) blocks, and how many slots are filled up to the end of each
    """
    arguments = (q_NQW, kv, layer, starts, counts, tables, ends, scale, q_BHGTW, keys_BHCW, values_BHCW)
    parallel(_gather, threads, arguments)


@kernel
def _hide(thread, threads, scores_BRTC, counts, always, lows, highs, hidden):
    rows, longest = scores_BRTC.shape[1:3]
    for task in range(*part(scores_BRTC.shape[0] * rows * longest, thread, threads)):
        b, t = task // (rows * longest), task % longest
        if t < counts[b]:
            own = scores_BRTC[b, task // longest % rows, t]
            own[always[b] : lows[b, t]] = hidden
            own[highs[b, t] :] = hidden


@kernel
def hide(threads, scores_BRTC, counts, always, lows, highs):
    """scores[...] = LOWEST at all slots but those below `always` and those from `lows` to `highs`.

    always (B,)    lows, highs (B, T) of each query, not below `always`    R  heads of a tile
    """
    hidden = narrowed(LOWEST, scores_BRTC)
    parallel(_hide, threads, (scores_BRTC, counts, always, lows, highs, hidden))


@kernel
def _scatter(thread, threads, attended_BRTW, starts, counts, out_N):
    heads, longest, width = attended_BRTW.shape[1:]
    for task in range(*part(starts.shape[0] * longest, thread, threads)):
        b, t = task // longest, task % longest
        if t < counts[b]:
            for head in range(heads):
                own, out = attended_BRTW[b, head, t], out_N[starts[b] + t, head * width : (head + 1) * width]
                for i in range(width):
                    out[i] = own[i]


@kernel
def scatter(threads, attended_BRTW, starts, counts, out_N):
    """out[places] = attended.transpose(1, 2).flatten(-2)."""
    parallel(_scatter, threads, (attended_BRTW, starts, counts, out_N))
