"""Bounded bodies: how large they are, how long they take, and what JSON may hold.

A body of JSON is read whole before the application begins, and checked here for every route. Uploads (multipart) are
counted as they pass through.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Awaitable, Callable
from functools import partial
from typing import NoReturn

import anyio
from anyio import to_thread
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from halka.server.errors import ApiError
from halka.server.guards.access import SESSION, Caller, check_right

DEPTH = 64
TOKENS = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"?|[\[{\]}]', re.DOTALL)
TIMEOUT, SPEED = 20.0, 65536  # seconds for any body, and the bytes a second that a long one comes with, at least
LONG = 65536  # bytes of JSON that a thread checks, so that others need not wait
WITHOUT_BODY = {"GET", "HEAD", "OPTIONS"}
Reserve = Callable[[Caller, int, int], Awaitable[int]]
KEYED = {SESSION: 4096}
"""Paths whose bodies hold a key, and the most bytes of these: they are in no log."""
UPLOADS = re.compile(r"/v1/(?:adapters|collections/[^/]+/documents|jobs/upload|files)")
"""Paths to which a POST may bring files."""


class Bodies:
    """Middleware that refuses a body with 400, 403, 408, 413 or 415.

    body     the most bytes of JSON
    upload   the most bytes of an upload by who may add adapters, documents and jobs
    reserve  holds room in the caller's storage for so many bytes, and up to so many, or raises ApiError
    """

    def __init__(self, app: ASGIApp, body: int, upload: int, reserve: Reserve, timeout: float = TIMEOUT):
        self.app, self.body, self.upload, self.reserve, self.timeout = app, body, upload, reserve, timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not _has_body(scope):
            return await self.app(scope, receive, send)
        try:
            body = _Body(receive, self._most(scope), self.timeout, _length(scope))
            if _is_upload(scope):
                await body.hold(partial(self.reserve, scope["state"]["caller"]), _length(scope))
            else:
                content = await body.read_json()
                if scope["path"] not in KEYED:
                    scope.setdefault("state", {})["body"] = content
        except ApiError as error:
            return await error.response()(scope, receive, send)
        started = False

        async def send_if_whole(message: Message) -> None:
            """Pass on what the application sends, unless it is its opinion of a body that was refused halfway."""
            nonlocal started
            if started or body.error is None:
                started = True
                await send(message)

        try:
            await self.app(scope, body.receive, send_if_whole)
        except ApiError as error:
            if error is not body.error:
                raise
        if body.error is not None and not started:
            await body.error.response()(scope, receive, send)

    def _most(self, scope: Scope) -> int:
        """The most bytes of this body. Raises ApiError if it may not be there, or not of this kind."""
        if scope["method"] in WITHOUT_BODY:
            raise ApiError(400, f"{scope['method']} takes no body", code="unexpected_body")
        if _header(scope, b"content-encoding") not in (b"", b"identity"):
            raise ApiError(415, "send the body without a Content-Encoding", code="unsupported_encoding")
        if not _is_upload(scope):
            if _kind(scope) != b"application/json":
                raise ApiError(415, "send the body as Content-Type: application/json", code="unsupported_media_type")
            return KEYED.get(scope["path"], self.body)
        check_right(scope["state"]["caller"], "manager")
        return self.upload


class _Body:
    """A request's body as it comes.

    `receive` raises ApiError, and keeps it, for one that is too large or too slow, or for which there is no room.
    """

    def __init__(self, receive: Receive, most: int, timeout: float, length: int):
        self.error: ApiError | None = None
        self._receive, self._most = receive, most
        self._deadline, self._read = anyio.current_time() + timeout, 0
        self._whole: bytes | None = None
        self._complete = False
        self._reserve: Callable[[int, int], Awaitable[int]] | None = None
        self._held = 0
        if length > most:
            raise self._too_large()

    async def hold(self, reserve: Callable[[int, int], Awaitable[int]], length: int) -> None:
        """Hold room for as many bytes, or for what comes where it says no length: it goes to the disk unseen."""
        self._reserve = reserve
        self._held = await reserve(length, 0) if length else 0

    async def receive(self) -> Message:
        if self._whole is not None:
            body, self._whole = self._whole, None
            return {"type": "http.request", "body": body, "more_body": False}
        if self._complete:
            return await self._receive()
        try:
            with anyio.fail_after(self._deadline + self._read / SPEED - anyio.current_time()):
                message = await self._receive()
        except TimeoutError:
            self.error = ApiError(408, "the body came too slowly", code="too_slow")
            raise self.error from None
        self._read += len(message.get("body", b""))
        self._complete = not message.get("more_body", False)
        if self._read > self._most:
            self.error = self._too_large()
            raise self.error
        if self._reserve is not None and self._read > self._held:
            try:
                self._held += await self._reserve(self._read - self._held, self._held)
            except ApiError as error:
                self.error = error
                raise
        return message

    async def read_json(self) -> bytes:
        """Read and check all of it, which `receive` returns then.

        Raises ApiError for what is no JSON, ClientDisconnect if the client leaves.
        """
        pieces = list[bytes]()
        while not self._complete:
            message = await self.receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            pieces.append(message.get("body", b""))
        body = b"".join(pieces)
        if len(body) > LONG:
            await to_thread.run_sync(check_json, body)
        else:
            check_json(body)
        self._whole = body
        return body

    def _too_large(self) -> ApiError:
        return ApiError(413, f"the body is larger than {self._most} bytes", code="too_large")


def check_json(body: bytes) -> None:
    """Raises ApiError for what is no JSON in UTF-8, is too deep, or holds what is no number or no character."""
    try:
        text = body.decode()
        _check_depth(text)
        value = json.loads(text, parse_constant=_no_number, parse_float=_finite)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        raise _invalid(f"{error.msg.lower()} at character {error.pos}") from None
    except UnicodeDecodeError as error:
        raise _invalid(f"byte {error.start} is no UTF-8") from None
    except UnicodeEncodeError:
        raise _invalid("a text holds half of a surrogate pair, which is no character") from None
    except ValueError as error:
        raise _invalid(str(error).partition(":")[0].lower()) from None


def _check_depth(text: str) -> None:
    if text.count("[") + text.count("{") <= DEPTH:
        return
    depth = 0
    for match in TOKENS.finditer(text):
        if (token := match[0]) in "[{":
            depth += 1
            if depth > DEPTH:
                raise _invalid(f"it is nested deeper than {DEPTH} levels")
        elif token in "]}":
            depth -= 1


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{text[:20]} is too large a number")
    return number


def _invalid(reason: str) -> ApiError:
    return ApiError(400, f"the body is no JSON that can be read: {reason}", code="invalid_json")


def _header(scope: Scope, name: bytes) -> bytes:
    return next((value for header, value in scope["headers"] if header == name), b"").strip()


def _has_body(scope: Scope) -> bool:
    return _header(scope, b"transfer-encoding") != b"" or _length(scope) != 0


def _length(scope: Scope) -> int:
    length = _header(scope, b"content-length")
    return int(length) if length.isdigit() else 0


def _kind(scope: Scope) -> bytes:
    return _header(scope, b"content-type").partition(b";")[0].strip().lower()


def _is_upload(scope: Scope) -> bool:
    is_form = scope["method"] == "POST" and _kind(scope) == b"multipart/form-data"
    return is_form and UPLOADS.fullmatch(scope["path"]) is not None
