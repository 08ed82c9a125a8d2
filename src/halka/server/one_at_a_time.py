"""`OneAtATime`: what takes much memory is done one at a time, and nobody waits for long."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TypeVar

from anyio import CapacityLimiter, fail_after, to_thread

from halka.server.errors import ApiError

T = TypeVar("T")
WAITING, EACH = 8, 2  # calls that may wait for their turn; of one tenant at once
TIMEOUT = 120.0  # seconds to wait: with as many for the work itself, less than a request's `timeout`


class OneAtATime:
    """Runs functions in a thread, one at a time; more calls wait: so many, so many of a tenant, so long."""

    def __init__(self, timeout: float = TIMEOUT):
        self._timeout, self._turn, self._thread = timeout, CapacityLimiter(1), CapacityLimiter(1)
        self._under_way = Counter[str]()

    async def __call__(self, tenant: str, function: Callable[..., T], *arguments: object) -> T:
        """What a function returns that blocks. Raises ApiError, 429, where many wait, or one would wait for long."""
        if self._turn.statistics().tasks_waiting >= WAITING or self._under_way[tenant] >= EACH:
            raise _busy()
        self._under_way[tenant] += 1
        try:
            try:
                with fail_after(self._timeout):
                    await self._turn.acquire()
            except TimeoutError:
                raise _busy() from None
            try:
                return await to_thread.run_sync(function, *arguments, limiter=self._thread)
            finally:
                self._turn.release()
        finally:
            self._under_way[tenant] -= 1


def _busy() -> ApiError:
    return ApiError(429, "other data is being read: try again", code="busy", headers={"retry-after": "10"})
