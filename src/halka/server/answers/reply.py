"""An answer on its way to the client: whole, or as events while it is made."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any, Protocol

from starlette.responses import Response

from halka.server.errors import api_error
from halka.server.guards.access import Caller
from halka.server.wire import Events, Json, event


class Reply(Protocol):
    """What answers a request. One of its methods is used, once."""

    async def whole(self) -> dict[str, Any]: ...

    def chunks(self) -> AsyncGenerator[bytes]: ...


async def respond(
    reply: Reply, stream: bool | None, caller: Caller, failed: Callable[[dict[str, Any]], bytes] = event
) -> Response:
    """The whole reply, or its chunks as a stream. Raises what fails before the first of them.

    failed  the stream's last event, of the body of an error that comes later
    """
    if not stream:
        return Json(await reply.whole())
    chunks = reply.chunks()
    first = await anext(chunks)

    async def started() -> AsyncGenerator[bytes]:
        async with aclosing(chunks):
            yield first
            try:
                async for chunk in chunks:
                    yield chunk
            except Exception as error:
                yield failed(api_error(error, caller).body)

    return Events(started())
