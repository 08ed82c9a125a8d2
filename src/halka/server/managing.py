"""`Managing`: runs what requests of managers wait for, such as files and locks, in few threads of its own.

Those who ask share the other threads, so that no number of uploads keeps them from an answer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from anyio import CapacityLimiter, to_thread

T = TypeVar("T")

THREADS = 8


class Managing:
    """Threads for stores, uploads and jobs."""

    def __init__(self) -> None:
        self._limiter = CapacityLimiter(THREADS)

    @property
    def waiting(self) -> int:
        """How many wait for a thread."""
        return self._limiter.statistics().tasks_waiting

    async def __call__(self, function: Callable[..., T], *arguments: object) -> T:
        """What a function returns that blocks, in its turn."""
        return await to_thread.run_sync(function, *arguments, limiter=self._limiter)
