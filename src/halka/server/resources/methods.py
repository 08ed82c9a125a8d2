"""`/v1/methods`: the methods that a training may use, and its other settings, so that a form can be drawn."""

from __future__ import annotations

from functools import cache
from typing import Any

from anyio import to_thread
from fastapi import APIRouter
from starlette.responses import Response

from halka.methods import all_methods, catalogued
from halka.models.rates import rate_at
from halka.server.guards.access import CallerDep
from halka.server.jobs.commands import BEST_BY, DEFAULT_METHOD, OF_TRAINING, TEXT
from halka.server.service import ServiceDep
from halka.server.wire import Json
from halka.util.forms import form_of

router = APIRouter(tags=["jobs"])


@router.get("/v1/methods")
async def list_methods(service: ServiceDep, caller: CallerDep) -> Response:
    """List the methods with their fields, the default one, and what else `settings` of a training may hold.

    A method's `lr` is what a training of the server's base has where none is set.
    """
    listed, base = await to_thread.run_sync(_catalogue), service.model.base
    return Json({**listed, "data": [{**method, "lr": rate_at(method["lr"], base)} for method in listed["data"]]})


@cache
def _catalogue() -> dict[str, Any]:
    return {
        "object": "list",
        "default": DEFAULT_METHOD,
        "data": [catalogued(method) for method in all_methods().values()],
        "settings": [form_of(setting) for setting in (*OF_TRAINING.values(), BEST_BY, TEXT)],
    }
