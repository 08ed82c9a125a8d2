"""Products of bf16 tensors that are computed in float32, for processors that are slower in bf16.

Some take longer for a product in bf16 than in float32, by more than it takes to widen the numbers
(`util.precision.slow_in_bfloat16`). Tensors stay in bf16: a block of a weight at a time is widened. The numbers are the
same up to the order of their sums, since both ways add in float32 and round the result to bf16.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from halka.util.precision import slow_in_bfloat16

BLOCK = 2**21  # weights that are in float32 at once
MOST = 16  # blocks of a weight; of a very large one more is in float32 at once, still little beside it
FEWEST = 64  # rows of an input, below which it takes longer to widen the weights than that saves


def pays(x: Tensor, weight: Tensor) -> bool:
    """Whether x (…, I) times a weight (O, I) is computed sooner so, where this machine computes it."""
    return fits(x, weight) and slow_in_bfloat16(x.device)


def fits(x: Tensor, weight: Tensor) -> bool:
    """Whether such a product, both in bf16 on a processor, has rows enough; none in a compiled graph or autocast."""
    if torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"):
        return False
    return bf16_on_cpu(x) and bf16_on_cpu(weight) and x.shape[:-1].numel() >= FEWEST


def bf16_on_cpu(tensor: Tensor) -> bool:
    return tensor.dtype == torch.bfloat16 and tensor.device.type == "cpu"


def linear_in_float32(x: Tensor, weight: Tensor, bias: Tensor | None = None, plus: Tensor | None = None) -> Tensor:
    """plus + F.linear(x, weight, bias), rounded once: x (…, I), weight (O, I), bias (O,), plus (…, O)."""
    return _Linear.apply(x, weight, bias, plus)  # type: ignore[return-value]


def product_in_float32(
    x: Tensor,
    weight: Tensor,
    y: Tensor,
    *,
    scale: Tensor | None = None,
    bias: Tensor | None = None,
    plus: Tensor | None = None,
) -> None:
    """Set y (…, O) to x (…, I) times a weight (O, I) of any dtype, times its scale (O,), plus bias (O,) and `plus`."""
    wide = x.float()
    for block in _blocks(weight):
        product = F.linear(wide, weight[block].float())
        if scale is not None:
            product *= scale[block]
        if bias is not None:
            product += bias[block]
        if plus is not None:
            product += plus[..., block]
        y[..., block] = product


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, plus: Tensor | None) -> Tensor:
        ctx.save_for_backward(x if weight.requires_grad else None, weight)
        y = x.new_empty(*x.shape[:-1], len(weight))
        product_in_float32(x, weight, y, bias=bias, plus=plus)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias, of_plus = ctx.needs_input_grad
        wide = dy.flatten(0, -2).float()
        dx = wide.new_zeros(len(wide), weight.shape[1]) if of_x else None
        dweight, x = (torch.empty_like(weight), x.flatten(0, -2).float()) if of_weight else (None, None)
        for block in _blocks(weight):
            if dx is not None:
                dx.addmm_(wide[:, block], weight[block].float())
            if dweight is not None and x is not None:
                dweight[block] = wide[:, block].T @ x
        dx = None if dx is None else dx.to(dy.dtype).view(*dy.shape[:-1], -1)
        return dx, dweight, wide.sum(0).to(dy.dtype) if of_bias else None, dy if of_plus else None


def _blocks(weight: Tensor) -> list[slice]:
    """The rows of a weight that are in float32 at once."""
    rows = max(1, BLOCK // weight.shape[1], math.ceil(len(weight) / MOST))
    return [slice(start, start + rows) for start in range(0, len(weight), rows)]
