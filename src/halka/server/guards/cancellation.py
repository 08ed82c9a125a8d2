"""Requests that end early: their client has left, nothing was sent for long, their key was revoked or changed, or the
server has drained for as long as it may.

Whatever makes the answer is cancelled, so that its row is free at once. A client that is still there gets an error: as
a response where none has begun, as the last event of a stream.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import anyio
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from halka.server.errors import ApiError
from halka.server.guards.access import Caller, unreadable_keys
from halka.server.guards.drain import Drain, going_down
from halka.server.guards.keys import Keys
from halka.server.guards.sessions import Sessions
from halka.server.wire import dumps

LOOK = 1.0  # seconds between two looks at a key
LATER = {"retry-after": "10"}


class Cancellation:
    """Middleware around the application.

    timeout  seconds without anything sent after which a request ends. Tokens that are made for it count as something
             sent. What else works on it in pieces, of which the client sees nothing, may call `scope["state"]["works"]`
             at each
    """

    def __init__(
        self,
        app: ASGIApp,
        keys: Keys,
        sessions: Sessions,
        timeout: float,
        drain: Drain,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.app, self.keys, self.sessions, self.timeout, self.drain = app, keys, sessions, timeout, drain
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        request = _UnderWay(receive, send, self._clock)
        await request.begin()
        scope.setdefault("state", {})["works"] = request.works
        tasks = [asyncio.create_task(request.watch()), asyncio.create_task(self._look(scope, request))]
        try:
            with request.scope:
                await self.app(scope, request.receive, request.send)
        finally:
            request.scope.cancel()  # a thread that looks at it ends as well, where the task was cancelled by itself
            for task in tasks:
                task.cancel()
        if request.reason is not None and not request.left.is_set():
            with anyio.move_on_after(LOOK):  # a client that reads nothing does not get this either
                await request.refuse(scope, request.reason)

    async def _look(self, scope: Scope, request: _UnderWay) -> None:
        """End the request when there is a reason to, or its key cannot be read."""
        state = scope.get("state", {})
        try:
            reason = await self._reason(state.get("caller"), request)
        except Exception as error:  # whatever is wrong with the keys, nobody goes on without one
            reason = unreadable_keys(error, state.get("request_id"))
        request.end(reason)

    async def _reason(self, caller: Caller | None, request: _UnderWay) -> ApiError:
        """Why the request has to end, as soon as it has to."""
        key = caller and caller.key
        while key is None or self.keys.valid(key):
            if caller is not None and caller.session is not None and not self.sessions.valid(caller.session):
                return ApiError(401, "the session has ended: sign in again", code="session_ended")
            if self.drain.over:
                return going_down()
            if caller is not None and (tokens := caller.tokens) > request.tokens:
                request.tokens = tokens
                request.works()
            if self._clock() - request.active > self.timeout:
                return ApiError(503, f"nothing came of this for {self.timeout:g} s", code="timeout", headers=LATER)
            await asyncio.sleep(min(LOOK, self.timeout / 4))
        now = self.keys.all().get(key.id)
        if now is not None and now.hash == key.hash and not now.expired:
            return ApiError(409, "the API key was changed: ask again", code="key_changed")
        return ApiError(401, "the API key was revoked or has expired", code="invalid_api_key")


class _UnderWay:
    """A request's channels. Once its body is read, it receives ahead of the application.

    active  when something was last received, sent or done for it
    tokens  those that were made for it by the last look
    """

    def __init__(self, receive: Receive, send: Send, clock: Callable[[], float]):
        self.scope, self.left = anyio.CancelScope(), asyncio.Event()
        self.reason: ApiError | None = None
        self.active, self.tokens = clock(), 0
        self._receive, self._send, self._clock = receive, send, clock
        self._first: Message | None = None
        self._read, self._started, self._complete = asyncio.Event(), False, False
        self._events = False

    def works(self) -> None:
        """Something is done for it, also in another thread."""
        self.active = self._clock()

    async def begin(self) -> None:
        self._first = await self._next()
        self.active = self._clock()

    def end(self, reason: ApiError) -> None:
        if not self._complete:
            self.reason = reason
            self.scope.cancel()

    async def watch(self) -> None:
        """End the request when its client leaves."""
        await self._read.wait()
        while not self.left.is_set():
            await self._next()
        if not self._complete:
            self.scope.cancel()

    async def receive(self) -> Message:
        if self._first is not None:
            first, self._first = self._first, None
            return first
        if not self._read.is_set():
            self.active = self._clock()
            return await self._next()
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def _next(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self.left.set()
        if not message.get("more_body", False):
            self._read.set()
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._started = True
            self._events = any(
                name.lower() == b"content-type" and value.startswith(b"text/event-stream")
                for name, value in message["headers"]
            )
        elif not message.get("more_body", False):
            self._complete = True
        await self._send(message)
        self.active = self._clock()

    async def refuse(self, scope: Scope, error: ApiError) -> None:
        """Tell the client, where the response allows it; any other connection is closed without an end."""
        if not self._started:
            await error.response()(scope, self.receive, self._send)
        elif self._events and not self._complete:
            await self._send({"type": "http.response.body", "body": b"data: " + dumps(error.body) + b"\n\n"})
