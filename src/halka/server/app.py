"""The application: routes, errors, middleware."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import Depends, FastAPI
from fastapi.security import HTTPBearer

from halka.server import errors
from halka.server.answers import chat, completions, models, responses
from halka.server.guards import health, metrics
from halka.server.jobs import routes as jobs
from halka.server.resources import adapters, collections, embeddings, residency
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
    jobs.router,
    health.router,
    metrics.router,
)
KEY = HTTPBearer(auto_error=False, description="An API key, as `halka keys add` prints it.")
"""What the schema says of keys; `Access` has looked at them before."""


def create_app(service: Service) -> FastAPI:
    """The server of a service, which it closes at its end."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.jobs.start()
        yield
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
        app.include_router(router, dependencies=[] if router is health.router else [Depends(KEY)])
    errors.install(app)
    return app
