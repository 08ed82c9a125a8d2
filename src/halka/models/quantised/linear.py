"""A frozen linear layer whose weight is kept in fewer bits: what it computes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

SAMPLES = 16  # of each weight, for the base's fingerprint


class QuantizedLinear(nn.Module):
    """A frozen linear layer y = x Wᵀ + b for the weight W (O, I) that `dequantize` makes of what is kept.

    W is made anew for every product, forward and backward, and let go of at once. What is kept are buffers: there is
    nothing to train. The bias, where there is one, stays the base's own parameter.

    quantization  the format's name
    dtype         the base's precision, in which W is dequantised if nobody says otherwise
    transposed    the base stores the weight as (I, O), as GPT-2's Conv1D does; W is (O, I) all the same
    samples       of the weight before it was quantised, for the base's fingerprint
    """

    quantization: ClassVar[str]
    bias: Tensor | None
    samples: Tensor

    def __init__(self, weight_OI: Tensor, bias: nn.Parameter | None, transposed: bool, samples: Tensor):
        super().__init__()
        self.out_features, self.in_features = weight_OI.shape
        self.dtype, self.transposed = weight_OI.dtype, transposed
        self.register_parameter("weight", None)  # None: call `dequantize`
        self.register_parameter("bias", bias)
        self.register_buffer("samples", samples)

    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:
        """W (O, I), in `dtype` or the layer's own."""
        raise NotImplementedError

    def product(self, x: Tensor) -> Tensor:
        """x (…, I) to x Wᵀ (…, O)."""
        return F.linear(x, self.dequantize(x.dtype))

    def backward_product(self, y: Tensor) -> Tensor:
        """y (…, O) to y W (…, I)."""
        return y @ self.dequantize(y.dtype)

    def forward(self, x: Tensor) -> Tensor:
        y = _Product.apply(x, self) if torch.is_grad_enabled() and x.requires_grad else self.product(x)
        return y if self.bias is None else y + self.bias

    def stored_shape(self) -> tuple[int, int]:
        """The weight's shape in the base before it was quantised."""
        out_and_in, in_and_out = (self.out_features, self.in_features), (self.in_features, self.out_features)
        return in_and_out if self.transposed else out_and_in

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> QuantizedLinear:
        """Whatever moves the layer moves it all; a cast changes what it computes in, and never what is kept."""
        kept = dict(self._buffers)
        super()._apply(fn, recurse)
        self.dtype = fn(self.samples.new_empty(0, dtype=self.dtype)).dtype
        for name, before in kept.items():
            after = self._buffers[name]
            if before is not None and after is not None and after.dtype != before.dtype:
                self._buffers[name] = before.to(after.device)
        return self

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, {self.quantization}"


class _Product(torch.autograd.Function):
    """`QuantizedLinear.product`, of which autograd keeps no weight."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: QuantizedLinear) -> Tensor:
        ctx.layer = layer
        return layer.product(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return ctx.layer.backward_product(gradient), None


def bytes_of(base: nn.Module) -> int:
    """The bytes that the base's weights take, as they are kept."""
    layers = [module for module in base.modules() if isinstance(module, QuantizedLinear)]
    tensors = (*base.parameters(), *(buffer for layer in layers for buffer in layer.buffers(recurse=False)))
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def samples(weight: Tensor, *casts: torch.dtype) -> Tensor:
    """Evenly spaced values of a weight (SAMPLES,), after these casts: the bits of their bf16, as int16."""
    flat = weight.detach().flatten()
    values = flat[_places(flat.numel()).to(flat.device)]
    for cast in casts:
        values = values.to(cast)
    return values.bfloat16().view(torch.int16)


@functools.lru_cache(maxsize=256)
def _places(count: int) -> Tensor:
    """The places of the samples among that many values."""
    with torch.inference_mode(False):
        return torch.linspace(0, count - 1, SAMPLES, dtype=torch.float64, device="cpu").long()
