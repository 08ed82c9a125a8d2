"""Responses: JSON, and events that are sent as they come."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from starlette.responses import Response, StreamingResponse
from starlette.types import Send

from halka.util.plain import plain


def dumps(value: Any) -> bytes:
    """JSON in ASCII alone: some clients end a line at U+2028, and no lone surrogate stops it.

    NaN and infinities, which JSON cannot write, are null.
    """
    try:
        text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    except ValueError:
        text = json.dumps(plain(value), separators=(",", ":"), allow_nan=False)
    return text.encode("ascii")


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
