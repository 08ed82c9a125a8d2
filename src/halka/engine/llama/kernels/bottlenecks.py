"""A row's own bottlenecks, read where their adapter keeps them.

`table` (L, 4, 7) int64, of a layer's sublayers in the order of `weights.PLACES`: the addresses of D (R, I), of its bias
b (R,), of s·Uᵀ (R, O) and s·c (O,), then R, which is 0 where there is none, what is read, and the activation.
"""

from __future__ import annotations

import math

import numpy as np

from halka.kernels.arrays import room, stored
from halka.kernels.compiled import kernel
from halka.kernels.numbers import HALF, ONE, ZERO, dot, exp, narrowed, widen, widened
from halka.kernels.threads import parallel, part

OUTPUT, INPUT, RESIDUAL, SUM = range(4)  # `row_adapter.READS`
RELU, GELU, GELU_TANH, QUICK_GELU, SILU, TANH, SIGMOID, LEAKY_RELU, RELU6, MISH, _ = range(
    11
)  # `bottleneck.ACTIVATIONS`
SIX, SLOPE, QUICK = np.float32(6), np.float32(0.01), np.float32(1.702)
ROOT_HALF, ROOT, CUBE = np.float32(math.sqrt(0.5)), np.float32(math.sqrt(2 / math.pi)), np.float32(0.044715)


@kernel
def activated(activation, value):
    if activation == RELU:
        return max(value, ZERO)
    if activation == GELU:
        return HALF * value * (ONE + math.erf(ROOT_HALF * value))
    if activation == GELU_TANH:
        return HALF * value * (ONE + math.tanh(ROOT * (value + CUBE * value * value * value)))
    if activation == QUICK_GELU:
        return value / (ONE + exp(-QUICK * value))
    if activation == SILU:
        return value / (ONE + exp(-value))
    if activation == TANH:
        return math.tanh(value)
    if activation == SIGMOID:
        return ONE / (ONE + exp(-value))
    if activation == LEAKY_RELU:
        return max(value, ZERO) + SLOPE * min(value, ZERO)
    if activation == RELU6:
        return min(max(value, ZERO), SIX)
    if activation == MISH:
        return value * math.tanh(math.log1p(exp(value)))
    return value


@kernel
def add_bottleneck(like, slot, h_D, x_D, y_D, read_D):
    """y += s·U σ(D read + b) + s·c of one slot's; y, x and `read`, which is room for what it reads, are fp32."""
    rank, reads, width = slot[4], slot[5], y_D.shape[0]
    if rank == 0:
        return
    if reads == INPUT:
        widen(h_D, read_D)
    elif reads == RESIDUAL:
        widen(x_D, read_D)
    else:
        widen(y_D, read_D)
    if reads == SUM:
        for i in range(width):
            read_D[i] += x_D[i]
    D_RD, bias_R = stored(slot[0], (rank, width), like), stored(slot[1], rank, like)
    U_RD, bias_D = stored(slot[2], (rank, width), like), stored(slot[3], width, like)
    for o in range(width):
        y_D[o] += widened(bias_D[o])
    for r in range(rank):
        inner = activated(slot[6], dot(D_RD[r], read_D) + widened(bias_R[r]))
        row = U_RD[r]
        for o in range(width):
            y_D[o] += inner * widened(row[o])


@kernel
def _add_bottlenecks(thread, threads, h_ND, x_ND, y_ND, tables, places, owners, layer, number):
    y, read = room(y_ND.shape[1], np.float32), room(y_ND.shape[1], np.float32)
    for one in range(*part(places.shape[0], thread, threads)):
        n = places[one]
        widen(y_ND[n], y)
        add_bottleneck(y_ND, tables[owners[one], layer, number], h_ND[n], x_ND[n], y, read)
        out = y_ND[n]
        for o in range(y.shape[0]):
            out[o] = narrowed(y[o], y_ND)


@kernel
def add_bottlenecks(threads, h_ND, x_ND, y_ND, tables, places, owners, layer, number):
    """y[n] += s·U σ(D read[n] + b) + s·c for the tokens n at these places; read is y, h, x or x + y, x fp32.

    tables  (adapters, L, 4, 7)    number  of the layer's sublayer
    places, owners  (T,) of tokens, and the adapter of each
    """
    parallel(_add_bottlenecks, threads, (h_ND, x_ND, y_ND, tables, places, owners, layer, number))
