"""BitFit: only biases are trained (Ben Zaken et al. 2022, arXiv:2106.10199).

Many bases have no biases, so each linear layer's output gets an offset, which is the same as training its bias. The
norms' biases, which the paper trains too, need none: the linear layers that read a norm can express them.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from halka.core import ModulePart, Part, Target
from halka.methods._checks import ROLES_HELP, linear_layer, weight_roles
from halka.methods._fields import method, option


@method
class BitFit:
    name: ClassVar[str] = "bitfit"
    plain: ClassVar[str] = "Trains only the layers' offsets: a tiny file, for small changes."
    paper: ClassVar[str] = "Ben Zaken et al. 2022, arXiv:2106.10199"
    lr: ClassVar[float] = 5e-3

    targets: tuple[str, ...] = option(default=("linear",), help=ROLES_HELP, check=weight_roles)

    def roles(self) -> tuple[str, ...]:
        return self.targets

    def build(self, target: Target) -> Part:
        linear_layer("bitfit", target, experts=True)
        return Offset(*target.experts, target.d_out)


class Offset(ModulePart):
    """y + b with `bias` (O,), of experts (E, O), which starts at zero: y stays y."""

    operands = ("bias",)

    def __init__(self, *shape: int):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(shape))

    def edit_output(self, x: Tensor, y: Tensor, *tensors: Tensor) -> Tensor:
        (offset,) = tensors
        return y + offset

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return weight, self.bias if bias is None else bias + self.bias
