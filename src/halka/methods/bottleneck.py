"""Bottleneck adapters: a small network after a sublayer, y + U·σ(D·y).

After attention and MLP: Houlsby et al. 2019, arXiv:1902.00751. After the MLP alone, reading what its block hands on:
Pfeiffer et al. 2021, arXiv:2005.00247 (`targets=("mlp",), reads="sum"`). Beside a sublayer, reading its input or the
residual before the norm: He et al. 2022, arXiv:2110.04366 (`reads="input"`, `reads="residual"`).
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from halka.core import Part, Target, linear
from halka.methods._checks import finite, fraction, one_of, whole
from halka.methods.lora import padded
from halka.util.errors import HalkaError

ACTIVATIONS = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "silu": F.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "leaky_relu": F.leaky_relu,
    "relu6": F.relu6,
    "mish": F.mish,
    "none": lambda x: x,
}
READS = ("output", "input", "residual", "sum")
SCALINGS = ("fixed", "learned", "channel")


@dataclass(frozen=True)
class Bottleneck:
    name: ClassVar[str] = "bottleneck"
    paper: ClassVar[str] = "Houlsby et al. 2019, arXiv:1902.00751; Pfeiffer et al. 2021, arXiv:2005.00247"
    lr: ClassVar[float] = 1e-3

    width: int | None = field(
        default=None, metadata={"help": "width of the bottleneck; hidden width / 16 if not given"}
    )
    activation: str = field(default="relu", metadata={"help": f"one of {', '.join(ACTIVATIONS)}"})
    targets: tuple[str, ...] = field(
        default=("attn", "mlp"), metadata={"help": "sublayers: attn and mlp (Houlsby), mlp alone (Pfeiffer)"}
    )
    reads: str = field(
        default="output",
        metadata={
            "help": "the sublayer's output (serial), input or residual (parallel), or their sum, as its block ends"
        },
    )
    scale: float = field(default=1.0, metadata={"help": "factor on what is added"})
    scaling: str = field(
        default="fixed", metadata={"help": "the factor: fixed, learned from there, or learned for each channel"}
    )
    dropout: float = field(default=0.0, metadata={"help": "dropout on the bottleneck while training"})
    widths: tuple[int, ...] = field(
        default=(), metadata={"help": "the bottleneck's width in each layer instead; 0 leaves a layer out"}
    )

    def __post_init__(self) -> None:
        if self.width is not None:
            whole(self.name, width=self.width)
        finite(self.name, scale=self.scale)
        fraction(self.name, dropout=self.dropout)
        one_of(self.name, activation=(self.activation, ACTIVATIONS), reads=(self.reads, READS))
        one_of(self.name, scaling=(self.scaling, SCALINGS))
        if not set(self.targets) <= {"attn", "mlp"}:
            raise HalkaError(f"{self.name}: targets are 'attn' and 'mlp', not {', '.join(self.targets)}")
        if self.widths and (not _numbers(self.widths) or self.width is not None):
            raise HalkaError(f"{self.name}: give one width above 0, or widths of 0 and more for each layer, not both")

    def roles(self) -> tuple[str, ...]:
        beside = self.reads in ("residual", "sum")
        return tuple(f"{each}.residual" for each in self.targets) if beside else self.targets

    def build(self, target: Target) -> Part | None:
        return BottleneckPart(target, self) if self.width_at(target) else None

    def width_at(self, target: Target) -> int:
        """The bottleneck's width there. Raises ValueError for a layer that has none among `widths`."""
        if not self.widths:
            return self.width or max(1, target.d_out // 16)
        assert target.layer is not None
        if target.layer >= len(self.widths):
            raise HalkaError(f"{self.name}: widths has {len(self.widths)} layers, and this base has more")
        return self.widths[target.layer]


def _numbers(widths: tuple[int, ...]) -> bool:
    return all(type(each) is int and each >= 0 for each in widths)


class BottleneckPart(Part):
    """`down` (R, D) with bias, `up` (D, R) with bias. Up starts at zero, so y stays y.

    A learned factor is `factor`, (1,) or of each channel (D,), which starts as the fixed one.
    """

    def __init__(self, target: Target, method: Bottleneck):
        super().__init__()
        self.method, self.layer = method, target.layer
        d_in = target.d_out if method.reads == "output" else target.d_in
        width = method.width_at(target)
        self._norm = (target.norm,)  # in a tuple, so that the base is no submodule of its part
        self.down = nn.Linear(d_in, width)
        self.up = nn.Linear(width, target.d_out)
        nn.init.normal_(self.down.weight, std=0.02)
        nn.init.zeros_(self.down.bias)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)
        if method.scaling != "fixed":
            size = target.d_out if method.scaling == "channel" else 1
            self.factor = nn.Parameter(torch.full((size,), method.scale))

    def meet(self, others: Mapping[str, Part]) -> None:
        """Raises ValueError for widths of layers that the base does not have."""
        alike = (each for each in others.values() if isinstance(each, BottleneckPart) and each.method == self.method)
        built = {each.layer for each in alike}
        if more := [layer for layer, width in enumerate(self.method.widths) if width and layer not in built]:
            raise HalkaError(f"{self.method.name}: widths names layer {more[0]}, which this base does not have")

    def operands(self, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """Down (R, D), its bias (R,), up (D, R) and its bias (D,), both with the scale; R is padded for compute."""
        down, up = padded(self.down.weight, self.up.weight, dtype)
        bias = F.pad(self.down.bias.to(dtype), (0, down.shape[0] - self.down.bias.shape[0]))
        if self.method.scaling == "fixed":
            return down, bias, up * self.method.scale, self.up.bias.to(dtype) * self.method.scale
        factor = self.factor.to(dtype)
        return down, bias, up * factor[:, None], self.up.bias.to(dtype) * factor

    def writes(self, x: Tensor, y: Tensor, *operands: Tensor) -> Tensor:
        return y + self.added(self.read(x, y), *operands)

    def read(self, x: Tensor, y: Tensor) -> Tensor:
        """What the bottleneck reads (B, T, D); of a sum, what the base's norm makes of it, if one stands there."""
        if self.method.reads != "sum":
            return y if self.method.reads == "output" else x
        (norm,) = self._norm
        return x + y if norm is None else norm.forward(x + y)

    def added(self, read: Tensor, down: Tensor, down_bias: Tensor, up: Tensor, up_bias: Tensor) -> Tensor:
        """s·U·σ(D·read), with dropout in between while training."""
        middle = ACTIVATIONS[self.method.activation](linear(read, down, down_bias))
        return linear(F.dropout(middle, self.method.dropout, self.training), up, up_bias)

    def kin(self) -> Hashable:
        return self.method.activation, self.method.reads, self.method.dropout if self.training else 0.0
