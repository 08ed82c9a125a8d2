"""What stands between a decoder layer's products in training, and its gradient: RMSNorm, and the gate of an MLP.

N tokens   D hidden width   F inner width of the MLP; all arrays of tokens are of one precision, bf16 seen as uint16
"""

from __future__ import annotations

import numpy as np

from halka.kernels.arrays import room
from halka.kernels.compiled import kernel
from halka.kernels.numbers import ONE, ZERO, exp, narrowed, widened
from halka.kernels.threads import parallel, part


@kernel
def _rms_norm(thread, threads, x_ND, weight_D, eps, scale_N, y_ND):
    for n in range(*part(x_ND.shape[0], thread, threads)):
        x, y, total = x_ND[n], y_ND[n], ZERO
        for i in range(x.shape[0]):
            total += widened(x[i]) * widened(x[i])
        scale = ONE / np.sqrt(total / np.float32(x.shape[0]) + eps)
        for i in range(x.shape[0]):
            y[i] = narrowed(widened(weight_D[i]) * widened(narrowed(widened(x[i]) * scale, y)), y)
        scale_N[n] = scale


@kernel
def rms_norm(threads, x_ND, weight_D, eps, scale_N, y_ND):
    """y = weight * (x * scale), scale = rsqrt(x.pow(2).mean(-1) + eps) in fp32, rounded after each product."""
    parallel(_rms_norm, threads, (x_ND, weight_D, eps, scale_N, y_ND))


@kernel
def _rms_norm_gradient(thread, threads, dy_ND, x_ND, weight_D, scale_N, dx_ND, dweight_TD):
    width = x_ND.shape[1]
    slope = room(width, np.float32)
    for n in range(*part(x_ND.shape[0], thread, threads)):
        dy, x, dx, scale, total = dy_ND[n], x_ND[n], dx_ND[n], scale_N[n], ZERO
        for i in range(width):
            slope[i] = widened(narrowed(widened(dy[i]) * widened(weight_D[i]), dy))
            total += slope[i] * widened(x[i])
        along = total * scale * scale / np.float32(width)
        for i in range(width):
            dx[i] = narrowed(scale * (slope[i] - widened(x[i]) * along), dx)
        if dweight_TD.shape[0] > 0:
            dweight = dweight_TD[thread]
            for i in range(width):
                dweight[i] += widened(dy[i]) * widened(x[i]) * scale


@kernel
def rms_norm_gradient(threads, dy_ND, x_ND, weight_D, scale_N, dx_ND, dweight_TD):
    """dx of `rms_norm`'s dy; each thread adds its tokens' part of the weight's gradient, if there are rows for it."""
    parallel(_rms_norm_gradient, threads, (dy_ND, x_ND, weight_D, scale_N, dx_ND, dweight_TD))


@kernel
def _silu_gate(thread, threads, gate_NF, up_NF, z_NF):
    for n in range(*part(z_NF.shape[0], thread, threads)):
        gate, up, z = gate_NF[n], up_NF[n], z_NF[n]
        for i in range(z.shape[0]):
            g = widened(gate[i])
            z[i] = narrowed(widened(narrowed(g / (ONE + exp(-g)), z)) * widened(up[i]), z)


@kernel
def silu_gate(threads, gate_NF, up_NF, z_NF):
    """z = F.silu(gate) * up, rounded after each."""
    parallel(_silu_gate, threads, (gate_NF, up_NF, z_NF))


@kernel
def _silu_gate_gradient(thread, threads, dz_NF, gate_NF, up_NF, dgate_NF, dup_NF):
    for n in range(*part(dz_NF.shape[0], thread, threads)):
        dz, gate, up, dgate, dup = dz_NF[n], gate_NF[n], up_NF[n], dgate_NF[n], dup_NF[n]
        for i in range(dz.shape[0]):
            g, d = widened(gate[i]), widened(dz[i])
            share = ONE / (ONE + exp(-g))
            dup[i] = narrowed(d * (g * share), dup)
            dgate[i] = narrowed(d * widened(up[i]) * (share * (ONE + g * (ONE - share))), dgate)


@kernel
def silu_gate_gradient(threads, dz_NF, gate_NF, up_NF, dgate_NF, dup_NF):
    """dgate and dup of `silu_gate`'s dz."""
    parallel(_silu_gate_gradient, threads, (dz_NF, gate_NF, up_NF, dgate_NF, dup_NF))
