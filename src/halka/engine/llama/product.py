"""`Product`: the states of a line's tokens times a weight, by kernels or by torch, whichever is faster."""

from __future__ import annotations

import sys

import numpy as np
import torch
from torch import Tensor

from halka.engine.llama import kernels
from halka.kernels.shared import Shared, array_of
from halka.util.float32_linear import FEWEST, product_in_float32

MANY = 128  # tokens up to which kernels compute products, where the processor allows; torch's are faster above
WIDE = 96  # tokens from which products in float32 are faster than kernels, on a processor that is slow in bf16
NO_SCALE = np.empty(0, np.float32)


class Product:
    """y = F.linear(x, weight, bias), the weight times its scale if it has one.

    arrays  weight (O, I), scale and bias (O,) for the kernels, without any element for none
    """

    def __init__(
        self,
        weight: Tensor,
        scale: Tensor | None,
        bias: Tensor | None,
        pairs: bool,
        dtype: torch.dtype,
        slow: bool = False,
    ):
        """pairs: kernels multiply pairs of bf16 numbers of weight and states. dtype: of states.

        slow: they are in bf16, in which this processor is slower than in float32.
        """
        self._weight, self._scale, self._bias = weight, scale, bias
        self._pairs = pairs and weight.shape[1] <= kernels.WIDEST
        self._from = (WIDE if self._pairs else FEWEST) if slow else sys.maxsize
        own_bias = torch.empty(0, dtype=dtype) if bias is None else bias
        self.arrays = array_of(weight), NO_SCALE if scale is None else scale.numpy(), array_of(own_bias)

    def __call__(self, threads: int, x: Shared, y: Shared) -> None:
        """Compute y (N, O) of x (N, I). Where y is fp32 and x is not, only torch's products of few rows round it."""
        count, weight, scale, bias = len(x.array), self._weight, self._scale, self._bias
        wider = y.tensor.dtype != x.tensor.dtype
        if count == 1:
            kernels.product(threads, *self.arrays[:2], x.array[0], y.array[0])
            if bias is not None:
                y.tensor.add_(bias)
        elif count >= self._from or (wider and count > MANY):
            product_in_float32(x.tensor, weight, y.tensor, scale=scale, bias=bias)
        elif self._pairs and count <= MANY:
            kernels.products(threads, x.array, *self.arrays, y.array)
        elif scale is not None or wider:
            y.tensor.copy_(torch.mm(x.tensor, weight.mT.to(x.tensor.dtype)))
            if scale is not None:
                y.tensor.mul_(scale)
            if bias is not None:
                y.tensor.add_(bias)
        elif bias is None:
            torch.mm(x.tensor, weight.mT, out=y.tensor)
        else:
            torch.addmm(bias, x.tensor, weight.mT, out=y.tensor)
