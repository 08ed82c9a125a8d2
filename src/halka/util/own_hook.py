"""`OwnHook`: a hook of one module, which does nothing at the copies that are made of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from halka.util.errors import HalkaError


class OwnHook:
    """A forward hook that calls `hook` where `module` itself is called.

    `copy.deepcopy` copies a module with its hooks: those of an adapted base would act on its copy, of which a reference
    model is made, as if that had the adapters, too.
    """

    def __init__(self, module: nn.Module, hook: Callable[..., Any]):
        self._module, self._hook = module, hook

    def __call__(self, module: nn.Module, *arguments: Any) -> Any:
        return self._hook(module, *arguments) if module is self._module else None

    def __deepcopy__(self, memo: object) -> OwnHook:
        return self  # as it is, without a copy of what is behind it

    def __reduce__(self) -> str | tuple[Any, ...]:
        """Raises HalkaError."""
        raise NotPickledError


class NotPickledError(HalkaError):
    """What holds adapters in memory was to be pickled, or an adapted model copied."""

    def __init__(self) -> None:
        super().__init__(
            "a base with adapters, its adapters and its views are neither pickled nor copied: halka.save and "
            "halka.load keep an adapter; copy.deepcopy(model.base) is the bare base"
        )
