"""A bare application behind the server's guards, for tests of these alone."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx
from anyio import from_thread, to_thread
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.routing import Mount, Route

from halka.server.errors import install
from halka.server.guards.access import caller
from halka.server.guards.guards import Guards
from halka.server.guards.keys import Keys, Limits, Role
from halka.server.guards.quota import Quota
from halka.server.settings import ServerSettings
from halka.server.threads import Threads

LOCAL = "http://127.0.0.1:8000"
RESIDENTS = SimpleNamespace(versions=[], loads=0, evictions=0)
ENGINE: Any = SimpleNamespace(adapters=SimpleNamespace(residents=RESIDENTS))
"""What metrics ask of an engine."""


class Guarded:
    """Routes behind the guards, called in this process. `events` has what the routes saw happen."""

    def __init__(self, data: Path, quota: Quota | None = None, **settings: Any):
        self.events: list[str] = []
        self.keys = Keys(data / "keys.json")
        chosen = replace(ServerSettings("tiny", data=data), **settings)
        self.guards = Guards.of(chosen, self.keys, ENGINE, quota or own_quota(chosen))
        routes = [
            Route("/healthz", ok),
            Route("/who", who, methods=["GET", "POST", "OPTIONS", "DELETE"]),
            Route("/v1/adapters", self.read, methods=["POST"]),
            Route("/echo", self.read, methods=["POST"]),
            Route("/stream", self.stream, methods=["GET", "POST"]),
            Route("/never", self.never, methods=["GET", "POST"]),
            Route("/works", self.works, methods=["POST"]),
            Route("/answers", self.answers, methods=["POST"]),
            Route("/fails", fails),
            Route("/large", large),
            Route("/metrics", ok),
            Route("/docs", ok),
            Route("/openapi.json", ok),
            Route("/v1/models/{name:path}", ok),
            Mount("/mounted", Starlette(routes=[Route("/inside", ok)])),
        ]
        self.app = Starlette(routes=routes, middleware=self.guards.middleware())
        install(cast(Any, self.app))

    def key(self, role: Role = "user", tenant: str = "main", **limits: Any) -> dict[str, str]:
        """The headers of a new key."""
        text, _ = self.keys.add(tenant, role, limits=Limits(**limits))
        return {"authorization": f"Bearer {text}"}

    def call(self, method: str, path: str, **request: Any) -> httpx.Response:
        return self.run(lambda client: client.request(method, path, **request))

    def run(self, use: Callable[[httpx.AsyncClient], Awaitable[Any]]) -> Any:
        """What a coroutine returns that uses a client of the application."""

        async def main() -> Any:
            transport = httpx.ASGITransport(self.app)
            async with httpx.AsyncClient(transport=transport, base_url=LOCAL) as client:
                return await use(client)

        return asyncio.run(main())

    # ── routes ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def read(self, request: Request) -> JSONResponse:
        body = await request.body()
        self.events.append("read")
        return JSONResponse({"bytes": len(body)})

    async def stream(self, request: Request) -> StreamingResponse:
        async def events():
            try:
                for number in range(1000):
                    yield f"data: {number}\n\n"
                    await asyncio.sleep(0.01)
            finally:
                self.events.append("stream ended")

        return StreamingResponse(events(), media_type="text/event-stream")

    async def never(self, request: Request) -> JSONResponse:
        try:
            self.events.append("begun")
            await asyncio.sleep(1000)
        finally:
            self.events.append("never ended")
        return JSONResponse({})

    async def works(self, request: Request) -> JSONResponse:
        def work() -> None:
            self.events.append("begun")
            try:
                while True:
                    from_thread.check_cancelled()
                    time.sleep(0.01)
            finally:
                self.events.append("work ended")

        await to_thread.run_sync(work)
        return JSONResponse({})

    async def answers(self, request: Request) -> JSONResponse:
        """Reserves what its body says, waits, and spends what it says."""
        body, held = await request.json(), (await caller(request)).lease
        self.events.append("begun")
        held.reserve(body["n"], body["tokens"])
        await asyncio.sleep(body.get("seconds", 0))
        if "spend" in body:
            held.spend(body["spend"])
        return JSONResponse({})


async def until(true: Callable[[], object]) -> None:
    """Wait until something is so; the limit of time is a generous one."""
    async with asyncio.timeout(120):
        while not true():
            await asyncio.sleep(0.005)


def own_quota(settings: ServerSettings) -> Quota:
    """That of the tenants in `data`, whose folders need torch."""
    from halka.server.tenants import Tenants

    return Quota(Tenants(settings), Threads())


async def ok(request: Request) -> PlainTextResponse:
    return PlainTextResponse("ok")


async def who(request: Request) -> JSONResponse:
    calling = await caller(request)
    return JSONResponse({"tenant": calling.tenant, "role": calling.role})


async def fails(request: Request) -> JSONResponse:
    raise ValueError("the prompt was: my secret")


async def large(request: Request) -> StreamingResponse:
    """50 MB."""
    return StreamingResponse((b" " * 1_000_000 for _ in range(50)), media_type="text/plain")
