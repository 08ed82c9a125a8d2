"""Kernels for decoding on a CPU, compiled by numba: what torch reads slowly for one token, or for an adapter a row.

    N tokens of a line   D hidden width   I, O a linear's widths   F inner width of the MLP   R rank   L layers
    Q query heads   H key/value heads   G = Q/H   W head width   M blocks of a text   SIZE tokens of a block
    S = 7 linear layers of a decoder layer, in the order of `SLOTS`

Weights and activations are fp32, or bf16 seen as uint16; sums are fp32 always. A kernel's docstring says what it
computes as a line of torch; tests/engine/test_kernels.py holds each to that line. Low-rank products are read where
their adapter keeps them: `table` (L, S, 3) int64 holds the address of A (R, I), that of s·Bᵀ (R, O), and R, which is 0
where there is none.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numba
import numpy as np
import torch
from numba import njit, prange, types
from numba.extending import intrinsic, overload
from numba.np.numpy_support import carray
from numba.np.ufunc import parallel as pool

from halka.models.attention.paged import ALWAYS

SLOTS = ("attn.q", "attn.k", "attn.v", "attn.o", "mlp.gate", "mlp.up", "mlp.down")
WEIGHTS = (  # of a layer, in the order in which `one_row` is given their addresses; 0 where the base has none
    *("norm", "qkv", "qkv_bias", "q_norm", "k_norm", "o", "o_bias"),
    *("mlp_norm", "gate_up", "gate_up_bias", "down", "down_bias"),
)
FAST = {"reassoc", "contract", "nsz", "arcp"}  # sums in any order; what is no number stays none
LOWEST = np.float32(-3e38)
LOG2E, HALF, ONE, ZERO = np.float32(1.4426950408889634), np.float32(0.5), np.float32(1), np.float32(0)
LIMIT = np.float32(87)
TAYLOR = tuple(
    np.float32(0.6931471805599453**power / factorial) for power, factorial in enumerate((1, 1, 2, 6, 24, 120, 720))
)


def kernel(parallel: bool = False) -> Callable[[Callable[..., Any]], Any]:
    """Compiles a function at its first call, and keeps the code on disk where a folder can be written."""

    def compiled(function: Callable[..., Any]) -> Any:
        options = {"parallel": parallel, "fastmath": FAST, "nogil": True, "error_model": "numpy"}
        try:
            return njit(cache=True, **options)(function)
        except RuntimeError:  # numba knows of no folder that it may write to
            return njit(**options)(function)

    return compiled


def use_torch_threads() -> int:
    """Run kernels on as many threads as torch has, of the same OpenMP: two pools would wait for each other.

    Returns how many. Layer and size of numba's pool are those of its first use in this process; to start it sets the
    number of torch's threads, too, which is put back.
    """
    threads = torch.get_num_threads()
    if not pool._is_initialized:
        if find_spec("numba.np.ufunc.omppool") is not None:
            numba.config.THREADING_LAYER = "omp"  # type: ignore[attr-defined]
        numba.config.NUMBA_NUM_THREADS = threads  # type: ignore[attr-defined]
    used = min(threads, numba.config.NUMBA_NUM_THREADS)  # type: ignore[attr-defined]
    numba.set_num_threads(used)
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
    return used


# ── numbers ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def widened(value: Any) -> Any:
    """fp32 of a stored value."""
    raise NotImplementedError


@overload(widened, inline="always")
def _widened(value):
    if value == types.uint16:
        return lambda value: np.uint32(np.uint32(value) << np.uint32(16)).view(np.float32)
    return lambda value: np.float32(value)


def narrowed(value: Any, like: Any) -> Any:
    """An fp32 value as an array like this one stores it, rounded to the nearest."""
    raise NotImplementedError


@overload(narrowed, inline="always")
def _narrowed(value, like):
    if like.dtype == types.uint16:
        return lambda value, like: _bf16(value)
    return lambda value, like: np.float32(value)


@kernel()
def _bf16(value):
    bits = np.float32(value).view(np.uint32)
    rounded = np.uint32(np.uint32(bits + np.uint32(0x7FFF)) + np.uint32((bits >> np.uint32(16)) & np.uint32(1)))
    if value != value:
        rounded = np.uint32(0x7FC00000)
    return np.uint16(rounded >> np.uint32(16))


def _as_pointer(context, address):
    """The address as a pointer, for `carray`."""

    def code(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return types.voidptr(address), code


_pointer: Any = intrinsic(_as_pointer)


@kernel()
def _exp(x):
    """exp(x), to 2e-7 of it, between ±87; unlike the library's it runs on vectors."""
    t = min(max(x, -LIMIT), LIMIT) * LOG2E
    whole = np.floor(t + HALF)
    f = t - whole
    power = TAYLOR[6]
    power = power * f + TAYLOR[5]
    power = power * f + TAYLOR[4]
    power = power * f + TAYLOR[3]
    power = power * f + TAYLOR[2]
    power = power * f + TAYLOR[1]
    power = power * f + TAYLOR[0]
    return power * np.uint32(np.uint32(np.int32(whole) + np.int32(127)) << np.uint32(23)).view(np.float32)


