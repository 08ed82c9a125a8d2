"""`/healthz`: the process lives. `/readyz`: it takes requests."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from halka.server.wire import Json

router = APIRouter()


@router.get("/healthz")
async def healthz() -> Response:
    """Whether the process lives."""
    return Json({"status": "ok"})


@router.get("/readyz")
async def readyz(request: HttpRequest) -> Response:
    """Whether the server takes requests."""
    service = request.app.state.service
    if service.guards.drain.draining:
        return Json({"status": "draining"}, 503)
    if not service.engine.alive:
        return Json({"status": "the engine has stopped"}, 503)
    if not service.holder.alive:
        return Json({"status": "the replicas cannot be asked"}, 503)
    if not service.jobs.alive:
        return Json({"status": "the queue of jobs has stopped"}, 503)
    return Json({"status": "ok"})
