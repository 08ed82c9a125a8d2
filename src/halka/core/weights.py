"""Tensors that stand in for a base's parameters for a while; the parameters themselves are set aside untouched."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from torch import Tensor, nn


class StandIns:
    """Full fine-tuning computes with these, and so does a base with an adapter merged into it."""

    def __init__(self, base: nn.Module):
        self._own: dict[tuple[nn.Module, str], nn.Parameter | None] = {}
        names = {id(parameter): name for name, parameter in base.named_parameters()}
        self._places: dict[str, list[tuple[nn.Module, str]]] = defaultdict(list)  # tied parameters have several
        for module in base.modules():
            for key, parameter in module._parameters.items():
                if parameter is not None:
                    self._places[names[id(parameter)]].append((module, key))

    def put(self, weights: Mapping[str, Tensor]) -> None:
        """Compute with `weights`, by the base's names for its parameters, until `restore`."""
        for name, tensor in weights.items():
            for module, key in self._places[name]:
                self._own.setdefault((module, key), module._parameters[key])
                module._parameters[key] = tensor  # type: ignore[assignment]

    def restore(self) -> None:
        """Put the base's own parameters back."""
        for (module, key), parameter in self._own.items():
            module._parameters[key] = parameter
        self._own.clear()
