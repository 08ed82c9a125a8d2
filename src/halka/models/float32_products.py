"""Linear layers of a bf16 base by products in float32, on a processor that is faster in these."""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from halka.util.float32_linear import bf16_on_cpu, fits, linear_in_float32
from halka.util.forwards import computed_by, with_own_forward
from halka.util.precision import slow_in_bfloat16


def float32_products(base: nn.Module, *, anywhere: bool = False) -> AbstractContextManager[None]:
    """Within the block the base's linear layers compute so where this processor is slow in bf16, or `anywhere`."""
    if not (anywhere or slow_in_bfloat16(next(base.parameters()).device)):
        return computed_by({})
    linears = (module for module in with_own_forward(base) if type(module) is nn.Linear)
    return computed_by({module: partial(_linear, module) for module in linears if bf16_on_cpu(module.weight)})


def _linear(module: nn.Linear, x: Tensor) -> Tensor:
    own = module.weight, module.bias
    return linear_in_float32(x, *own) if fits(x, module.weight) else F.linear(x, *own)
