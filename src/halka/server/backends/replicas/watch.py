"""`Watch`: looks at what the replicas hold, every few seconds, and ends the waiting for one that hangs.

One hangs that has said nothing, neither of itself nor to a call, for some looks, or that says its engine makes no step.
While all hang nobody is better off elsewhere: then requests wait, and go on where they are if that was wrong.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from anyio import to_thread

from halka.server.backends.replicas.channel import TIMEOUT, Channel
from halka.server.backends.replicas.placement import Placed, Placement
from halka.server.backends.replicas.wire import Hangs, Lost

LOOK = 5.0  # seconds between looks at what the replicas hold
BETWEEN = 1.0  # seconds between two that were asked for
log = logging.getLogger("halka.server")


class Watch:
    """What replicas say of themselves, beside their replies: which are new, gone or hang, and what was evicted.

    reached  whether one could be asked at the last look
    """

    def __init__(self, channel: Channel, placement: Placement):
        self.channel, self.placement, self.reached = channel, placement, True
        self._looked, self._looking = -math.inf, threading.Lock()
        self._waiting = dict[Placed, asyncio.Timeout]()
        self._began = False  # a replica hangs since a time at which no other did not
        self._loop: asyncio.AbstractEventLoop | None = None
        self._looks: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def waiting(self, placed: Placed) -> AsyncIterator[None]:
        """Within the block a request's replica is waited for. Raises Hangs as soon as that hangs and another does not.

        Who has a request is not certain before its first reply: until then any replica that begins to hang may be it.
        """
        if placed.answered and self.placement.hangs(placed.replica) and self.placement.well:
            raise Hangs("it hangs")
        limit, self._loop = asyncio.timeout(None), asyncio.get_running_loop()
        try:
            async with limit:
                self._waiting[placed] = limit
                self.look_at_times()
                yield
        except TimeoutError:
            if not limit.expired():
                raise
            raise Hangs("it hangs, or had not taken the request when another began to") from None
        finally:
            self._waiting.pop(placed, None)

    def look_at_times(self) -> None:
        """See what the replicas hold, if that was not seen for a while; again while somebody waits, or one hangs."""
        if self._looks is None and (self._waiting or time.monotonic() > self._looked + LOOK):
            self._looks = asyncio.get_running_loop().create_task(self._look())

    def refresh(self, after: float = BETWEEN) -> None:
        """See it now, unless it was seen less than so many seconds ago; meanwhile, where a replica hangs."""
        if time.monotonic() <= self._looked + after:
            return
        if self.placement.hanging and self._loop is not None:
            self._loop.call_soon_threadsafe(self.look_at_times)
        else:
            self.see()

    def see(self) -> None:
        """See it now, unless somebody is about to. It blocks."""
        if not self._looking.acquire(blocking=False):
            return
        try:
            asked = self.placement.moment()
            states = self.channel.states()
            waited = {placed.replica or "" for placed in [*self._waiting] if placed.answered}
            began = self.placement.update(filter(None, states), None not in states, waited, asked)
            self.reached = any(states)
            if self._loop is not None and (began or self.placement.hanging):
                self._loop.call_soon_threadsafe(self._end, began)
        except Lost as error:
            self.reached = False
            log.warning("the replicas cannot be asked", extra={"fields": {"reason": str(error)}})
        except Exception:
            self.reached = False
            log.exception("the replicas cannot be seen")
        finally:
            self._looked = time.monotonic()
            self._looking.release()

    async def aclose(self) -> None:
        """Look no more; waits for a look that is under way."""
        if self._looks is not None:
            self._looks.cancel()
            await asyncio.gather(self._looks, return_exceptions=True)
        await to_thread.run_sync(partial(self._looking.acquire, timeout=3 * TIMEOUT))

    # ── inside ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def _look(self) -> None:
        try:
            while True:
                if time.monotonic() > self._looked + LOOK:
                    await to_thread.run_sync(self.see)
                if not self._waiting and not self.placement.hanging:
                    return
                await asyncio.sleep(max(BETWEEN, self._looked + LOOK - time.monotonic()))
        finally:
            self._looks = None  # at once: who begins to wait now has others started

    def _end(self, began: bool) -> None:
        """If a replica is well, end the waiting for those that hang, and, where one began to, for whom is uncertain."""
        self._began |= began
        if not self.placement.well:
            return
        began, self._began = self._began, False
        for placed in [*self._waiting]:
            if self.placement.hangs(placed.replica) if placed.answered else began:
                self._waiting.pop(placed).reschedule(0.0)
