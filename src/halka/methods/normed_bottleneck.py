"""Bottleneck adapters with norms of their own, and others than the sublayer's output kept beside what they add.

Their placements were compared by Pfeiffer et al. 2021, arXiv:2005.00247; AdapterHub's library has them as options.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from halka.core import Part, Target
from halka.methods._fields import method, option
from halka.methods.bottleneck import Bottleneck, BottleneckPart
from halka.util.errors import HalkaError

Norm = Literal["before", "after", "outer"]


@method
class NormedBottleneck(Bottleneck):
    name: ClassVar[str] = "normed_bottleneck"
    plain: ClassVar[str] = "Bottlenecks with norms of their own, as files from AdapterHub's library may have them."
    paper: ClassVar[str] = "Pfeiffer et al. 2021, arXiv:2005.00247"

    norms: tuple[Norm, ...] = option(
        default=("before",), help="layer norms: before (of what is read), after (of what is added), outer"
    )
    keeps: Literal["output", "sum", "read"] = option(
        default="output", help="what is added to: the output, its sum with the residual, or what was read"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.keeps == "sum" and self.reads not in ("residual", "sum"):
            raise HalkaError(f"{self.name}: to keep the sum it must read the residual or the sum, not the {self.reads}")
        object.__setattr__(self, "norms", tuple(norm for norm in get_args(Norm) if norm in self.norms))

    def build(self, target: Target) -> Part | None:
        return NormedBottleneckPart(target, self) if self.width_at(target) else None


class NormedBottleneckPart(BottleneckPart):
    """outer(kept + after(s·U·σ(D·before(read)))); each norm that the method names, `norm_before` and so on.

    y stays y at the start if the output is kept and there is no outer norm.
    """

    def __init__(self, target: Target, method: NormedBottleneck):
        super().__init__(target, method)
        self.norms, self.keeps = method.norms, method.keeps
        for norm in self.norms:
            self.add_module(f"norm_{norm}", nn.LayerNorm(self.down.in_features if norm == "before" else target.d_out))

    def tensors(self, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """The bottleneck's four, and each norm's weight and bias (D,)."""
        keys = [f"norm_{norm}.{key}" for norm in self.norms for key in ("weight", "bias")]
        return *super().tensors(dtype), *(self.get_parameter(key).to(dtype) for key in keys)

    def edit_output(self, x: Tensor, y: Tensor, *tensors: Tensor) -> Tensor:
        norms = dict(zip(self.norms, zip(tensors[4::2], tensors[5::2], strict=True), strict=True))
        read = self.read(x, y)
        added = _normed(self.added(_normed(read, norms, "before"), *tensors[:4]), norms, "after")
        kept = read if self.keeps == "read" else x + y if self.keeps == "sum" else y
        return _normed(kept + added, norms, "outer")

    def stack_key(self) -> Hashable | None:
        return super().stack_key(), self.norms, self.keeps


def _normed(z: Tensor, norms: Mapping[Norm, tuple[Tensor, Tensor]], name: Norm) -> Tensor:
    """z (B, T, D) through the norm of that name, if there is one; its weight and bias are (D,), or (B, 1, D)."""
    if name not in norms:
        return z
    weight, bias = norms[name]
    return F.layer_norm(z, z.shape[-1:]) * weight + bias