@kernel()
def _dot(w_I, x_I):
    total = ZERO
    for i in range(x_I.shape[0]):
        total += widened(w_I[i]) * x_I[i]
    return total


@kernel()
def _widen(x, out):
    for i in range(out.shape[0]):
        out[i] = widened(x[i])


@kernel()
def _norm(x_D, weight_D, eps, out_D):
    """F.rms_norm(x, (D,), weight, eps); out fp32."""
    total = ZERO
    for i in range(x_D.shape[0]):
        total += x_D[i] * x_D[i]
    scale = ONE / np.sqrt(total / np.float32(x_D.shape[0]) + eps)
    for i in range(x_D.shape[0]):
        out_D[i] = x_D[i] * scale * widened(weight_D[i])


# ── a row's own low-rank products ───────────────────────────────────────────────────────────────────────────────────


@kernel()
def _low_rank(like, x_I, slots, widths, begin, end, out):
    """out += s·B(A x) at the outputs from begin to end: those of several layers, of these widths, side by side."""
    offset = 0
    for slot in range(widths.shape[0]):
        width, rank = widths[slot], slots[slot, 2]
        low, high = max(begin, offset), min(end, offset + width)
        if rank > 0 and low < high:
            A_RI = carray(_pointer(slots[slot, 0]), (rank, x_I.shape[0]), like.dtype)
            B_RO = carray(_pointer(slots[slot, 1]), (rank, width), like.dtype)
            own = out[low - begin : high - begin]
            for r in range(rank):
                inner = _dot(A_RI[r], x_I)
                row = B_RO[r, low - offset : high - offset]
                for o in range(own.shape[0]):
                    own[o] += inner * widened(row[o])
        offset += width


@kernel(parallel=True)
def add_low_rank(x_NI, y_NO, tables, owner, layer, first, widths, pieces):
    """y[n] += cat([s·B(A x[n]) of each slot]) for every token n with an owner.

    tables  (adapters, L, S, 3)    owner   (N,) the token's adapter among them, or -1
    first   the first slot         widths  (slots,) of their outputs, which y has side by side
    pieces  of each token's outputs, one a task: more than one where tokens are fewer than threads
    """
    width = y_NO.shape[1]
    for task in prange(owner.shape[0] * pieces):
        n, piece = task // pieces, task % pieces
        if owner[n] >= 0:
            begin, end = width * piece // pieces, width * (piece + 1) // pieces
            x, added = np.empty(x_NI.shape[1], np.float32), np.zeros(end - begin, np.float32)
            _widen(x_NI[n], x)
            slots = tables[owner[n], layer, first : first + widths.shape[0]]
            _low_rank(y_NO, x, slots, widths, begin, end, added)
            y = y_NO[n, begin:end]
            for o in range(end - begin):
                y[o] = narrowed(widened(y[o]) + added[o], y_NO)


# ── between products ────────────────────────────────────────────────────────────────────────────────────────────────


@kernel(parallel=True)
def add_norm(x_ND, y_ND, weight_D, eps, h_ND):
    """x += y; h = F.rms_norm(x, (D,), weight, eps). x is fp32; nothing is added if y has no rows."""
    for n in prange(x_ND.shape[0]):
        x, out = x_ND[n], np.empty(x_ND.shape[1], np.float32)
        if y_ND.shape[0] > 0:
            y = y_ND[n]
            for i in range(x.shape[0]):
                x[i] += widened(y[i])
        _norm(x, weight_D, eps, out)
        h = h_ND[n]
        for i in range(x.shape[0]):
            h[i] = narrowed(out[i], h_ND)


@kernel(parallel=True)
def silu_product(y_N2F, z_NF):
    """gate, up = y.chunk(2, -1); z = F.silu(gate) * up."""
    width = z_NF.shape[1]
    for n in prange(z_NF.shape[0]):
        gate, up, z = y_N2F[n, :width], y_N2F[n, width:], z_NF[n]
        for i in range(width):
            g = widened(gate[i])
            z[i] = narrowed(g / (ONE + _exp(-g)) * widened(up[i]), z_NF)


@kernel()
def _rotated(x_W, weight_W, eps, cos_W, sin_W, out_W):
    """A head through its norm, if it has one, and turned to its position."""
    width = x_W.shape[0]
    half = width // 2
    if weight_W.shape[0] > 0:
        _norm(x_W, weight_W, eps, x_W)
    for i in range(half):
        out_W[i] = x_W[i] * cos_W[i] - x_W[half + i] * sin_W[i]
        out_W[half + i] = x_W[half + i] * cos_W[half + i] + x_W[i] * sin_W[half + i]


