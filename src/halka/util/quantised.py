"""`Quantized`: what a linear layer in fewer bits shows of itself; and a base's format and number of parameters."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor, nn


@runtime_checkable
class Quantized(Protocol):
    """A linear layer that keeps its weight in fewer bits; its `weight` is None."""

    quantization: str  # the format's name: nf4, int8
    in_features: int
    out_features: int
    transposed: bool  # the base stores it as (I, O)

    def dequantize(self) -> Tensor:
        """The weight (O, I) in the precision that the layer computes in."""
        ...


def quantization_of(base: nn.Module) -> str | None:
    """The format that layers of the base are quantised to, or None."""
    own = (getattr(module, "quantization", None) for module in base.modules())  # a protocol's isinstance is slow
    return next((quantization for quantization in own if quantization is not None), None)


def parameter_count(base: nn.Module) -> int:
    """The number of the base's parameters; a quantised weight counts as many as it stands for."""
    quantised = sum(layer.in_features * layer.out_features for layer in base.modules() if isinstance(layer, Quantized))
    return quantised + sum(parameter.numel() for parameter in base.parameters() if parameter.is_floating_point())
