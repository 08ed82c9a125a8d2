"""`ParameterSwap`: tensors in the place of a module's parameters, which are set aside untouched."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from halka.util.divided import is_divided, part_like
from halka.util.machine import memory_named

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


class ParameterSwap:
    """Full fine-tuning computes with tensors swapped in, and so does a base with an adapter merged into it.

    A parameter that is divided among processes stays, for `fully_shard` gathers what it holds: its values are swapped.
    """

    def __init__(self, base: nn.Module):
        self._own: dict[tuple[nn.Module, str], nn.Parameter | None] = {}  # by their places
        self._values: dict[DTensor, SwappedValues] = {}  # by the divided parameter
        self._places: dict[str, tuple[nn.Module, str]] = {}
        self._tied: dict[str, list[tuple[nn.Module, str]]] = defaultdict(list)  # by the first name of a parameter
        first: dict[int, str] = {}
        for name, parameter in base.named_parameters(remove_duplicate=False):
            path, _, key = name.rpartition(".")
            self._places[name] = base.get_submodule(path), key
            self._tied[first.setdefault(id(parameter), name)].append(self._places[name])

    def swap_in(self, weights: Mapping[str, Tensor], *, tied: bool = True, offload: bool = False) -> None:
        """Compute with `weights`, by the base's names for its parameters, until `restore`.

        Tied parameters have several places: all of them take the new tensor, or only the one that is named.
        offload: what is replaced waits on the CPU, if it has no other place; on a GPU the new tensor has its room.
        """
        for name, tensor in weights.items():
            for module, key in self._tied[name] if tied else [self._places[name]]:
                own = module._parameters[key]
                if is_divided(own):
                    self._swap_values(own, tensor)
                else:
                    if (module, key) not in self._own:
                        alone = offload and len(self._tied.get(name, ())) == 1
                        if own is not None and alone:
                            own = _on(torch.device("cpu"), own.dtype, own)
                        self._own[module, key] = own
                    module._parameters[key] = tensor  # type: ignore[assignment]

    def _swap_values(self, parameter: DTensor, source: Tensor) -> None:
        if parameter not in self._values:
            self._values[parameter] = SwappedValues(parameter, source)
        self._values[parameter].swap_in(source)

    @contextmanager
    def restored(self, *, computing: bool = True) -> Iterator[None]:
        """Within the block the base has its own parameters, where it computes; without `computing` where they wait.

        Raises OutOfMemoryError where a GPU does not hold both; then all is as it was.
        """
        swapped = [(module, key, module._parameters[key]) for module, key in self._own]
        own, sources = dict(self._own), {own: swap.source for own, swap in self._values.items()}
        try:
            with memory_named("the base's own weights do not fit beside those with an adapter merged: `unmerge` first"):
                self.restore(computing=computing)
            yield
        finally:
            for module, key, tensor in swapped:
                module._parameters[key] = tensor
            self._own = own
            for parameter, source in sources.items():
                self._swap_values(parameter, source)

    def restore(self, *, computing: bool = True) -> None:
        """Put the base's own parameters back, where and in the precision in which it computes, or as they are now."""
        for (module, key), parameter in self._own.items():
            there = module._parameters[key] if computing else None
            place = None if there is None else (there.device, there.dtype)
            module._parameters[key] = there = None  # a GPU may not hold both
            module._parameters[key] = parameter if place is None else _on(*place, parameter)
        for swap in self._values.values():
            swap.restore()
        self._own.clear()
        self._values.clear()


def _on(device: torch.device, dtype: torch.dtype, parameter: nn.Parameter | None) -> nn.Parameter | None:
    """The parameter itself if it is on the device in that precision, else one like it there."""
    if parameter is None or (parameter.device == device and parameter.dtype == dtype):
        return parameter
    return nn.Parameter(parameter.detach().to(device, dtype), requires_grad=parameter.requires_grad)


class SwappedValues:
    """Another tensor's values in a frozen parameter that `fully_shard` divides: they are what it gathers.

    The gradient that the parameter gets meanwhile, already the sum of all processes', is the other tensor's.
    """

    @torch.no_grad()
    def __init__(self, parameter: DTensor, source: Tensor):
        self.parameter, self.source = parameter, source
        self._own = parameter.to_local().clone()
        self._handle: RemovableHandle | None = None
        if source.requires_grad:
            parameter.requires_grad_(True)
            self._handle = parameter.register_post_accumulate_grad_hook(self._hand_on)

    @torch.no_grad()
    def swap_in(self, source: Tensor) -> None:
        """Take the values of `source`, which is divided alike or whole, in the parameter's precision."""
        self.source = source
        part = part_like(source, self.parameter)
        self.parameter.to_local().copy_(part.to_local() if is_divided(part) else part)

    @torch.no_grad()
    def restore(self) -> None:
        """Put the parameter's own values back."""
        self.parameter.to_local().copy_(self._own)
        if self._handle is not None:
            self._handle.remove()
            self.parameter.requires_grad_(False)

    @torch.no_grad()
    def _hand_on(self, parameter: Tensor) -> None:
        gradient, parameter.grad = parameter.grad, None
        assert gradient is not None
        gradient = gradient.to(self.source.dtype)
        if self.source.grad is None:
            self.source.grad = gradient
        else:
            self.source.grad += gradient
