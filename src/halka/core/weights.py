"""Tensors that stand in for a base's parameters for a while; the parameters themselves are set aside untouched."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class StandIns:
    """Full fine-tuning computes with these, and so does a base with an adapter merged into it."""

    def __init__(self, base: nn.Module):
        self._own: dict[tuple[nn.Module, str], nn.Parameter | None] = {}
        self._places: dict[str, tuple[nn.Module, str]] = {}
        for path, module in base.named_modules():
            for key, parameter in module._parameters.items():
                if parameter is not None:
                    self._places[f"{path}.{key}" if path else key] = (module, key)
        self._tied: dict[str, list[str]] = defaultdict(list)
        names = {id(parameter): name for name, parameter in base.named_parameters()}
        for place, (module, key) in self._places.items():
            self._tied[names[id(module._parameters[key])]].append(place)

    def put(self, weights: Mapping[str, Tensor], *, tied: bool = True) -> None:
        """Compute with `weights`, by the base's names for its parameters, until `restore`.

        Tied parameters have several places: all of them take the new tensor, or only the one that is named.
        """
        for name, tensor in weights.items():
            for place in self._tied[name] if tied else [name]:
                module, key = self._places[place]
                self._own.setdefault((module, key), module._parameters[key])
                module._parameters[key] = tensor  # type: ignore[assignment]

    @contextmanager
    def cast(self, dtype: torch.dtype, weights: Mapping[str, Tensor]) -> Iterator[None]:
        """Within the block what computes now, own or standing in, computes in `dtype`; packed weights stay.

        `weights` take their places' own values' place, what is tied by its several names.
        """
        now = [(module, key, module._parameters[key]) for module, key in self._places.values()]
        wider: dict[int, nn.Parameter] = {}  # by the tensor's identity: what is tied stays so
        try:
            for place, (module, key, own) in zip(self._places, now, strict=True):
                tensor = weights.get(place, own)
                if tensor is not None and tensor.is_floating_point():
                    if id(tensor) not in wider:
                        wider[id(tensor)] = nn.Parameter(tensor.detach().to(dtype), requires_grad=False)
                    module._parameters[key] = wider[id(tensor)]
            yield
        finally:
            for module, key, tensor in now:
                module._parameters[key] = tensor

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Within the block the base has its own parameters."""
        standing = [(module, key, module._parameters[key]) for module, key in self._own]
        own = dict(self._own)
        self.restore()
        try:
            yield
        finally:
            for module, key, tensor in standing:
                module._parameters[key] = tensor
            self._own = own

    def restore(self) -> None:
        """Put the base's own parameters back."""
        for (module, key), parameter in self._own.items():
            module._parameters[key] = parameter
        self._own.clear()
