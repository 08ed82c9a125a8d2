"""`own_hook`: a hook of one module, which does nothing at the copies that are made of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn


def own_hook(module: nn.Module, hook: Callable[..., Any]) -> Callable[..., Any]:
    """A forward hook that calls `hook` where `module` itself is called.

    `copy.deepcopy` copies a module's hooks as they are, with nothing of what is behind them: those of an adapted base
    would act on its copy, of which a reference model is made, as if that had the adapters, too.
    """

    def at_module(called: nn.Module, *arguments: Any) -> Any:
        return hook(called, *arguments) if called is module else None

    return at_module
