"""glibc's arenas: the heaps that malloc keeps for a process's threads, by default up to eight for each core."""

from __future__ import annotations

import ctypes
import os
import sys

ARENAS = 1
_ARENA_MAX = -8  # glibc's malloc.h


def bound_arenas(most: int = ARENAS) -> None:
    """Let all threads share so many arenas; those that there are already stay.

    A thread that frees memory gives it to the arena that it came from, where only that arena's threads find it again:
    with many threads that come and go every arena grows to the most that any of them ever needed. What the environment
    sets is left alone.
    """
    if sys.platform != "linux" or os.environ.keys() & {"MALLOC_ARENA_MAX", "GLIBC_TUNABLES"}:
        return
    if (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)) is not None:
        mallopt(_ARENA_MAX, most)