@kernel()
def _keep(y, q_norm, k_norm, eps, cos_W, sin_W, kv, layer, slot, q_QW):
    """One token's queries into q; its keys and values into the block where its slot is."""
    heads, width, queries = kv.shape[3], kv.shape[5], q_QW.shape[0]
    block, place = slot // kv.shape[4], slot % kv.shape[4]
    x, out = np.empty(width, np.float32), np.empty(width, np.float32)
    for head in range(queries + heads):
        _widen(y[head * width : (head + 1) * width], x)
        if head < queries:
            _rotated(x, q_norm, eps, cos_W, sin_W, out)
            kept = q_QW[head]
            for i in range(width):
                kept[i] = narrowed(out[i], q_QW)
        else:
            _rotated(x, k_norm, eps, cos_W, sin_W, out)
            kept = kv[block, layer, 0, head - queries, place]
            for i in range(width):
                kept[i] = narrowed(out[i], kv)
    for head in range(heads):
        value, kept = y[(queries + heads + head) * width :], kv[block, layer, 1, head, place]
        for i in range(width):
            kept[i] = narrowed(widened(value[i]), kv)


@kernel(parallel=True)
def keep(y_N, q_norm, k_norm, eps, cos_NW, sin_NW, kv, layer, slots, q_NQW):
    """q, k, v = y.split([Q·W, H·W, H·W]); q, k = rotary(norm(q), norm(k)); KVBlocks.write(layer, slots, k, v).

    kv  KVBlocks.data    q_norm, k_norm  (W,), or without any element where the base has none
    """
    for n in prange(slots.shape[0]):
        _keep(y_N[n], q_norm, k_norm, eps, cos_NW[n], sin_NW[n], kv, layer, slots[n], q_NQW[n])


# ── attention to blocks ─────────────────────────────────────────────────────────────────────────────────────────────


@kernel()
def _attend(q_GW, kv, layer, head, blocks, counts, begins, position, window, scale, sums_GW, state_G2):
    """Softmax over what a token sees of these blocks, with its heads that share one key/value head.

    sums  (G, W) fp32, weighted values    state  (G, 2) the highest score, and the sum of weights
    """
    groups, width = q_GW.shape
    size = kv.shape[4]
    q, scores = np.empty((groups, width), np.float32), np.empty((groups, size), np.float32)
    for g in range(groups):
        _widen(q_GW[g], q[g])
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
                scores[g, j] = _dot(keys[j], q[g])
        for g in range(groups):
            highest, own, sums = state_G2[g, 0], scores[g], sums_GW[g]
            for j in range(low, high):
                highest = max(highest, own[j])
            shrink, total = _exp(state_G2[g, 0] - highest), ZERO
            for j in range(low, high):
                own[j] = _exp(own[j] - highest)
                total += own[j]
            state_G2[g, 0], state_G2[g, 1] = highest, state_G2[g, 1] * shrink + total
            for i in range(width):
                sums[i] *= shrink
            for j in range(low, high):
                weight, value = own[j], values[j]
                for i in range(width):
                    sums[i] += weight * widened(value[i])


@kernel()
def _gathered(sums_PGW, state_PG2, like, out):
    """The softmax over all pieces P of a text, of which each was attended to by itself; out (G·W,)."""
    pieces, groups, width = sums_PGW.shape
    for g in range(groups):
        highest, total = LOWEST, ZERO
        for piece in range(pieces):
            highest = max(highest, state_PG2[piece, g, 0])
        for piece in range(pieces):
            state_PG2[piece, g, 0] = _exp(state_PG2[piece, g, 0] - highest)
            total += state_PG2[piece, g, 0] * state_PG2[piece, g, 1]
        for i in range(width):
            value = ZERO
            for piece in range(pieces):
                value += state_PG2[piece, g, 0] * sums_PGW[piece, g, i]
            out[g * width + i] = narrowed(value / total, like)


