"""Tensors in the place of a base's parameters, which are set aside untouched; and those that merging puts there."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from halka.core.parts import Adapter, ModulePart
from halka.core.targets import WEIGHT_ROLES, Quantized
from halka.util.errors import HalkaError

MERGEABLE = (*WEIGHT_ROLES, "attn", "mlp", "embedding")


class ParameterSwap:
    """Full fine-tuning computes with tensors swapped in, and so does a base with an adapter merged into it."""

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

    def swap_in(self, weights: Mapping[str, Tensor], *, tied: bool = True) -> None:
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
        """Within the block what computes now, own or swapped in, computes in `dtype`; quantised weights stay.

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
    def restored(self) -> Iterator[None]:
        """Within the block the base has its own parameters."""
        swapped = [(module, key, module._parameters[key]) for module, key in self._own]
        own = dict(self._own)
        self.restore()
        try:
            yield
        finally:
            for module, key, tensor in swapped:
                module._parameters[key] = tensor
            self._own = own

    def restore(self) -> None:
        """Put the base's own parameters back."""
        for (module, key), parameter in self._own.items():
            module._parameters[key] = parameter
        self._own.clear()


def merged_weights(adapter: Adapter, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """The weights and biases that change where the adapter is inside them, by the base's names for them.

    Computed in fp32 and rounded once, to the precision of each, or all to `dtype`. Raises HalkaError, by name, for a
    part that is no weight's, a bias where the base has none, and a weight that is quantised.
    """
    changed: dict[str, Tensor] = {}  # in fp32: several parts may act on one weight
    own: dict[str, Tensor] = {}
    with torch.no_grad():
        for path, part in adapter.parts.items():
            target = adapter.targets[path]
            mergeable = target.role in MERGEABLE or (target.role == "module" and target.d_in > 0)
            if not mergeable or not target.d_in or not isinstance(part, ModulePart):
                raise HalkaError(f"{adapter.method.name} acts on {target.role}, which is no weight: not mergeable")
            if isinstance(target.module, Quantized):
                raise HalkaError(
                    f"{target.name} is quantised to {target.module.quantization}: what is added would be rounded away "
                    "where it is quantised anew, not mergeable. Use the adapter beside the base, or load the base "
                    "without quantize (halka.load_base), load the adapter there and merge it"
                )
            names = {"weight": target.parameter, "bias": f"{target.name}.bias"}
            for name in names.values():
                if (tensor := getattr(target.module, name.rpartition(".")[2], None)) is not None:
                    own[name] = tensor
                    changed.setdefault(name, tensor.float())
            if names["weight"] not in changed:
                raise HalkaError(f"{adapter.method.name} acts on what a mixture of experts returns: not mergeable")
            weight, bias = changed[names["weight"]], changed.get(names["bias"])
            try:
                new, new_bias = part.merged(weight.T if target.transposed else weight, bias)
            except NotImplementedError as error:
                raise HalkaError(f"{adapter.method.name} cannot be merged: {error}") from None
            if new_bias is not None:
                if bias is None:
                    raise HalkaError(
                        f"{adapter.method.name} adds a bias to {target.name}, which has none: not mergeable"
                    )
                changed[names["bias"]] = new_bias
            changed[names["weight"]] = new.T if target.transposed else new
    return {name: tensor.to(dtype or own[name].dtype).contiguous() for name, tensor in changed.items()}
