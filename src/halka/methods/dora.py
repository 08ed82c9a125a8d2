"""DoRA: LoRA on a weight's direction, with its magnitude trained apart (Liu et al. 2024, arXiv:2402.09353)."""

from __future__ import annotations

from typing import ClassVar, cast

import torch
from torch import Tensor

from halka.core import Part, Target, init_parameter
from halka.methods._checks import ROLES_HELP, factor, fraction, linear_layer, positive_int, weight_roles
from halka.methods._fields import method, option
from halka.methods.lora import ALPHA, ALPHA_HELP, LoRA, LoRAPart

SMALLEST = 1e-12  # of a norm: pruned bases have rows of zeros, whose quotient stays one


@method
class DoRA:
    name: ClassVar[str] = "dora"
    plain: ClassVar[str] = (
        "LoRA that learns each weight's direction and size apart: sometimes a little better, always slower."
    )
    paper: ClassVar[str] = "Liu et al. 2024, arXiv:2402.09353"
    lr: ClassVar[float] = 1e-3

    rank: int = option(default=16, help="rank r of the product", check=positive_int)
    alpha: float | None = option(default=ALPHA, help=ALPHA_HELP, check=factor)
    dropout: float = option(default=0.0, help="dropout on the product's input while training", check=fraction)
    targets: tuple[str, ...] = option(default=("linear",), help=ROLES_HELP, check=weight_roles)

    def as_lora(self) -> LoRA:
        """The LoRA that trains the direction."""
        return LoRA(self.rank, self.alpha, self.dropout, self.targets)

    def roles(self) -> tuple[str, ...]:
        return self.targets

    def build(self, target: Target) -> Part:
        linear_layer("dora", target)
        return DoRAPart(target, self.rank, self.as_lora().scale, self.dropout)


class DoRAPart(LoRAPart):
    """W' = m · (W + s·BA) / ‖W + s·BA‖, norms per output row and, as in the paper, outside the gradient.

    `magnitude` (O,) starts as the base's own norms: the quotient is exactly one, and y stays y.
    """

    def __init__(self, target: Target, rank: int, scale: float, dropout: float):
        super().__init__(target, rank, scale, dropout)
        self._target = target
        with torch.no_grad():
            weight = target.weight()
            norms = torch.empty(target.d_out, device=weight.device)
            self.magnitude = init_parameter(norms, lambda it: it.copy_(self.norms(weight)))

    def norms(self, weight_OI: Tensor) -> Tensor:
        """‖W + s·BA‖ per row (O,), fp32, without forming the sum: ‖W‖² + 2s⟨W, BA⟩ + s²‖BA‖²."""
        A, B = self.lora_A.detach().to(weight_OI.device), self.lora_B.detach().to(weight_OI.device)
        crossed = ((weight_OI @ A.T.to(weight_OI.dtype)).float() * B).sum(1)
        product = ((B @ (A @ A.T)) * B).sum(1)
        squares = _row_norms(weight_OI).square() + 2 * self.scale * crossed + self.scale**2 * product
        return squares.clamp_min(0).sqrt().clamp_min(SMALLEST)

    def tensors(self, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """A and s·B as LoRA has them, the quotient m/‖W + s·BA‖ (O,), and the quotient minus one (O,)."""
        ratio = self.magnitude / self.norms(self._target.weight())
        return *super().tensors(dtype), ratio.to(dtype), (ratio - 1).to(dtype)

    def edit_output(self, x: Tensor, y: Tensor, *tensors: Tensor) -> Tensor:
        A_RI, B_OR, ratio, excess = tensors
        bias = getattr(self._target.module, "bias", None)
        own = y if bias is None else y - bias
        return y + excess * own + ratio * self.product(x, A_RI, B_OR)

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        direction = weight + self.delta()
        norms = _row_norms(direction).clamp_min(SMALLEST)
        return self.magnitude[:, None] * direction / norms[:, None], bias


def _row_norms(weight_OI: Tensor) -> Tensor:
    """‖W‖ per row (O,), summed in fp32 at least."""
    wide = torch.promote_types(weight_OI.dtype, torch.float32)
    return cast(Tensor, torch.linalg.vector_norm(weight_OI, dim=1, dtype=wide))  # pyright: ignore[reportUnknownMemberType]
