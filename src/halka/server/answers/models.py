"""`/v1/models`: the base, and the adapters of who asks."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from anyio import to_thread
from fastapi import APIRouter
from starlette.responses import Response

from halka.server.errors import unknown_model
from halka.server.guards.access import Caller, CallerDep
from halka.server.service import Service, ServiceDep
from halka.server.wire import Json

router = APIRouter()


@router.get("/v1/models")
async def list_models(service: ServiceDep, caller: CallerDep) -> Response:
    """List what the caller may name as `model`."""
    return Json({"object": "list", "data": await to_thread.run_sync(_models, service, caller)})


@router.get("/v1/models/{model:path}")
async def get_model(model: str, service: ServiceDep, caller: CallerDep) -> Response:
    """One of the caller's models."""
    models = await to_thread.run_sync(_models, service, caller)
    entry = next((entry for entry in models if entry["id"] == model), None)
    if entry is None:
        raise unknown_model(model)
    return Json(entry)


def _models(service: Service, caller: Caller) -> list[dict[str, Any]]:
    tenant = service.tenants.of(caller.tenant)
    models = [_entry(service.name, service.created, "halka", None)]
    if service.embedders.available:
        models.append(_entry(service.embedders.default, service.created, "halka", None))
    for name in tenant.store.names():
        if name not in service.own_names and not (tenant.store.folder / name).is_symlink():
            with suppress(FileNotFoundError):  # it was removed meanwhile
                created = int((tenant.store.folder / name).stat().st_mtime)
                models.append(_entry(name, created, tenant.name, service.name))
    return models


def _entry(name: str, created: int, owner: str, parent: str | None) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": created, "owned_by": owner, "parent": parent}
