"""`/v1/models`: the base, and the adapters of who asks."""

from __future__ import annotations

from contextlib import suppress
from stat import S_ISLNK
from typing import Any

from anyio import to_thread
from fastapi import APIRouter
from starlette.responses import Response

from halka.server.errors import unknown_model
from halka.server.guards.access import Caller, CallerDep
from halka.server.resources.adapter_files import folder_inside
from halka.server.service import Service, ServiceDep
from halka.server.tenants import Tenant
from halka.server.wire import Json
from halka.storage.adapter_store import name_and_version
from halka.util.errors import UnknownAdapterError

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
    tenant, own = service.tenants.of(caller.tenant), service.own_names
    adapters = (_adapter(service, tenant, name) for name in tenant.store.names() if name not in own)
    return [*_own(service), *(entry for entry in adapters if entry is not None)]


def _model(service: Service, caller: Caller, name: str) -> dict[str, Any] | None:
    """A model of this name, or NAME@VERSION, that is the server's or the caller's; None if there is none."""
    tenant = service.tenants.of(caller.tenant)
    if name in service.own_names:
        return next((entry for entry in _own(service) if entry["id"] == name), None)
    adapter, version = name_and_version(name)
    if version is None:
        return _adapter(service, tenant, name) if name in tenant.store else None
    with suppress(UnknownAdapterError, FileNotFoundError):
        created = folder_inside(tenant.store, adapter, version).stat().st_mtime
        return _entry(name, int(created), tenant.name, service.name)
    return None


def _own(service: Service) -> list[dict[str, Any]]:
    """The base, and the embedder where there is one."""
    names = [service.name, *([service.embedders.default] if service.embedders.available else [])]
    return [_entry(name, service.created, "halka", None) for name in names]


def _adapter(service: Service, tenant: Tenant, name: str) -> dict[str, Any] | None:
    """An adapter in the tenant's store; None for a link, and for one that was removed meanwhile."""
    folder = tenant.store.folder / name
    with suppress(FileNotFoundError):
        status = folder.lstat()
        if not S_ISLNK(status.st_mode):
            return _entry(name, int(status.st_mtime), tenant.name, service.name)
    return None


def _entry(name: str, created: int, owner: str, parent: str | None) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": created, "owned_by": owner, "parent": parent}
