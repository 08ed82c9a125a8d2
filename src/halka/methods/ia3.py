"""(IA)³: learned factors on keys, values and the MLP's inner activations (Liu et al. 2022, arXiv:2205.05638)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from halka.core import ROLE_GROUPS, WEIGHT_ROLES, ModulePart, Part, Target, wants
from halka.methods._checks import linear_layer, weight_roles
from halka.methods._fields import method, option
from halka.util.errors import HalkaError


@method
class IA3:
    name: ClassVar[str] = "ia3"
    plain: ClassVar[str] = "Learns to turn single channels up or down: a tiny file, for a change of style."
    paper: ClassVar[str] = "Liu et al. 2022, arXiv:2205.05638"
    lr: ClassVar[float] = 1.5e-2

    targets: tuple[str, ...] = option(
        default=("attn.kv", "mlp.down"),
        help="roles that are scaled, most of them at their output (of the fused attn.qkv the queries too)",
        check=weight_roles,
    )
    feedforward: tuple[str, ...] = option(
        default=("mlp.down", "experts.down"),
        help="those of the roles that are scaled at their input",
        check=lambda name, roles: weight_roles(name, roles) if roles else None,
    )

    def __post_init__(self) -> None:
        scaled = _members(*self.targets)
        lost = [role for role in self.feedforward if scaled.isdisjoint(_members(role))]
        by_role = scaled | _members(*lost) <= {*WEIGHT_ROLES}  # a path may be of any role
        if lost and by_role and self.feedforward != IA3.feedforward:
            raise HalkaError(f"ia3: feedforward names {', '.join(lost)}, which targets lacks: name them in both")

    def roles(self) -> tuple[str, ...]:
        return self.targets

    def build(self, target: Target) -> Part:
        linear_layer("ia3", target, experts=True)
        if wants(self.feedforward, target):
            return InputScale(*target.experts, target.d_in)
        return OutputScale(*target.experts, target.d_out)


def _members(*roles: str) -> set[str]:
    return {member for role in roles for member in ROLE_GROUPS.get(role, (role,))}


class Scale(ModulePart):
    """Factors `ia3_l`, (O,) or (I,), of experts (E, …), which start at one: y stays y."""

    operands = ("ia3_l",)

    def __init__(self, *shape: int):
        super().__init__()
        self.ia3_l = nn.Parameter(torch.ones(shape))


class OutputScale(Scale):
    """y · l."""

    def edit_output(self, x: Tensor, y: Tensor, *tensors: Tensor) -> Tensor:
        (factors,) = tensors
        return y * factors

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return weight * self.ia3_l[..., None], None if bias is None else bias * self.ia3_l


class InputScale(Scale):
    """x · l, before the module."""

    edits = "input"

    def edit_input(self, x: Tensor, *tensors: Tensor) -> Tensor:
        (factors,) = tensors
        return x * factors

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return weight * self.ia3_l[..., None, :], bias
