"""What a module calls its input, and which it was called with: callers name it, or do not."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn


def argument_of(module: nn.Module) -> str:
    """The name of the first argument of the module's `forward`."""
    return next(iter(inspect.signature(module.forward).parameters), "")


def received(args: Sequence[Any], kwargs: Mapping[str, Any], argument: str) -> Tensor:
    """The input of a call with these arguments, where its callers may name it so."""
    return args[0] if args else kwargs[argument]
