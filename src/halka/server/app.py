"""The application: routes, errors, middleware."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import Depends, FastAPI
from fastapi.security import APIKeyCookie, HTTPBearer

from halka.server import errors
from halka.server.answers import chat, completions, models, responses
from halka.server.guards import health, metrics, signing_in
from halka.server.guards.sessions import COOKIE
from halka.server.jobs import files
from halka.server.jobs import routes as jobs
from halka.server.page import page_router
from halka.server.previews import routes as previews
from halka.server.resources import adapters, collections, comparisons, embeddings, keys, methods, residency, usage
from halka.server.service import Service

ROUTERS = (
    models.router,
    chat.router,
    completions.router,
    responses.router,
    embeddings.router,
    adapters.router,
    residency.router,
    collections.router,
    methods.router,
    files.router,
    previews.router,
    jobs.router,
    comparisons.router,
    keys.router,
    usage.router,
    signing_in.router,
    health.router,
    metrics.router,
)
KEY = HTTPBearer(auto_error=False, description="An API key, as `halka keys add` prints it.")
PAGE = APIKeyCookie(
    name=COOKIE,
    auto_error=False,
    description="A page's session, as POST /v1/session begins it; what is unsafe needs X-Halka-Page: 1, too.",
)
"""What the schema says of keys and of cookies that stand for them; `Access` has looked at them before."""
NEEDED = [Depends(KEY), Depends(PAGE)]


def create_app(service: Service) -> FastAPI:
    """The server of a service, which it closes at its end."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.jobs.start()
        sweep = asyncio.create_task(files.end_old_files(service))
        yield
        sweep.cancel()
        await service.aclose()

    app = FastAPI(
        title="Halka",
        version=version("halka"),
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        middleware=service.guards.middleware(),
        responses=errors.DOCUMENTED,
    )
    app.state.service = service
    for router in ROUTERS:
        app.include_router(router, dependencies=[] if router is health.router else NEEDED)
    app.include_router(page_router())
    errors.install(app)
    return app
