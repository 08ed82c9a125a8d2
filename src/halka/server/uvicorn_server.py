"""uvicorn in one process, with what it lacks: SIGTERM drains, connections whose client does nothing are closed, heads
have an end, offers of another protocol are ignored, and its own errors are as all others.
"""

from __future__ import annotations

import asyncio
import math
import sys
import time
from http import HTTPStatus
from types import FrameType

import httptools
import uvicorn
from starlette.types import ASGIApp
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from halka.server.errors import ApiError
from halka.server.guards.drain import FULL, Drain
from halka.server.guards.edge import CLOSE, HEAD, HEADERS, too_large_head

TIMEOUT = 30.0  # seconds that a client may take until its next request, for a head, or to read what it asked for
CONNECTIONS = 1000


class Connection(HttpToolsProtocol):
    """An HTTP/1.1 connection that tracks how long its client is idle, and the response that is under way.

    A connection beyond the most gets 503 while there are too many; one beyond twice as many is closed at once.
    """

    _mark: tuple[object, ...] = ()
    _since = 0.0
    _running: RequestResponseCycle | None = None  # the last that began; `cycle` may be queued behind it
    _beyond = False
    _data = b""  # what has just come
    _head: list[int] | None = None  # of a head, or trailers, that have not ended: the bytes of pieces within them

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._most = self.limit_concurrency or CONNECTIONS
        self.limit_concurrency = None  # beyond it uvicorn itself would answer, in plain text
        self._beyond = self._too_many()
        if len(self.connections) > 2 * self._most:
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._running is not None and not self._running.response_complete:
            self._running.disconnected = True
            self._running.message_event.set()

    def data_received(self, data: bytes) -> None:
        self._data, before = data, self._head
        super().data_received(data)
        self._data = b""
        if before is not None and self._head is before:
            before[0] += len(data)
            if before[0] > 2 * HEAD:  # of a head that has ended, what is within may be at most HEAD
                self._refuse(too_large_head())

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._head = [0]
        self._beyond = self._beyond and self._too_many()
        self.scope["state"] = {**self.app_state, FULL: self._beyond}

    def on_headers_complete(self) -> None:
        self._head = None
        super().on_headers_complete()
        if len(self.pipeline) == 1:
            self.flow.resume_reading()  # or nobody would see that the client leaves

    def on_chunk_header(self) -> None:
        self._head = [0]  # of the last chunk, which is empty, trailers follow

    def on_body(self, body: bytes) -> None:
        self._head = None
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._head = None
        super().on_message_complete()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def _too_many(self) -> bool:
        return max(len(self.connections), len(self.tasks)) > self._most

    def waits(self, now: float) -> float:
        """Seconds for which the client has neither sent a request nor read of its answer."""
        under_way = self.cycle is not None and not self.cycle.response_complete and not self.transport.is_closing()
        if under_way and not self.flow.write_paused:
            mark = (now,)
        else:
            mark = (self.cycle, self.transport.get_write_buffer_size())
        if mark != self._mark:
            self._mark, self._since = mark, now
        return now - self._since

    def _should_upgrade(self) -> bool:
        """Asked where the parser has seen an offer of another protocol: whether the next method handles it."""
        return self.parser.get_method() != b"CONNECT"

    def handle_websocket_upgrade(self) -> None:
        """Read the request anew without its offer (RFC 9110, 7.8), behind which the parser has stopped.

        Java's client offers HTTP/2 in each request; uvicorn would take its body for the next one.
        """
        stopped = sys.exc_info()[1]
        assert isinstance(stopped, httptools.HttpParserUpgrade)
        kept = [header for header in self.headers if header[0] != b"upgrade"]
        first = (self.parser.get_method(), self.url, self.parser.get_http_version().encode())
        lines = [b"%b %b HTTP/%b" % first, *(b"%b: %b" % header for header in kept), b"", b""]
        behind = self._data[stopped.args[0] :]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's
        self.data_received(b"\r\n".join(lines) + behind)

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP."""
        self._refuse(ApiError(400, "this is no request in HTTP/1.1", code="invalid_http", headers=CLOSE))

    def _refuse(self, error: ApiError) -> None:
        """Answer with an error, unless an answer is under way, and close the connection."""
        running = self._running
        if running is None or running.response_complete or not running.response_started:
            response = error.response()
            headers = [*self.server_state.default_headers, *response.raw_headers]
            headers += [(name.encode(), value.encode()) for name, value in HEADERS.items()]
            lines = (b"%b: %b\r\n" % header for header in headers)
            line = b"HTTP/1.1 %d %b\r\n" % (error.status, HTTPStatus(error.status).phrase.encode())
            self.transport.write(b"".join([line, *lines, b"\r\n", response.body]))
        self.transport.close()


class Server(uvicorn.Server):
    """A server that ends with what it has begun, and with exit code 0, when it gets SIGTERM or SIGINT.

    A second signal ends it at once. What goes on `seconds` after the first is ended with an error.
    """

    def __init__(self, config: uvicorn.Config, drain: Drain, seconds: float, timeout: float):
        super().__init__(config)
        self.drain, self.seconds, self.timeout = drain, seconds, timeout
        self._end = float("inf")

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.drain.draining:
            self.should_exit = self.force_exit = True
        self.drain.draining = True
        self._end = time.monotonic() + self.seconds

    async def on_tick(self, counter: int) -> bool:
        now = time.monotonic()
        if counter % 10 == 0:
            for connection in [*self.server_state.connections]:
                if isinstance(connection, Connection) and connection.waits(now) > self.timeout:
                    connection.transport.abort()
        self.drain.over = now > self._end
        if self.drain.draining and (not self.drain.under_way or self.drain.over):
            self.should_exit = True
        return await super().on_tick(counter)


def server(
    app: ASGIApp, drain: Drain, seconds: float, timeout: float = TIMEOUT, connections: int = CONNECTIONS
) -> Server:
    """A server of the application, to be `run` with sockets."""
    config = uvicorn.Config(
        app,
        http=Connection,
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=connections,
        timeout_keep_alive=math.ceil(timeout),  # longer than clients do, which else would send while this end closes
        timeout_graceful_shutdown=5,
    )
    return Server(config, drain, seconds, timeout)
