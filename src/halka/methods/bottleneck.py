"""Bottleneck adapters: a small network after a sublayer, y + U·σ(D·y).

After attention and MLP: Houlsby et al. 2019, arXiv:1902.00751. After the MLP alone: Pfeiffer et al. 2021,
arXiv:2005.00247 (`targets=("mlp",)`). Beside a sublayer, reading its input: He et al. 2022, arXiv:2110.04366
(`reads="input"`).
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from halka.core import Part, Target, linear
from halka.methods._checks import finite, fraction, whole
from halka.methods.lora import padded

ACTIVATIONS = {"relu": F.relu, "gelu": F.gelu, "silu": F.silu, "tanh": torch.tanh}


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
    reads: str = field(default="output", metadata={"help": "the sublayer's output (serial) or input (parallel)"})
    scale: float = field(default=1.0, metadata={"help": "factor on what is added"})
    dropout: float = field(default=0.0, metadata={"help": "dropout on the bottleneck while training"})

    def __post_init__(self) -> None:
        if self.width is not None:
            whole("bottleneck", width=self.width)
        finite("bottleneck", scale=self.scale)
        fraction("bottleneck", dropout=self.dropout)
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"bottleneck: activation is one of {', '.join(ACTIVATIONS)}, not {self.activation!r}")
        if self.reads not in ("output", "input"):
            raise ValueError(f"bottleneck: it reads the sublayer's 'output' or 'input', not {self.reads!r}")
        if not set(self.targets) <= {"attn", "mlp"}:
            raise ValueError(f"bottleneck: targets are 'attn' and 'mlp', not {', '.join(self.targets)}")

    def roles(self) -> tuple[str, ...]:
        return self.targets

    def build(self, target: Target) -> Part:
        return BottleneckPart(target, self)


class BottleneckPart(Part):
    """`down` (R, D) with bias, `up` (D, R) with bias. Up starts at zero, so y stays y."""

    def __init__(self, target: Target, method: Bottleneck):
        super().__init__()
        self.method = method
        d_in = target.d_out if method.reads == "output" else target.d_in
        width = method.width or max(1, target.d_out // 16)
        self.down = nn.Linear(d_in, width)
        self.up = nn.Linear(width, target.d_out)
        nn.init.normal_(self.down.weight, std=0.02)
        nn.init.zeros_(self.down.bias)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def operands(self, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """Down (R, D), its bias (R,), up (D, R) and its bias (D,), both with the scale; R is padded for compute."""
        down, up = padded(self.down.weight, self.up.weight, dtype)
        bias = F.pad(self.down.bias.to(dtype), (0, down.shape[0] - self.down.bias.shape[0]))
        return down, bias, up * self.method.scale, self.up.bias.to(dtype) * self.method.scale

    def writes(self, x: Tensor, y: Tensor, *operands: Tensor) -> Tensor:
        down, down_bias, up, up_bias = operands
        read = y if self.method.reads == "output" else x
        middle = ACTIVATIONS[self.method.activation](linear(read, down, down_bias))
        return y + linear(F.dropout(middle, self.method.dropout, self.training), up, up_bias)

    def kin(self) -> Hashable:
        return self.method.activation, self.method.reads, self.method.dropout if self.training else 0.0
