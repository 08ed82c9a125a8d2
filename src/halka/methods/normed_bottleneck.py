"""Bottleneck adapters with norms of their own, and others than the sublayer's output kept beside what they add.

Their placements were compared by Pfeiffer et al. 2021, arXiv:2005.00247; AdapterHub's library has them as options.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from halka.core import Part, Target
from halka.methods._checks import one_of
from halka.methods.bottleneck import Bottleneck, BottleneckPart
from halka.util.errors import HalkaError

NORMS = ("before", "after", "outer")
KEEPS = ("output", "sum", "read")


@dataclass(frozen=True)
class NormedBottleneck(Bottleneck):
    name: ClassVar[str] = "normed_bottleneck"
    paper: ClassVar[str] = "Pfeiffer et al. 2021, arXiv:2005.00247"

    norms: tuple[str, ...] = field(
        default=("before",), metadata={"help": "layer norms: before (of what is read), after (of what is added), outer"}
    )
    keeps: str = field(
        default="output", metadata={"help": "what is added to: the output, its sum with the residual, or what was read"}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for each in self.norms:
            one_of(self.name, norms=(each, NORMS))
        one_of(self.name, keeps=(self.keeps, KEEPS))
        if self.keeps == "sum" and self.reads not in ("residual", "sum"):
            raise HalkaError(f"{self.name}: to keep the sum it must read the residual or the sum, not the {self.reads}")
        object.__setattr__(self, "norms", tuple(each for each in NORMS if each in self.norms))

    def build(self, target: Target) -> Part | None:
        return NormedBottleneckPart(target, self) if self.width_at(target) else None


class NormedBottleneckPart(BottleneckPart):
    """outer(kept + after(s·U·σ(D·before(read)))); each norm that the method names, `norm_before` and so on.

    y stays y at the start where the output is kept and there is no outer norm.
    """

    def __init__(self, target: Target, method: NormedBottleneck):
        super().__init__(target, method)
        self.norms, self.keeps = method.norms, method.keeps
        for each in self.norms:
            self.add_module(f"norm_{each}", nn.LayerNorm(self.down.in_features if each == "before" else target.d_out))

    def operands(self, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """The bottleneck's four, and each norm's weight and bias (D,)."""
        own = (self.get_parameter(f"norm_{each}.{key}").to(dtype) for each in self.norms for key in ("weight", "bias"))
        return *super().operands(dtype), *own

    def writes(self, x: Tensor, y: Tensor, *operands: Tensor) -> Tensor:
        own = dict(zip(self.norms, zip(operands[4::2], operands[5::2], strict=True), strict=True))
        read = self.read(x, y)
        added = _normed(self.added(_normed(read, own, "before"), *operands[:4]), own, "after")
        kept = read if self.keeps == "read" else x + y if self.keeps == "sum" else y
        return _normed(kept + added, own, "outer")

    def kin(self) -> Hashable:
        return super().kin(), self.norms, self.keeps


def _normed(z: Tensor, own: dict[str, tuple[Tensor, Tensor]], name: str) -> Tensor:
    """What the norm of that name makes of z (B, T, D), if there is one; its tensors are (D,), or (B, 1, D)."""
    if name not in own:
        return z
    weight, bias = own[name]
    return F.layer_norm(z, z.shape[-1:]) * weight + bias
