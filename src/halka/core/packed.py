"""Linear layers whose weight is kept in few bits: what they compute, and what a base says of itself with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class Packed(nn.Module):
    """A frozen linear layer y = x Wᵀ + b for the weight W (O, I) that `unpacked` makes of what is kept.

    W is made anew for every product, forward and backward, and let go of at once. What is kept are buffers: there is
    nothing to train. The bias, where there is one, stays the base's own parameter.

    form        as users name it
    dtype       the base's precision, in which W is unpacked if nobody says otherwise
    transposed  the base stores the weight as (I, O), as GPT-2's Conv1D does; W is (O, I) all the same
    samples     of the weight before it was packed, for the base's fingerprint
    """

    form: ClassVar[str]
    bias: Tensor | None
    samples: Tensor

    def __init__(self, weight_OI: Tensor, bias: nn.Parameter | None, transposed: bool, samples: Tensor):
        super().__init__()
        self.out_features, self.in_features = weight_OI.shape
        self.dtype, self.transposed = weight_OI.dtype, transposed
        self.register_parameter("weight", None)  # who asks for it is not told what is no weight
        self.register_parameter("bias", bias)
        self.register_buffer("samples", samples)

    def unpacked(self, dtype: torch.dtype | None = None) -> Tensor:
        """W (O, I)."""
        raise NotImplementedError

    def product(self, x: Tensor) -> Tensor:
        """x (…, I) to x Wᵀ (…, O)."""
        return F.linear(x, self.unpacked(x.dtype))

    def backward_product(self, y: Tensor) -> Tensor:
        """y (…, O) to y W (…, I)."""
        return y @ self.unpacked(y.dtype)

    def forward(self, x: Tensor) -> Tensor:
        y = _Product.apply(x, self) if torch.is_grad_enabled() and x.requires_grad else self.product(x)
        return y if self.bias is None else y + self.bias

    def stored_shape(self) -> tuple[int, int]:
        """The weight's shape in the base before it was packed."""
        out_and_in, in_and_out = (self.out_features, self.in_features), (self.in_features, self.out_features)
        return in_and_out if self.transposed else out_and_in

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Packed:
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
        return f"{self.in_features}, {self.out_features}, {self.form}"


class _Product(torch.autograd.Function):
    """`Packed.product`, of which autograd keeps no weight."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Packed) -> Tensor:
        ctx.layer = layer
        return layer.product(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return ctx.layer.backward_product(gradient), None


def form_of(base: nn.Module) -> str | None:
    """The form that layers of the base are packed in, or None."""
    return next((module.form for module in base.modules() if isinstance(module, Packed)), None)


def count_of(base: nn.Module) -> int:
    """The number of the base's parameters, as many as they were before layers were packed."""
    packed = sum(each.in_features * each.out_features for each in base.modules() if isinstance(each, Packed))
    return packed + sum(parameter.numel() for parameter in base.parameters())


def bytes_of(base: nn.Module) -> int:
    """The bytes that the base's weights take, as they are kept."""
    packed = [buffer for each in base.modules() if isinstance(each, Packed) for buffer in each.buffers(recurse=False)]
    return sum(tensor.numel() * tensor.element_size() for tensor in (*base.parameters(), *packed))
