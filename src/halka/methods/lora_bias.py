"""LoRA whose product has a bias of its own, y + s·(B·A x + b): peft's `lora_bias`, and its trained biases."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from halka.core import Part, Target, init_parameter
from halka.methods._checks import ROLES_HELP, factor, fraction, linear_layer, positive_int, weight_roles
from halka.methods._fields import method, option
from halka.methods.lora import ALPHA, ALPHA_HELP, LoRA, LoRAPart
from halka.util.errors import HalkaError


def _roles(name: str, targets: tuple[str, ...] | str) -> None:
    if "embedding" in targets:
        raise HalkaError("lora_bias: an embedding has no bias: give it a LoRA, joined with this method by halka.Joint")
    weight_roles(name, targets)


@method
class LoRABias:
    name: ClassVar[str] = "lora_bias"
    plain: ClassVar[str] = "LoRA that learns offsets, too, as some files from peft have them."
    paper: ClassVar[str] = "Hu et al. 2021, arXiv:2106.09685, with a bias as BitFit's (arXiv:2106.10199)"
    lr: ClassVar[float] = 1e-3

    rank: int = option(default=16, help="rank r of the product", check=positive_int)
    alpha: float | None = option(default=ALPHA, help=ALPHA_HELP, check=factor)
    dropout: float = option(default=0.0, help="dropout on the product's input while training", check=fraction)
    targets: tuple[str, ...] = option(default=("linear",), help=ROLES_HELP, check=_roles)
    scaling: Literal["rank", "root"] = option(default="rank", help="α/r (rank), or α/√r (root)")

    def as_lora(self) -> LoRA:
        """The LoRA without its bias."""
        return LoRA(self.rank, self.alpha, self.dropout, self.targets, self.scaling)

    def roles(self) -> tuple[str, ...]:
        return self.targets

    def build(self, target: Target) -> Part:
        linear_layer("lora_bias", target, experts=True)
        return LoRABiasPart(target, self.rank, self.as_lora().scale, self.dropout)


class LoRABiasPart(LoRAPart):
    """`lora_A` (R, I), `lora_B` (O, R) and `bias` (O,), which starts at zero as B does: y stays y."""

    def __init__(self, target: Target, rank: int, scale: float, dropout: float):
        super().__init__(target, rank, scale, dropout)
        self.bias = init_parameter(torch.empty(*target.experts, target.d_out), torch.nn.init.zeros_)

    def tensors(self, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """LoRA's two, and s·b (O,)."""
        return *super().tensors(dtype), self.bias.to(dtype) * self.scale

    def edit_output(self, x: Tensor, y: Tensor, *tensors: Tensor) -> Tensor:
        A_RI, B_OR, offset = tensors
        return y + self.product(x, A_RI, B_OR) + offset

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        offset = self.bias * self.scale
        return weight + self.delta(), offset if bias is None else bias + offset
