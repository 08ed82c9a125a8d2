"""Limits of a key: requests and tokens a minute, answers at once, storage. Beyond them it is 429 with Retry-After.

A request takes its tokens before it begins, as many as it may need: its prompts, and every answer at its longest. What
it did not need goes back at its end. So no number of requests, answers (`n`) or prompts gets more than a minute has.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace

from starlette.types import ASGIApp, Receive, Scope, Send

from halka.server.errors import ApiError
from halka.server.guards.keys import Limits
from halka.server.storage import Reservation

MINUTE = 60.0
WRONG, ADDRESSES = 30, 10_000  # wrong keys a minute from one address, and the addresses that are remembered
SOON = 2.0  # seconds after which to try again what waits for others' ends


class Bucket:
    """What is left of a minute's amount; it fills up evenly."""

    def __init__(self, amount: int, clock: Callable[[], float]):
        self.amount, self._clock = amount, clock
        self._left, self._at = float(amount), clock()

    @property
    def left(self) -> float:
        now = self._clock()
        self._left = min(self.amount, self._left + (now - self._at) * self.amount / MINUTE)
        self._at = now
        return self._left

    def wait(self, amount: int) -> float:
        """Seconds until there is as much."""
        return max(0.0, amount - self.left) * MINUTE / self.amount

    def take(self, amount: int) -> None:
        """Take as much; a negative amount goes back."""
        self._left = min(self.amount, self.left - amount)


class Attempts:
    """Counts wrong keys by the address that they come from, up to so many a minute."""

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock, self._buckets = clock, OrderedDict[str, Bucket]()

    def check(self, address: str) -> None:
        """Raises ApiError where too many came from there."""
        bucket = self._buckets.get(address)
        if bucket is not None and (wait := bucket.wait(1)):
            raise _later(f"{bucket.amount} wrong keys a minute is the limit of an address", wait)

    def count(self, address: str) -> None:
        bucket = self._buckets.setdefault(address, Bucket(WRONG, self._clock))
        bucket.take(1)
        self._buckets.move_to_end(address)
        if len(self._buckets) > ADDRESSES:
            self._buckets.popitem(last=False)


class Use:
    """What is done with one key now, and what its minute has left."""

    def __init__(self, limits: Limits, clock: Callable[[], float]):
        self.requests_under_way = self.answers = 0
        self.limits, self._clock = limits, clock
        self.change(limits)

    def change(self, limits: Limits) -> None:
        self.limits = limits
        self.requests = None if limits.requests is None else Bucket(limits.requests, self._clock)
        self.tokens = None if limits.tokens is None else Bucket(limits.tokens, self._clock)


class Limiter:
    """Counts what is done with each key.

    default  the limits of callers whose key has none of its own
    answers  the most answers of all callers at once, those that wait for a row among them
    """

    def __init__(self, default: Limits, answers: int, clock: Callable[[], float] = time.monotonic):
        self.default, self.most, self.answers = default, answers, 0
        self._clock, self._uses = clock, dict[str | None, Use]()

    def limits(self, own: Limits | None) -> Limits:
        """A key's own limits, and the default ones for what it does not say."""
        return replace(
            self.default, **{name: value for name, value in vars(own or Limits()).items() if value is not None}
        )

    def use(self, id: str | None, own: Limits | None) -> Use:
        """What is done with the key of this id."""
        limits = self.limits(own)
        use = self._uses.setdefault(id, Use(limits, self._clock))
        if use.limits != limits:
            use.change(limits)
        return use


class Lease:
    """What one request holds of its key's limits, from `begin` to `end`.

    spent  tokens that were read or made; None: nobody counted, and all that were reserved count
    room   what it holds of its tenant's storage
    """

    def __init__(self, limiter: Limiter, use: Use):
        self._limiter, self._use = limiter, use
        self._answers = self._reserved = 0
        self.spent: int | None = None
        self.room: Reservation | None = None

    def begin(self) -> None:
        """Count the request. Raises ApiError where its key has none left."""
        use = self._use
        most = use.limits.concurrency
        if most is not None and use.requests_under_way >= most:
            raise _later(f"{most} requests at once is the limit of this key", SOON)
        if use.requests is not None:
            if wait := use.requests.wait(1):
                raise _later(f"{use.requests.amount} requests a minute is the limit of this key", wait)
            use.requests.take(1)
        use.requests_under_way += 1

    def reserve(self, answers: int, tokens: int) -> None:
        """Hold as many answers, and the tokens that they may need. Raises ApiError where there is no room for them."""
        use, limiter = self._use, self._limiter
        most = use.limits.concurrency
        at_once = min(limiter.most, most or limiter.most)
        if self._answers + answers > at_once:
            raise _never(f"{self._answers + answers} answers at once, of {at_once}")
        if most is not None and use.answers + answers > most:
            raise _later(f"{most} answers at once is the limit of this key", SOON)
        if limiter.answers + answers > limiter.most:
            raise _later("the server has as many requests as it can take", SOON)
        if use.tokens is not None:
            if self._reserved + tokens > use.tokens.amount:
                raise _never(f"up to {self._reserved + tokens} tokens, of {use.tokens.amount} a minute")
            if wait := use.tokens.wait(tokens):
                raise _later(f"{use.tokens.amount} tokens a minute is the limit of this key", wait)
            use.tokens.take(tokens)
        self._hold(answers)
        self._reserved += tokens

    def spend(self, tokens: int) -> None:
        """Count tokens that were read or made."""
        self.spent = (self.spent or 0) + tokens

    @property
    def limits(self) -> Limits:
        return self._use.limits

    def end(self) -> None:
        """Give back what is held: the storage last, whose folder may fail."""
        self._use.requests_under_way -= 1
        self._hold(-self._answers)
        if self._use.tokens is not None and self.spent is not None:
            self._use.tokens.take(self.spent - self._reserved)
        if self.room is not None:
            self.room.end()

    def _hold(self, answers: int) -> None:
        self._answers += answers
        self._use.answers += answers
        self._limiter.answers += answers


class Limiting:
    """Middleware that counts each request by its caller's key, and gives the caller its `Lease`."""

    def __init__(self, app: ASGIApp, limiter: Limiter):
        self.app, self.limiter = app, limiter

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        caller = scope.get("state", {}).get("caller")
        if scope["type"] != "http" or caller is None:
            return await self.app(scope, receive, send)
        key = caller.key
        lease = Lease(self.limiter, self.limiter.use(key and key.id, key and key.limits))
        try:
            lease.begin()
        except ApiError as error:
            return await error.response()(scope, receive, send)
        scope["state"]["caller"] = replace(caller, held=lease)
        try:
            await self.app(scope, receive, send)
        finally:
            lease.end()


def _later(message: str, seconds: float) -> ApiError:
    return ApiError(429, message, headers={"retry-after": str(max(1, math.ceil(seconds)))})


def _never(amount: str) -> ApiError:
    return ApiError(400, f"the request asks for {amount}, which it will never get", code="request_too_large")