@kernel(parallel=True)
def attend(q_NQW, kv, layer, places, texts, tables, counts, begins, positions, window, scale, pieces, out_N):
    """grouped_products(q, *KVBlocks.read(layer, tables), PagedPlan.mask(window), scale) for texts of one token.

    places  (T,) the token's place in the line    texts  (T,) the number of its text, a row of the next three
    tables, counts, begins  (texts, M), as `PagedPlan` has them    positions  (N,)    window  0 where there is none
    pieces  of a text's blocks, one a task: more than one where texts are few and threads many
    """
    heads, groups, width = kv.shape[3], q_NQW.shape[1] // kv.shape[3], q_NQW.shape[2]
    blocks = tables.shape[1]
    sums = np.empty((places.shape[0], heads, pieces, groups, width), np.float32)
    states = np.empty((places.shape[0], heads, pieces, groups, 2), np.float32)
    for task in prange(places.shape[0] * heads * pieces):
        one, piece = task // pieces, task % pieces
        t, head = one // heads, one % heads
        n, text, low, high = places[t], texts[t], blocks * piece // pieces, blocks * (piece + 1) // pieces
        _attend(
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
    for t in range(places.shape[0]):
        for head in range(heads):
            own = out_N[places[t], head * groups * width : (head + 1) * groups * width]
            _gathered(sums[t, head], states[t, head], out_N, own)


# ── one row ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@kernel(parallel=True)
def _product(like, address, bias, x_I, y_O, slots, widths, threads):
    """y = W x + bias + cat([s·B(A x) of each slot]), in fp32; every thread computes the A x that it needs."""
    width, inputs = y_O.shape[0], x_I.shape[0]
    for thread in prange(threads):
        begin, end = width * thread // threads, width * (thread + 1) // threads
        W_OI = carray(_pointer(address), (width, inputs), like.dtype)
        for o in range(begin, end):
            y_O[o] = _dot(W_OI[o], x_I)
        if bias != 0:
            bias_O = carray(_pointer(bias), (width,), like.dtype)
            for o in range(begin, end):
                y_O[o] += widened(bias_O[o])
        _low_rank(like, x_I, slots, widths, begin, end, y_O[begin:end])


@kernel(parallel=True)
def product(W_OI, x_I, y_O, threads):
    """y = F.linear(x, W), of one token: at the speed at which memory gives W."""
    x = np.empty(x_I.shape[0], np.float32)
    _widen(x_I, x)
    for thread in prange(threads):
        for o in range(y_O.shape[0] * thread // threads, y_O.shape[0] * (thread + 1) // threads):
            y_O[o] = narrowed(_dot(W_OI[o], x), y_O)


@kernel()
def one_row(
    embed_VD, weights, norm_D, head_VD, token, eps, cos, sin, kv, slots, tables, counts, begins, positions, windows,
    scale, table, queries, inner, threads, logits,
):  # fmt: skip
    """The logits (V,) of the token after this one: a whole step of the base for one token, with its LoRA.

    weights  (L, WEIGHTS) int64, addresses            windows  (L,), 0 where a layer has none
    cos, sin (1, W) of the token's position           tables, counts, begins (1, M), positions, slots (1,): the plan's
    table    (L, S, 3) of its adapter                 queries, inner  Q and F
    """
    hidden, heads, head_width = embed_VD.shape[1], kv.shape[3], kv.shape[5]
    _groups, attended = queries // heads, queries * head_width
    x, h, y = np.empty(hidden, np.float32), np.empty(hidden, np.float32), np.empty(hidden, np.float32)
    qkv, q = np.empty(attended + 2 * heads * head_width, np.float32), np.empty((1, queries, head_width), np.float32)
    out, gate_up, z = np.empty((1, attended), np.float32), np.empty(2 * inner, np.float32), np.empty(inner, np.float32)
    of_qkv = np.array([attended, heads * head_width, heads * head_width])
    of_gate_up, of_hidden = np.array([inner, inner]), np.array([hidden])
    places = np.zeros(1, np.int64)
    pieces = 1 if heads % threads == 0 else threads
    _widen(embed_VD[token], x)
    for layer in range(weights.shape[0]):
        own, low_rank = weights[layer], table[layer]
        _norm(x, carray(_pointer(own[0]), (hidden,), embed_VD.dtype), eps, h)
        _product(embed_VD, own[1], own[2], h, qkv, low_rank[:3], of_qkv, threads)
        q_norm = carray(_pointer(own[3]), (head_width if own[3] != 0 else 0,), embed_VD.dtype)
        k_norm = carray(_pointer(own[4]), (head_width if own[4] != 0 else 0,), embed_VD.dtype)
        _keep(qkv, q_norm, k_norm, eps, cos[0], sin[0], kv, layer, slots[0], q[0])
        attend(q, kv, layer, places, places, tables, counts, begins, positions, windows[layer], scale, pieces, out)
        _product(embed_VD, own[5], own[6], out[0], y, low_rank[3:4], of_hidden, threads)
        for i in range(hidden):
            x[i] += y[i]
        _norm(x, carray(_pointer(own[7]), (hidden,), embed_VD.dtype), eps, h)
        _product(embed_VD, own[8], own[9], h, gate_up, low_rank[4:6], of_gate_up, threads)
        for i in range(inner):
            z[i] = gate_up[i] / (ONE + _exp(-gate_up[i])) * gate_up[inner + i]
        _product(embed_VD, own[10], own[11], z, y, low_rank[6:7], of_hidden, threads)
        for i in range(hidden):
            x[i] += y[i]
    _norm(x, norm_D, eps, h)
    product(head_VD, h, logits, threads)
