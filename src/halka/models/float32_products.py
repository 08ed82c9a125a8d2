"""Linear layers of a bf16 base by products in float32, on a processor that is faster in these.

Some processors take longer for a product in bf16 than in float32, by more than it takes to widen the numbers
(`util.machine.slow_in_bfloat16`). The weights stay in bf16: a block of them at a time is widened. The numbers are the
same up to the order of their sums, since both ways add in float32 and round the result to bf16.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from halka.util.forwards import computed_by, with_own_forward
from halka.util.machine import slow_in_bfloat16

BLOCK = 2**21  # weights that are in float32 at once
FEWEST = 64  # rows of an input, below which it takes longer to widen the weights than that saves


def float32_products(base: nn.Module, *, anywhere: bool = False) -> AbstractContextManager[None]:
    """Within the block the base's linear layers compute so where this processor is slow in bf16, or `anywhere`."""
    if not (anywhere or slow_in_bfloat16(next(base.parameters()).device)):
        return computed_by({})
    linears = (module for module in with_own_forward(base) if type(module) is nn.Linear)
    return computed_by({module: partial(_linear, module) for module in linears if _fit(module.weight)})


def product_in_float32(x: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor | None, y: Tensor) -> None:
    """Set y (…, O) to x (…, I) times a weight (O, I), times its scale (O,), plus the bias (O,), rounded once."""
    wide = x.float()
    for block in _blocks(weight):
        product = F.linear(wide, weight[block].float())
        if scale is not None:
            product *= scale[block]
        if bias is not None:
            product += bias[block]
        y[..., block] = product


def _linear(module: nn.Linear, x: Tensor) -> Tensor:
    if _fit(x, module.weight) and x.shape[:-1].numel() >= FEWEST:
        return _Linear.apply(x, module.weight, module.bias)  # type: ignore[return-value]
    return F.linear(x, module.weight, module.bias)


def _fit(*tensors: Tensor) -> bool:
    return all(tensor.dtype == torch.bfloat16 and tensor.device.type == "cpu" for tensor in tensors)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x if weight.requires_grad else None, weight)
        y = x.new_empty(*x.shape[:-1], len(weight))
        product_in_float32(x, weight, bias, None, y)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        wide = dy.flatten(0, -2).float()
        dx = wide.new_zeros(len(wide), weight.shape[1]) if of_x else None
        dweight, x = (torch.empty_like(weight), x.flatten(0, -2).float()) if of_weight else (None, None)
        for block in _blocks(weight):
            if dx is not None:
                dx.addmm_(wide[:, block], weight[block].float())
            if dweight is not None and x is not None:
                dweight[block] = wide[:, block].T @ x
        dx = None if dx is None else dx.to(dy.dtype).view(*dy.shape[:-1], -1)
        return dx, dweight, wide.sum(0).to(dy.dtype) if of_bias else None


def _blocks(weight: Tensor) -> list[slice]:
    """The rows of a weight that are in float32 at once."""
    rows = max(1, BLOCK // weight.shape[1])
    return [slice(start, start + rows) for start in range(0, len(weight), rows)]
