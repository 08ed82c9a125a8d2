"""`Pulse`: how long a thread has been in the step that it makes now, beside its longest: whether it stalls."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

FACTOR = 2.0  # times the longest step so far: texts grow, and no step takes twice as long as all before
FIRST = 2.0  # times as long until the first has ended: kernels are compiled in it


class Pulse:
    """Of a thread that makes its steps in blocks of `step`; others ask whether it stalls.

    longest  seconds of the longest step that has ended
    """

    def __init__(self, now: Callable[[], float] = time.monotonic):
        self.longest = 0.0
        self._now = now
        self._since: float | None = None

    @contextmanager
    def step(self) -> Iterator[None]:
        since = self._since = self._now()
        try:
            yield
        finally:
            self._since = None
            self.longest = max(self.longest, self._now() - since)

    def stalls(self, timeout: float) -> bool:
        """Whether a step takes longer than so many seconds, and than those before let expect."""
        since = self._since
        return since is not None and self._now() - since > max(timeout, FACTOR * self.longest)
