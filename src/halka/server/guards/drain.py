"""A server that is about to end finishes what it has and takes nothing new."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from halka.server.errors import ApiError
from halka.server.guards.access import OPEN


class Drain:
    """Whether the server takes new requests, and how many it has."""

    def __init__(self) -> None:
        self.draining = False
        self.under_way = 0


class Draining:
    """Middleware that counts requests, and refuses new ones with 503 once the server drains."""

    def __init__(self, app: ASGIApp, drain: Drain):
        self.app, self.drain = app, drain

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN:
            return await self.app(scope, receive, send)
        if self.drain.draining:
            error = ApiError(503, "the server is going down", headers={"retry-after": "10", "connection": "close"})
            return await error.response()(scope, receive, send)
        self.drain.under_way += 1
        try:
            await self.app(scope, receive, send)
        finally:
            self.drain.under_way -= 1
