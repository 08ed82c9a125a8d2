"""`MustEnter`: a `with` block that warns if it is dropped before a `with` entered it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import TypeVar

T = TypeVar("T")


class MustEnter(AbstractContextManager[T]):
    """A block around another. Dropped without having been entered, it warns of what `warning()` says."""

    def __init__(self, block: AbstractContextManager[T], warning: Callable[[], str]):
        self._block, self._warning, self._entered = block, warning, False

    def __enter__(self) -> T:
        self._entered = True
        return self._block.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        return self._block.__exit__(kind, error, trace)

    def __del__(self) -> None:
        if not self._entered:
            warnings.warn(self._warning(), stacklevel=2)
