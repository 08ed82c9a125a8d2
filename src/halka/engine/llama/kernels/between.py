"""What stands between a layer's products: norms and residuals, SiLU, rotary positions."""

from __future__ import annotations

import numpy as np

from halka.kernels.arrays import room
from halka.kernels.compiled import kernel
from halka.kernels.numbers import ONE, exp, narrowed, norm, widen, widened
from halka.kernels.threads import parallel, part


@kernel
def _add_norm(thread, threads, x_ND, y_ND, weight_D, eps, h_ND):
    out = room(x_ND.shape[1], np.float32)
    for n in range(*part(x_ND.shape[0], thread, threads)):
        x = x_ND[n]
        if y_ND.shape[0] > 0:
            y = y_ND[n]
            for i in range(x.shape[0]):
                x[i] += widened(y[i])
        norm(x, weight_D, eps, out)
        h = h_ND[n]
        for i in range(x.shape[0]):
            h[i] = narrowed(out[i], h_ND)


@kernel
def add_norm(threads, x_ND, y_ND, weight_D, eps, h_ND):
    """x += y; h = F.rms_norm(x, (D,), weight, eps). x is fp32; nothing is added if y has no rows."""
    parallel(_add_norm, threads, (x_ND, y_ND, weight_D, eps, h_ND))


@kernel
def _silu_product(thread, threads, y_N2F, z_NF):
    width = z_NF.shape[1]
    for n in range(*part(z_NF.shape[0], thread, threads)):
        gate, up, z = y_N2F[n, :width], y_N2F[n, width:], z_NF[n]
        for i in range(width):
            g = widened(gate[i])
            z[i] = narrowed(g / (ONE + exp(-g)) * widened(up[i]), z_NF)


@kernel
def silu_product(threads, y_N2F, z_NF):
    """gate, up = y.chunk(2, -1); z = F.silu(gate) * up."""
    parallel(_silu_product, threads, (y_N2F, z_NF))


@kernel
def _rotated(x_W, weight_W, eps, cos_W, sin_W, out_W):
    """A head through its norm, if it has one, and turned to its position."""
    width = x_W.shape[0]
    half = width // 2
    if weight_W.shape[0] > 0:
        norm(x_W, weight_W, eps, x_W)
    for i in range(half):
        out_W[i] = x_W[i] * cos_W[i] - x_W[half + i] * sin_W[i]
        out_W[half + i] = x_W[half + i] * cos_W[half + i] + x_W[i] * sin_W[half + i]


@kernel
def keep_token(y, q_norm, k_norm, eps, cos_W, sin_W, kv, layer, slot, q_QW):
    """One token's queries into q; its keys and values into the block where its slot is."""
    heads, width, queries = kv.shape[3], kv.shape[5], q_QW.shape[0]
    block, place = slot // kv.shape[4], slot % kv.shape[4]
    x, out = room(width, np.float32), room(width, np.float32)
    for head in range(queries + heads):
        widen(y[head * width : (head + 1) * width], x)
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


@kernel
def _keep(thread, threads, y_N, q_norm, k_norm, eps, cos_NW, sin_NW, kv, layer, slots, q_NQW):
    for n in range(*part(slots.shape[0], thread, threads)):
        keep_token(y_N[n], q_norm, k_norm, eps, cos_NW[n], sin_NW[n], kv, layer, slots[n], q_NQW[n])


@kernel
def keep(threads, y_N, q_norm, k_norm, eps, cos_NW, sin_NW, kv, layer, slots, q_NQW):
    """q, k, v = y.split([Q·W, H·W, H·W]); q, k = rotary(norm(q), norm(k)); KVBlocks.write(layer, slots, k, v).

    kv  KVBlocks.data    q_norm, k_norm  (W,), or without any element where the base has none
    """
    parallel(_keep, threads, (y_N, q_norm, k_norm, eps, cos_NW, sin_NW, kv, layer, slots, q_NQW))
