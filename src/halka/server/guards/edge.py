"""The outermost layer: each request gets an id, security headers, a line in the log, and a response to any error."""

from __future__ import annotations

import logging
import time
import uuid
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from halka.server.errors import ApiError, unexpected
from halka.server.guards.metrics import Metrics

HEADERS = {
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}
HEAD = 32768  # bytes of a request's head
CLOSE = {"connection": "close"}
LEFT = 499  # the status of a request whose client left before its response

log = logging.getLogger("halka.server.requests")


class Edge:
    """Middleware around all others.

    texts  whether the log has the bodies of requests
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, texts: bool):
        self.app, self.metrics, self.texts = app, metrics, texts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        id, begin, status = uuid.uuid4().hex, time.monotonic(), None
        state = scope.setdefault("state", {})
        state["request_id"] = id

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = id
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            if (error := _check_head(scope)) is not None:
                await error.response()(scope, receive, send_with_headers)
            else:
                await self.app(scope, receive, send_with_headers)
        except ClientDisconnect:
            pass
        except Exception as error:
            failure = unexpected(error, id)
            if status is None:
                await failure.response()(scope, receive, send_with_headers)
        finally:
            route = getattr(scope.get("route"), "path", "(none)")
            seconds = time.monotonic() - begin
            self.metrics.request(route, status or LEFT, seconds)
            log.info("request", extra={"fields": self._fields(scope, id, route, status or LEFT, seconds)})

    def _fields(self, scope: Scope, id: str, route: str, status: int, seconds: float) -> dict[str, Any]:
        state = scope["state"]
        caller, client = state.get("caller"), scope.get("client")
        return {
            "request": id,
            "method": scope["method"][:20],
            "route": route,
            "status": status,
            "seconds": round(seconds, 4),
            "client": client and client[0],
            "tenant": caller and caller.tenant,
            "key": caller and caller.key and caller.key.id,
            "tokens": caller and caller.held and caller.held.spent,
            **({"body": state.get("body", b"").decode(errors="replace")} if self.texts else {}),
        }


def too_large_head() -> ApiError:
    return ApiError(431, f"the request's head is larger than {HEAD} bytes or 100 headers", headers=CLOSE)


def _check_head(scope: Scope) -> ApiError | None:
    """What is wrong with a head: it is too large, or says two lengths, of which a proxy may take the other."""
    names = [name for name, _ in scope["headers"]]
    size = len(scope["path"]) + len(scope["query_string"]) + sum(map(len, names))
    size += sum(len(value) for _, value in scope["headers"])
    if size > HEAD or len(names) > 100:
        return too_large_head()
    if b"content-length" in names and b"transfer-encoding" in names:
        return ApiError(400, "the body has a Content-Length and a Transfer-Encoding: send one", headers=CLOSE)
    return None
