"""`ParameterSwap`: tensors in the place of a module's parameters, which are set aside untouched."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn


class ParameterSwap:
    """Full fine-tuning computes with tensors swapped in, and so does a base with an adapter merged into it."""

    def __init__(self, base: nn.Module):
        self._own: dict[tuple[nn.Module, str], nn.Parameter | None] = {}  # by their places
        self._places: dict[str, tuple[nn.Module, str]] = {}
        self._tied: dict[str, list[tuple[nn.Module, str]]] = defaultdict(list)  # by the first name of a parameter
        first: dict[int, str] = {}
        for name, parameter in base.named_parameters(remove_duplicate=False):
            path, _, key = name.rpartition(".")
            self._places[name] = base.get_submodule(path), key
            self._tied[first.setdefault(id(parameter), name)].append(self._places[name])

    def swap_in(self, weights: Mapping[str, Tensor], *, tied: bool = True) -> None:
        """Compute with `weights`, by the base's names for its parameters, until `restore`.

        Tied parameters have several places: all of them take the new tensor, or only the one that is named.
        """
        for name, tensor in weights.items():
            for module, key in self._tied[name] if tied else [self._places[name]]:
                self._own.setdefault((module, key), module._parameters[key])
                module._parameters[key] = tensor  # type: ignore[assignment]

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
