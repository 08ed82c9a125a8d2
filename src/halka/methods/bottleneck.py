"""Bottleneck adapters: a small network after a sublayer, y + U·σ(D·y).

After attention and MLP: Houlsby et al. 2019, arXiv:1902.00751. After the MLP alone, reading what its block hands on:
Pfeiffer et al. 2021, arXiv:2005.00247 (`targets=("mlp",), reads="sum"`). Beside a sublayer, reading its input or the
residual before the norm: He et al. 2022, arXiv:2110.04366 (`reads="input"`, `reads="residual"`).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from functools import partial
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from halka.core import ModulePart, Part, Target, linear
from halka.methods._checks import factor, fraction, positive_int
from halka.methods._fields import method, option
from halka.methods.lora import padded
from halka.util.errors import HalkaError

Activation = Literal[
    "relu", "gelu", "gelu_tanh", "quick_gelu", "silu", "tanh", "sigmoid", "leaky_relu", "relu6", "mish", "none"
]
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
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


@method
class Bottleneck:
    name: ClassVar[str] = "bottleneck"
    plain: ClassVar[str] = "Puts a small network behind the halves of each layer: strong, and always a part of its own."
    paper: ClassVar[str] = "Houlsby et al. 2019, arXiv:1902.00751; Pfeiffer et al. 2021, arXiv:2005.00247"
    lr: ClassVar[float] = 1e-3

    width: int | None = option(
        default=None, help="width of the bottleneck; hidden width / 16 if not given", check=positive_int
    )
    activation: Activation = option(default="relu", help=f"one of {', '.join(ACTIVATIONS)}")
    targets: tuple[Literal["attn", "mlp"], ...] = option(
        default=("attn", "mlp"), help="sublayers: attn and mlp (Houlsby), mlp alone (Pfeiffer)"
    )
    reads: Literal["output", "input", "residual", "sum"] = option(
        default="output",
        help="the sublayer's output (serial), input or residual (parallel), or their sum, as its block ends",
    )
    scale: float = option(default=1.0, help="factor on what is added", check=factor)
    scaling: Literal["fixed", "learned", "channel"] = option(
        default="fixed", help="the factor: fixed, learned from there, or learned for each channel"
    )
    dropout: float = option(default=0.0, help="dropout on the bottleneck while training", check=fraction)
    widths: tuple[int, ...] = option(
        default=(), help="the bottleneck's width in each layer instead; 0 leaves a layer out"
    )

    def __post_init__(self) -> None:
        if self.widths and (min(self.widths) < 0 or self.width is not None):
            raise HalkaError(f"{self.name}: give one width above 0, or widths of 0 and more for each layer, not both")

    def roles(self) -> tuple[str, ...]:
        residual = self.reads in ("residual", "sum")
        return tuple(f"{sublayer}.residual" for sublayer in self.targets) if residual else self.targets

    def build(self, target: Target) -> Part | None:
        return BottleneckPart(target, self) if self.width_at(target) else None

    def width_at(self, target: Target) -> int:
        """The bottleneck's width at a target. Raises HalkaError if `widths` names fewer layers than the base has."""
        if not self.widths:
            return self.width or max(1, target.d_out // 16)
        assert target.layer is not None
        if target.layer >= len(self.widths):
            raise HalkaError(f"{self.name}: widths has {len(self.widths)} layers, and this base has more")
        return self.widths[target.layer]


class BottleneckPart(ModulePart):
    """`down` (R, D) and `up` (D, R), both with bias. Up starts at zero, so y stays y.

    A learned scale is `factor`, (1,) or one a channel (D,), which starts as the fixed scale.
    """

    operands: tuple[str, ...] = ("down.weight", "down.bias", "up.weight", "up.bias")

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

    def tie_parameters(self, others: Mapping[str, Part]) -> None:
        """Raises HalkaError if `widths` names a layer that the base does not have."""
        bottlenecks = [part for part in others.values() if isinstance(part, BottleneckPart)]
        built = {part.layer for part in bottlenecks if part.method == self.method}
        if more := [layer for layer, width in enumerate(self.method.widths) if width and layer not in built]:
            raise HalkaError(f"{self.method.name}: widths names layer {more[0]}, which this base does not have")

    def tensors(self, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """Down (R, D), its bias (R,), s·up (D, R) and s·its bias (D,), with R padded for compute."""
        own_down, down_bias, own_up, up_bias = (self.cast(name, dtype) for name in self.operands)
        down, up = padded(own_down, own_up)
        bias = F.pad(down_bias, (0, down.shape[0] - down_bias.shape[0]))
        if self.method.scaling == "fixed":
            return down, bias, up, up_bias
        learned = self.factor.to(dtype)
        return down, bias, up * learned[:, None], up_bias * learned

    def scale_of(self, operand: str) -> float:
        fixed = self.method.scaling == "fixed" and operand.startswith("up.")
        return self.method.scale if fixed else 1.0

    def edit_output(self, x: Tensor, y: Tensor, *tensors: Tensor) -> Tensor:
        return y + self.added(self.read(x, y), *tensors)

    def read(self, x: Tensor, y: Tensor) -> Tensor:
        """The bottleneck's input, as wide as x. A sum goes through the base's norm if the base has one there."""
        if self.method.reads != "sum":
            return y if self.method.reads == "output" else x
        (norm,) = self._norm
        return x + y if norm is None else norm.forward(x + y)

    def added(self, read: Tensor, down: Tensor, down_bias: Tensor, up: Tensor, up_bias: Tensor) -> Tensor:
        """s·U·σ(D·read), with dropout in between while training."""
        middle = ACTIVATIONS[self.method.activation](linear(read, down, down_bias))
        return linear(F.dropout(middle, self.method.dropout, self.training), up, up_bias)

    def stack_key(self) -> Hashable | None:
        """The dropout as in `LoRAPart`'s."""
        return self.method.activation, self.method.reads, self.method.dropout if self.training else 0.0
