"""A server that is about to end finishes what it has and takes nothing new."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from halka.server.errors import ApiError
from halka.server.guards.access import OPEN

FULL = "full"
"""In a request's state: whether its connection is one too many."""


class Drain:
    """Whether the server takes new requests, how many it has, and whether these have to end."""

    def __init__(self) -> None:
        self.draining = self.over = False
        self.under_way = 0


class Draining:
    """Middleware that counts requests, and refuses new ones with 503 once the server drains, or is full."""

    def __init__(self, app: ASGIApp, drain: Drain):
        self.app, self.drain = app, drain

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN:
            return await self.app(scope, receive, send)
        if self.drain.draining:
            return await going_down().response()(scope, receive, send)
        if scope.get("state", {}).get(FULL, False):
            error = _unavailable("the server has as many connections as it can take")
            return await error.response()(scope, receive, send)
        self.drain.under_way += 1
        try:
            await self.app(scope, receive, send)
        finally:
            self.drain.under_way -= 1


def going_down() -> ApiError:
    return _unavailable("the server is going down")


def _unavailable(reason: str) -> ApiError:
    """The error of a request that is to be sent again, on another connection."""
    return ApiError(503, reason, headers={"retry-after": "10", "connection": "close"})
