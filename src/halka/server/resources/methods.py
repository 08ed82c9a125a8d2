"""`/v1/methods`: the methods that a training may use, and its other settings, so that a form can be drawn."""

from __future__ import annotations

from functools import cache
from typing import Any

from anyio import to_thread
from fastapi import APIRouter
from starlette.responses import Response

from halka.methods import all_methods, catalogued
from halka.server.guards.access import CallerDep
from halka.server.jobs.commands import BEST_BY, DEFAULT_METHOD, TEXT
from halka.server.wire import Json
from halka.training import TrainConfig
from halka.util.forms import form_of
from halka.util.settings import settings_of

router = APIRouter(tags=["jobs"])


@router.get("/v1/methods")
async def list_methods(caller: CallerDep) -> Response:
    """List the methods with their fields, the default one, and what else `settings` of a training may hold."""
    return Json(await to_thread.run_sync(_catalogue))


@cache
def _catalogue() -> dict[str, Any]:
    return {
        "object": "list",
        "default": DEFAULT_METHOD,
        "data": [catalogued(method) for method in all_methods().values()],
        "settings": [form_of(setting) for setting in (*settings_of(TrainConfig, "train").values(), BEST_BY, TEXT)],
    }
