"""Numbers as kernels read and write them: fp32, or bf16 seen as uint16; sums are fp32 always."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types
from numba.extending import overload

from halka.kernels.compiled import kernel

LOG2E, HALF, ONE, ZERO = np.float32(1.4426950408889634), np.float32(0.5), np.float32(1), np.float32(0)
LIMIT = np.float32(87)
TAYLOR = tuple(
    np.float32(0.6931471805599453**power / factorial) for power, factorial in enumerate((1, 1, 2, 6, 24, 120, 720))
)


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


@kernel
def _bf16(value):
    bits = np.float32(value).view(np.uint32)
    rounded = np.uint32(np.uint32(bits + np.uint32(0x7FFF)) + np.uint32((bits >> np.uint32(16)) & np.uint32(1)))
    if value != value:
        rounded = np.uint32(0x7FC00000)
    return np.uint16(rounded >> np.uint32(16))


@kernel
def exp(x):
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


@kernel
def dot(w_I, x_I):
    total = ZERO
    for i in range(x_I.shape[0]):
        total += widened(w_I[i]) * widened(x_I[i])
    return total


@kernel
def widen(x, out):
    for i in range(out.shape[0]):
        out[i] = widened(x[i])


@kernel
def norm(x_D, weight_D, eps, out_D):
    """F.rms_norm(x, (D,), weight, eps); out fp32."""
    total = ZERO
    for i in range(x_D.shape[0]):
        total += x_D[i] * x_D[i]
    scale = ONE / np.sqrt(total / np.float32(x_D.shape[0]) + eps)
    for i in range(x_D.shape[0]):
        out_D[i] = x_D[i] * scale * widened(weight_D[i])
