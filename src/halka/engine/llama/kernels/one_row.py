"""A whole step of the base for one token, in one region: threads meet where one needs what another has computed.

Memory gives the weights no faster than this reads them. Each thread computes a part of every product's outputs, and
everything else by itself.
"""

from __future__ import annotations

import numpy as np

from halka.engine.llama.kernels.attention import attend_blocks, gathered
from halka.engine.llama.kernels.between import keep_token
from halka.engine.llama.kernels.bottlenecks import add_bottleneck
from halka.engine.llama.kernels.factors import scale_slots
from halka.engine.llama.kernels.low_rank import add_slots
from halka.kernels.arrays import room, stored
from halka.kernels.compiled import kernel
from halka.kernels.numbers import ONE, ZERO, dot, exp, narrowed, norm, widen, widened
from halka.kernels.threads import meet, parallel, part

INT8 = np.empty(0, np.int8)  # an array's kind
WEIGHTS = (  # of a layer, in the order in which `one_row` is given their addresses; 0 where the base has none
    *("norm", "qkv", "qkv_scale", "qkv_bias", "q_norm", "k_norm", "o", "o_scale", "o_bias"),
    *("mlp_norm", "gate_up", "gate_up_scale", "gate_up_bias", "down", "down_scale", "down_bias"),
)


@kernel
def _outputs(W_OI, scale_O, x_I, y_O, begin, end):
    """y = scale * W x at the outputs from begin to end: by four streams through W, which memory gives faster than one.

    scale  of an int8 W; for another without any element
    """
    length = (end - begin) // 4
    for o in range(begin, begin + length):
        first, second, third, fourth = W_OI[o], W_OI[o + length], W_OI[o + 2 * length], W_OI[o + 3 * length]
        one, two, three, four = ZERO, ZERO, ZERO, ZERO
        for i in range(x_I.shape[0]):
            x = x_I[i]
            one += widened(first[i]) * x
            two += widened(second[i]) * x
            three += widened(third[i]) * x
            four += widened(fourth[i]) * x
        y_O[o], y_O[o + length], y_O[o + 2 * length], y_O[o + 3 * length] = one, two, three, four
    for o in range(begin + 4 * length, end):
        y_O[o] = dot(W_OI[o], x_I)
    if scale_O.shape[0] > 0:
        for o in range(begin, end):
            y_O[o] *= scale_O[o]


@kernel
def _product(like, weight, x_I, y_O, slots, factors, widths, begin, end):
    """y = (scale * W x + bias + cat([s·B(A x) of each slot])) * cat([l of each slot]) from begin to end, in fp32.

    weight  (3,) the addresses of W (O, I), of the scale and the bias (O,), or 0: without a scale W is no int8
    """
    scale_O, bias_O = stored(weight[1], y_O.shape[0], x_I), stored(weight[2], y_O.shape[0], like)
    if weight[1] == 0:
        _outputs(stored(weight[0], (y_O.shape[0], x_I.shape[0]), like), scale_O, x_I, y_O, begin, end)
    else:
        _outputs(stored(weight[0], (y_O.shape[0], x_I.shape[0]), INT8), scale_O, x_I, y_O, begin, end)
    if weight[2] != 0:
        for o in range(begin, end):
            y_O[o] += widened(bias_O[o])
    add_slots(like, x_I, slots, widths, begin, end, y_O[begin:end])
    scale_slots(like, factors, widths, begin, end, y_O)


@kernel
def _add_sublayer(like, slots, h_D, x_D, y_D, own_D, read_D):
    """x += y with the slots' bottlenecks added to it. y is all threads'; own and read are room for this one's."""
    widen(y_D, own_D)
    for slot in range(slots.shape[0]):
        add_bottleneck(like, slots[slot], h_D, x_D, own_D, read_D)
    for i in range(x_D.shape[0]):
        x_D[i] += own_D[i]


@kernel
def _half_of(like, weight, half, outputs, inputs, out):
    """The addresses of the first or the second half of a product's outputs."""
    sizes = (inputs * (like.itemsize if weight[1] == 0 else 1), 4, like.itemsize)  # of an output, in bytes
    for kind in range(3):
        out[kind] = weight[kind] + half * outputs * sizes[kind] if weight[kind] != 0 else 0


@kernel
def _head(thread, threads, W_OI, scale_O, x_I, y_O):
    begin, end = part(y_O.shape[0], thread, threads)
    _outputs(W_OI, scale_O, x_I, y_O, begin, end)


@kernel
def product(threads, W_OI, scale_O, x_I, y_O):
    """y = F.linear(x, W) * scale, of one token: at the speed at which memory gives W. scale: as `_outputs` has it."""
    x, y = room(x_I.shape[0], np.float32), room(y_O.shape[0], np.float32)
    widen(x_I, x)
    parallel(_head, threads, (W_OI, scale_O, x, y))
    for o in range(y.shape[0]):
        y_O[o] = narrowed(y[o], y_O)


