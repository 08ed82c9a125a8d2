"""`OwnHook`: a hook of one module, which does nothing at the copies that are made of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn


class OwnHook:
    """A forward hook that calls `hook` where `module` itself is called.

    Copies of a module have its hooks, too: those of an adapted base would act on a copy, such as a reference model, as
    if that had the adapters. So a copy, and what was pickled, has a hook that does nothing and holds nothing.
    """

    def __init__(self, module: nn.Module | None, hook: Callable[..., Any] | None):
        self._module, self._hook = module, hook

    def __call__(self, module: nn.Module, *arguments: Any) -> Any:
        own = module is self._module or getattr(module, "_is_replica", False)  # DataParallel's, which `Turns` refuses
        return self._hook(module, *arguments) if own and self._hook is not None else None

    def __reduce__(self) -> tuple[type[OwnHook], tuple[None, None]]:
        return OwnHook, (None, None)
