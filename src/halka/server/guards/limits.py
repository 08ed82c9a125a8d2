"""Limits of a key: requests and tokens a minute, answers at once, storage. Beyond them it is 429 with Retry-After.

A request takes its tokens before it begins, as many as it may need: its prompts, and every answer at its longest. What
it did not need goes back at its end. So no number of requests, answers (`n`) or prompts gets more than a minute has.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace

from starlette.types import ASGIApp, Receive, Scope, Send

from halka.server.errors import ApiError
from halka.server.guards.keys import Key, Limits
from halka.server.storage import Reservation

MINUTE = 60.0
SOON = 2.0  # seconds after which to try again what waits for others' ends


class Bucket:
    """What is left of a minute's amount; it fills up evenly."""

    def __init__(self, amount: int, clock: Callable[[], float]):
        self.amount, self._clock = amount, clock
        self._left, self._at = float(amount), clock()

    def resize(self, amount: int) -> None:
        """Hold another amount from now on; what was taken stays taken."""
        self._left, self.amount = min(amount, self.left), amount

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


class Use:
    """What is done with one key now, and what its minute has left."""

    def __init__(self, limits: Limits, clock: Callable[[], float]):
        self.requests_under_way = self.answers = 0
        self.requests: Bucket | None = None
        self.tokens: Bucket | None = None
        self._clock = clock
        self.change(limits)

    def change(self, limits: Limits) -> None:
        self.limits = limits
        self.requests = self._bucket(self.requests, limits.requests)
        self.tokens = self._bucket(self.tokens, limits.tokens)

    def _bucket(self, before: Bucket | None, amount: int | None) -> Bucket | None:
        if before is None or amount is None:
            return None if amount is None else Bucket(amount, self._clock)
        before.resize(amount)
        return before

    def check_request(self) -> None:
        """Raises ApiError where there is no room for one more."""
        most = self.limits.concurrency
        if most is not None and self.requests_under_way >= most:
            raise too_soon(f"{most} requests at once is the limit of this key", SOON)
        if self.requests is not None and (wait := self.requests.wait(1)):
            raise too_soon(f"{self.requests.amount} requests a minute is the limit of this key", wait)

    def check(self, answers: int, tokens: int, *, held: tuple[int, int]) -> None:
        """Raises ApiError where there is no room for as many, for a request that holds some of both."""
        most = self.limits.concurrency
        if most is not None and held[0] + answers > most:
            raise _never(f"{held[0] + answers} answers at once, of {most}")
        if self.tokens is not None and held[1] + tokens > self.tokens.amount:
            raise _never(f"up to {held[1] + tokens} tokens, of {self.tokens.amount} a minute")
        if most is not None and self.answers + answers > most:
            raise too_soon(f"{most} answers at once is the limit of this key", SOON)
        if self.tokens is not None and (wait := self.tokens.wait(tokens)):
            raise too_soon(f"{self.tokens.amount} tokens a minute is the limit of this key", wait)

    def take_request(self) -> None:
        self.requests_under_way += 1
        if self.requests is not None:
            self.requests.take(1)

    def take(self, answers: int, tokens: int) -> None:
        """Hold as many; negative numbers are given back."""
        self.answers += answers
        if self.tokens is not None:
            self.tokens.take(tokens)


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

    def uses(self, key: Key | None) -> list[Use]:
        """What a request with a key counts for: the key, and the one whose limits it shares."""
        if key is None:
            return [self.use(None, None)]
        own = self.use(key.id, key.limits)
        return [own] if key.root is None else [own, self.use(key.root.id, key.root.limits)]


class Lease:
    """What one request holds of its key's limits, from `begin` to `end`.

    uses   what it counts for: its key, and the one whose limits this shares
    spent  tokens that were read or made; None: nobody counted, and all that were reserved count
    room   what it holds of its tenant's storage
    """

    def __init__(self, limiter: Limiter, *uses: Use):
        self._limiter, self._uses = limiter, uses
        self._answers = self._reserved = 0
        self.spent: int | None = None
        self.room: Reservation | None = None

    def begin(self) -> None:
        """Count the request. Raises ApiError where its key has none left."""
        for use in self._uses:
            use.check_request()
        for use in self._uses:
            use.take_request()

    def reserve(self, answers: int, tokens: int) -> None:
        """Hold as many answers, and the tokens that they may need. Raises ApiError where there is no room for them."""
        limiter = self._limiter
        if self._answers + answers > limiter.most:
            raise _never(f"{self._answers + answers} answers at once, of {limiter.most}")
        for use in self._uses:
            use.check(answers, tokens, held=(self._answers, self._reserved))
        if limiter.answers + answers > limiter.most:
            raise too_soon("the server has as many requests as it can take", SOON)
        self._hold(answers, tokens)

    def spend(self, tokens: int) -> None:
        """Count tokens that were read or made."""
        self.spent = (self.spent or 0) + tokens

    @property
    def limits(self) -> Limits:
        """The limits of its key, and the server's for what the key does not say."""
        return self._uses[0].limits

    def end(self) -> None:
        """Give back what is held: the storage last, whose folder may fail."""
        for use in self._uses:
            use.requests_under_way -= 1
        self._hold(-self._answers, 0 if self.spent is None else self.spent - self._reserved)
        if self.room is not None:
            self.room.end()

    def _hold(self, answers: int, tokens: int) -> None:
        self._answers += answers
        self._reserved += tokens
        self._limiter.answers += answers
        for use in self._uses:
            use.take(answers, tokens)


class Limiting:
    """Middleware that counts each request by its caller's key, and gives the caller its `Lease`."""

    def __init__(self, app: ASGIApp, limiter: Limiter):
        self.app, self.limiter = app, limiter

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        caller = scope.get("state", {}).get("caller")
        if scope["type"] != "http" or caller is None:
            return await self.app(scope, receive, send)
        lease = Lease(self.limiter, *self.limiter.uses(caller.key))
        try:
            lease.begin()
        except ApiError as error:
            return await error.response()(scope, receive, send)
        scope["state"]["caller"] = replace(caller, held=lease)
        try:
            await self.app(scope, receive, send)
        finally:
            lease.end()


def too_soon(message: str, seconds: float) -> ApiError:
    """429: the same may be asked after so many seconds."""
    return ApiError(429, message, headers={"retry-after": str(max(1, math.ceil(seconds)))})


def _never(amount: str) -> ApiError:
    return ApiError(400, f"the request asks for {amount}, which it will never get", code="request_too_large")