@kernel
def _one_row(
    thread, threads, embed_VD, weights, norm_D, head_VD, token, eps, cos_W, sin_W, kv, slot, tables, counts, begins,
    position, windows, scale, low_ranks, bottlenecks, factors, queries, inner, gate, qkv, q_QW, sums, states, z, y,
    logits,
):  # fmt: skip
    hidden, heads, width = embed_VD.shape[1], kv.shape[3], kv.shape[5]
    attended, pieces = queries * width, sums.shape[0]
    x, h, out = room(hidden, np.float32), room(hidden, np.float32), room(attended, np.float32)
    gate_up, weight = room(2 * inner, np.float32), room(3, np.int64)
    own_y, read = room(hidden, np.float32), room(hidden, np.float32)
    of_qkv, of_inner, of_hidden = room(3, np.int64), room(1, np.int64), room(1, np.int64)
    of_qkv[0], of_qkv[1], of_qkv[2], of_inner[0], of_hidden[0] = attended, heads * width, heads * width, inner, hidden
    qkv_low, qkv_high = part(qkv.shape[0], thread, threads)
    z_low, z_high = part(inner, thread, threads)
    low, high = part(hidden, thread, threads)
    widen(embed_VD[token], x)
    for layer in range(weights.shape[0]):
        own, low_rank, scales, window = weights[layer], low_ranks[layer], factors[layer], windows[layer]
        norm(x, stored(own[0], hidden, embed_VD), eps, h)
        _product(embed_VD, own[1:4], h, qkv, low_rank[:3], scales[:3], of_qkv, qkv_low, qkv_high)
        meet(gate, threads)
        if thread == 0:
            q_norm, k_norm = stored(own[4], width, embed_VD), stored(own[5], width, embed_VD)
            keep_token(qkv, q_norm, k_norm, eps, cos_W, sin_W, kv, layer, slot, q_QW)
        meet(gate, threads)
        for piece in range(*part(pieces, thread, threads)):
            first, last = part(tables.shape[0], piece, pieces)
            attend_blocks(
                q_QW, kv, layer, tables[first:last], counts[first:last], begins[first:last], position, window, scale,
                sums[piece], states[piece],
            )  # fmt: skip
        meet(gate, threads)
        gathered(sums, states, out, out)
        scale_slots(embed_VD, scales[7:8], of_qkv[:1], 0, attended, out)
        _product(embed_VD, own[6:9], out, y, low_rank[3:4], scales[3:4], of_hidden, low, high)
        meet(gate, threads)
        _add_sublayer(embed_VD, bottlenecks[layer, :2], h, x, y, own_y, read)
        norm(x, stored(own[9], hidden, embed_VD), eps, h)
        for half in range(2):
            here = gate_up[half * inner : (half + 1) * inner]
            _half_of(embed_VD, own[10:13], half, inner, hidden, weight)
            slots = slice(4 + half, 5 + half)
            _product(embed_VD, weight, h, here, low_rank[slots], scales[slots], of_inner, z_low, z_high)
        for i in range(z_low, z_high):
            z[i] = gate_up[i] / (ONE + exp(-gate_up[i])) * gate_up[inner + i]
        scale_slots(embed_VD, scales[8:9], of_inner, z_low, z_high, z)
        meet(gate, threads)
        _product(embed_VD, own[13:16], z, y, low_rank[6:7], scales[6:7], of_hidden, low, high)
        meet(gate, threads)
        _add_sublayer(embed_VD, bottlenecks[layer, 2:], h, x, y, own_y, read)
    norm(x, norm_D, eps, h)
    _head(thread, threads, head_VD, h[:0], h, logits)


@kernel
def one_row(
    threads, embed_VD, weights, norm_D, head_VD, token, eps, cos_W, sin_W, kv, slot, tables, counts, begins, position,
    windows, scale, low_ranks, bottlenecks, factors, queries, inner, sums, states, logits,
):  # fmt: skip
    """The logits (V,) of the token after this one: a whole step of the base for one token, with its adapter.

    weights  (L, WEIGHTS) int64, addresses            windows  (L,), 0 where a layer has none
    cos, sin (W,) of the token's position             tables, counts, begins (M,), position, slot: the plan's
    queries, inner  Q and F                           low_ranks, bottlenecks, factors: the tables of its adapter
    sums, states    (threads, Q, W) and (threads, Q, 2), what each thread attends to
    """
    heads, width = kv.shape[3], kv.shape[5]
    qkv, q = room((queries + 2 * heads) * width, np.float32), room((queries, width), np.float32)
    z, y = room(inner, np.float32), room(embed_VD.shape[1], np.float32)
    read = (embed_VD, weights, norm_D, head_VD, token, eps, cos_W, sin_W)
    past = (kv, slot, tables, counts, begins, position)
    gate = room(1, np.int64)
    gate[0] = 0
    scratch = (gate, qkv, q, sums, states, z, y)
    own = (low_ranks, bottlenecks, factors)
    parallel(_one_row, threads, (*read, *past, windows, scale, *own, queries, inner, *scratch, logits))
