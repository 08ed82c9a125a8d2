"""Eight bits a weight: integers from −127 to 127, times a scale for each output."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from halka.models.quantised.linear import QuantizedLinear

LARGEST = 127
FEW = 8  # rows of x, up to which torch's own product is faster
ALIGNED = 32  # torch's product reads beyond the end of weights whose widths are no multiple of it


class Int8Linear(QuantizedLinear):
    """W = scale · values, with values (O, I) int8 and scale (O,) fp32: a row's largest value is exact.

    Only the weight is rounded, never x, unlike in LLM.int8() (arXiv:2208.07339), whose outliers cost more than the
    products save where the processor has fast ones of 16 bits.
    """

    quantization: ClassVar[str] = "int8"

    values: Tensor
    scale: Tensor

    def __init__(self, weight_OI: Tensor, bias: nn.Parameter | None, transposed: bool, samples: Tensor):
        super().__init__(weight_OI, bias, transposed, samples)
        scale = weight_OI.abs().amax(1).float() / LARGEST
        rounded = weight_OI.float() / scale.clamp_min(torch.finfo(torch.float32).tiny)[:, None]
        self.register_buffer("values", rounded.round_().to(torch.int8))
        self.register_buffer("scale", scale)

    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:
        return (self.values * self.scale[:, None]).to(dtype or self.dtype)

    def product(self, x: Tensor) -> Tensor:
        """x (…, I) to scale · (x valuesᵀ): the integers are exact in every precision.

        In fp16 their sums overflow and small gradients times a scale underflow, so W is multiplied by its scale first.
        """
        if self._by_torch(x):
            rows = x.reshape(-1, self.in_features).contiguous()
            scale = self.scale.to(x.dtype)
            return torch.ops.aten._weight_int8pack_mm(rows, self.values, scale).view(*x.shape[:-1], self.out_features)
        if x.dtype == torch.float16:
            return super().product(x)
        return (F.linear(x, self.values.to(x.dtype)) * self.scale).to(x.dtype)

    def backward_product(self, y: Tensor) -> Tensor:
        if y.dtype == torch.float16:
            return super().backward_product(y)
        return (y * self.scale).to(y.dtype) @ self.values.to(y.dtype)

    def _by_torch(self, x: Tensor) -> bool:
        """Whether torch's int8 product can take x and is faster: a few tokens in bf16 on a CPU."""
        few = x.device.type == "cpu" and x.dtype == torch.bfloat16 and 0 < x.numel() <= FEW * self.in_features
        return few and self.in_features % ALIGNED == 0 and self.out_features % ALIGNED == 0
