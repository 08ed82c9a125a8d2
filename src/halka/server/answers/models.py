"""`/v1/models`: the base, and the adapters of who asks."""

from __future__ import annotations

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
    if (entry := await to_thread.run_sync(_model, service, caller, model)) is None:
        raise unknown_model(model)
    return Json(entry)


def _models(service: Service, caller: Caller) -> list[dict[str, Any]]:
    names = [*_own(service), *service.tenants.of(caller.tenant).store.names()]
    return [entry for name in dict.fromkeys(names) if (entry := _model(service, caller, name)) is not None]


def _own(service: Service) -> list[str]:
    """The base, and the embedder where there is one."""
    return [service.name, *([service.embedders.default] if service.embedders.available else [])]


def _model(service: Service, caller: Caller, name: str) -> dict[str, Any] | None:
    """A model of this name that is the server's or the caller's; None if there is none."""
    if name in _own(service):
        return _entry(name, service.created, "halka", None)
    tenant = service.tenants.of(caller.tenant)
    if name in service.own_names or name not in tenant.store or (tenant.store.folder / name).is_symlink():
        return None
    try:
        created = int((tenant.store.folder / name).stat().st_mtime)
    except FileNotFoundError:  # it was removed meanwhile
        return None
    return _entry(name, created, tenant.name, service.name)


def _entry(name: str, created: int, owner: str, parent: str | None) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": created, "owned_by": owner, "parent": parent}
