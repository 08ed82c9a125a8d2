"""Which of torch's functions are called within a block, seen through torch's own function mode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.overrides import TorchFunctionMode


class torch_calls(TorchFunctionMode):
    """Within `with torch_calls() as calls`, every call of a torch function is recorded and goes on as it would."""

    def __init__(self) -> None:
        super().__init__()
        self._calls: list[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]] = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self._calls.append((function, args, kwargs or {}))
        return function(*args, **(kwargs or {}))

    def of(self, function: Callable[..., Any]) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
        """The arguments of each call of this function."""
        return [(args, kwargs) for called, args, kwargs in self._calls if called is function]
