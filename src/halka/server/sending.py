"""Responses: JSON, and events that are sent as they come; who leaves ends what was made for him."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing, suppress
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import Response, StreamingResponse
from starlette.types import Send

T = TypeVar("T")


def dumps(value: Any) -> bytes:
    """JSON in ASCII alone: some clients end a line at U+2028, and no lone surrogate stops it."""
    return json.dumps(value, separators=(",", ":")).encode("ascii")


class Json(Response):
    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return dumps(content)


class Events(StreamingResponse):
    """Server-sent events. The generator is closed at the end, also where the client has left."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[bytes]):
        super().__init__(events, headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        self._events = events

    async def stream_response(self, send: Send) -> None:
        async with aclosing(self._events):
            await super().stream_response(send)


def event(value: Any, name: str | None = None) -> bytes:
    """One event, with its name if it has one."""
    data = b"data: " + dumps(value) + b"\n\n"
    return data if name is None else f"event: {name}\n".encode() + data


DONE = b"data: [DONE]\n\n"


async def while_connected(request: HttpRequest, work: Coroutine[Any, Any, T]) -> T:
    """What the work returns; it is cancelled if the client leaves meanwhile. The request's body is read already."""
    working, leaving = asyncio.create_task(work), asyncio.create_task(_left(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        for task in (working, leaving):
            task.cancel()
        for task in (working, leaving):
            with suppress(asyncio.CancelledError, Exception):
                await task


async def _left(request: HttpRequest) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
