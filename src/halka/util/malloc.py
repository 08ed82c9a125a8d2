"""Settings of glibc's malloc. Its arenas are the heaps that it keeps for threads, by default up to eight a core."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable

ARENAS = 1
_ARENA_MAX = -8  # glibc's malloc.h


def bound_arenas(most: int = ARENAS) -> None:
    """Let all threads share so many arenas; those that there are already stay.

    A thread that frees memory gives it to the arena that it came from, where only that arena's threads find it again:
    with many threads that come and go every arena grows to the most that any of them ever needed. What the environment
    sets is left alone.
    """
    if (mallopt := mallopt_unless("MALLOC_ARENA_MAX")) is not None:
        mallopt(_ARENA_MAX, most)


def mallopt_unless(*variables: str) -> Callable[[int, int], object] | None:
    """glibc's mallopt(3); None without glibc, or where the environment sets a variable of these or glibc's tunables."""
    if sys.platform != "linux" or os.environ.keys() & {*variables, "GLIBC_TUNABLES"}:
        return None
    return getattr(ctypes.CDLL(None), "mallopt", None)
