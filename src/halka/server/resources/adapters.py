"""`/v1/adapters`: the caller's adapters, uploaded and verified, loaded and pinned, downloaded and deleted.

What comes in is a version only after the engine has loaded it, as it would for a request.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, BinaryIO

from anyio import CancelScope
from fastapi import APIRouter, Form, Query, UploadFile
from pydantic import Field
from starlette.responses import Response, StreamingResponse

from halka.server.errors import ApiError, api_error, public, refusal
from halka.server.guards.access import Caller, CallerDep, ManagerDep
from halka.server.guards.quota import reserve_storage
from halka.server.requests import Body, Name
from halka.server.resources import pinned
from halka.server.resources.adapter_files import (
    check_inside,
    check_names,
    close,
    copy_files,
    files_below,
    folder_inside,
    opened_files,
    pieces_of,
    sizes_of,
    stored_inside,
    zipped,
)
from halka.server.resources.uploads import file_names, save, staging
from halka.server.service import Service, ServiceDep
from halka.server.tenants import Tenant
from halka.server.wire import Json
from halka.storage.adapter_store import Stored
from halka.util.errors import DamagedFolderError, HalkaError, UnknownAdapterError
from halka.util.files import is_portable_name

router = APIRouter(tags=["adapters"])
Version = Annotated[int | None, Query(ge=1)]


class FromRoot(Body):
    """An adapter's folder, below one of those that the tenant may load from; its name is the folder's by default."""

    folder: Annotated[str, Field(max_length=500)]
    name: Name | None = None


@router.get("/v1/adapters")
async def list_adapters(service: ServiceDep, caller: CallerDep) -> Response:
    """List the caller's adapters."""
    return Json({"object": "list", "data": await service.threads.manage(_describe_all, service, caller)})


@router.post("/v1/adapters")
async def upload_adapter(
    service: ServiceDep, caller: ManagerDep, name: Annotated[Name, Form()], files: list[UploadFile]
) -> Response:
    """Add an adapter by its files, or the next version of one: the configuration, safetensors, and halka.json."""
    names = file_names(files)
    sizes = {name: upload.size or 0 for name, upload in zip(names, files, strict=True)}
    check_names(sizes)
    await reserve_storage(service, caller, sum(sizes.values()))
    async with staging(service) as folder:
        for file, upload in zip(names, files, strict=True):
            await save(service, upload, folder / file)
        return await _verify_and_add(service, caller, name, folder)


@router.post("/v1/adapters/import")
async def import_adapter(body: FromRoot, service: ServiceDep, caller: ManagerDep) -> Response:
    """Add an adapter from a folder that the tenant may load from, or the next version of one."""
    async with staging(service) as folder:
        files = await service.threads.manage(files_below, service.settings.roots_of(caller.tenant), body.folder)
        try:
            await reserve_storage(service, caller, sum(sizes_of(files).values()))
            await service.threads.manage(copy_files, files, folder)
        finally:
            close(files)
        return await _verify_and_add(service, caller, body.name or body.folder.rpartition("/")[2], folder)


@router.get("/v1/adapters/{name}")
async def get_adapter(name: str, service: ServiceDep, caller: CallerDep, version: Version = None) -> Response:
    """One of the caller's adapters: its versions, and one of them, by default the newest."""
    return Json(await service.threads.manage(lambda: _describe(service, caller, name, version)))


@router.post("/v1/adapters/{name}/load")
async def load_adapter(name: str, service: ServiceDep, caller: ManagerDep) -> Response:
    """Load an adapter now, so that the next request need not wait for it."""
    return await _in_engine(service, caller, name, service.engine.load)


@router.post("/v1/adapters/{name}/pin")
async def pin_adapter(name: str, service: ServiceDep, caller: ManagerDep) -> Response:
    """Load an adapter, and never evict it, within the tenant's share of the memory."""

    async def pin(engine_name: str) -> None:
        await service.engine.load(engine_name)
        await service.engine.call(lambda: pinned.pin(service, caller, engine_name))

    return await _in_engine(service, caller, name, pin)


@router.post("/v1/adapters/{name}/unpin")
async def unpin_adapter(name: str, service: ServiceDep, caller: ManagerDep) -> Response:
    """Let an adapter be evicted by use again."""
    return await _in_engine(
        service, caller, name, lambda of: service.engine.call(lambda: service.engine.engine.adapters.unpin(of))
    )


@router.post("/v1/adapters/{name}/unload")
async def unload_adapter(name: str, service: ServiceDep, caller: ManagerDep) -> Response:
    """Evict an adapter that no request uses; it is loaded again when one does."""
    return await _in_engine(
        service, caller, name, lambda of: service.engine.call(lambda: service.engine.engine.adapters.unload(of))
    )


@router.get("/v1/adapters/{name}/files/{file}")
async def download_file(
    name: str, file: str, service: ServiceDep, caller: ManagerDep, version: Version = None
) -> Response:
    """One file of an adapter."""
    _, files = await service.threads.manage(_open_files, service.tenants.of(caller.tenant), name, version)
    chosen = files.pop(file, None)
    close(files)
    if chosen is None:
        raise ApiError(404, f"{name!r} has no file {file[:100]!r}", param="file")
    return StreamingResponse(
        pieces_of(chosen),
        media_type="application/octet-stream",
        headers={"content-length": str(os.fstat(chosen.fileno()).st_size), **_attachment(file)},
    )


@router.get("/v1/adapters/{name}/archive")
async def download_archive(name: str, service: ServiceDep, caller: ManagerDep, version: Version = None) -> Response:
    """All files of an adapter as one zip."""
    stored, files = await service.threads.manage(_open_files, service.tenants.of(caller.tenant), name, version)
    return StreamingResponse(
        zipped(files), media_type="application/zip", headers=_attachment(f"{name}-{stored.version}.zip")
    )


@router.delete("/v1/adapters/{name}")
async def delete_adapter(name: str, service: ServiceDep, caller: ManagerDep, version: Version = None) -> Response:
    """Remove a version of an adapter, or all of them. Requests under way that have it finish with it."""
    tenant = service.tenants.of(caller.tenant)

    def remove() -> bool:
        with _missing_is_404(name, version):
            folder_inside(tenant.store, name, version)
            tenant.store.remove(name, version)
        return name not in tenant.store.names()

    if await service.threads.manage(remove):
        await service.engine.call(lambda: _evict_removed(service, tenant.engine_name(name)))
    return Json({"id": name, "object": "adapter", "version": version, "deleted": True})


# ── inside ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _open_files(tenant: Tenant, name: str, version: int | None) -> tuple[Stored, dict[str, BinaryIO]]:
    """An adapter with its files, opened. Raises ApiError if there is none."""
    with _missing_is_404(name, version):
        stored = stored_inside(tenant.store, name, version)
        return stored, opened_files(stored.folder)


@contextmanager
def _missing_is_404(name: str, version: int | None = None) -> Iterator[None]:
    """Raises ApiError in the place of errors that say that an adapter is not there, or is removed meanwhile."""
    try:
        yield
    except (UnknownAdapterError, FileNotFoundError):
        wanted = f"{name[:100]!r}" if version is None else f"version {version} of {name[:100]!r}"
        raise ApiError(404, f"there is no adapter {wanted}: GET /v1/adapters lists those there are") from None


async def _verify_and_add(service: Service, caller: Caller, name: str, folder: Path) -> Response:
    """Verify an adapter in a folder and store it."""
    tenant = service.tenants.of(caller.tenant)
    if name in service.own_names:
        raise ApiError(400, f"{name!r} is the name of the base or the embedder: choose another", param="name")
    check_inside(tenant.store, name)
    size = await verify(service, folder)
    await service.engine.call(lambda: pinned.check_successor(service, caller, tenant.engine_name(name), size))
    stored = await service.threads.manage(tenant.store.add, folder, name)
    return Json(await service.threads.manage(lambda: _describe(service, caller, name, stored.version)), 201)


async def verify(service: Service, folder: Path) -> int:
    """Let the engine load the adapter, and take it back; returns its bytes in memory. Raises ApiError with what is
    wrong with it.
    """
    engine, name = service.engine.engine, f"upload {uuid.uuid4().hex}"
    try:
        try:
            await service.engine.call(lambda: engine.put(name, folder))
            await service.engine.load(name)
            loaded = engine.adapters.residents.versions
            return await service.engine.call(lambda: sum(version.bytes for version in loaded if version.name == name))
        finally:
            with CancelScope(shield=True):  # also where the client has left
                await service.engine.call(lambda: _remove_upload(service, name))
    except (HalkaError, OSError) as error:
        raise ApiError(400, public(str(error).replace(f"{folder}/", "").replace(str(folder), "the adapter"))) from None


def _remove_upload(service: Service, name: str) -> None:
    with suppress(HalkaError):  # it is not there
        service.engine.engine.adapters.unload(name)
        service.engine.engine.drop(name)


def _evict_removed(service: Service, name: str) -> None:
    """Evict an adapter that is in no store any more, unless requests have it: then by use."""
    service.engine.engine.adapters.unpin(name)
    with suppress(HalkaError):
        service.engine.engine.adapters.unload(name)


async def _in_engine(
    service: Service, caller: Caller, name: str, change: Callable[[str], Awaitable[object]]
) -> Response:
    """Change what the engine has of an adapter; the response describes it."""
    tenant = service.tenants.of(caller.tenant)
    with _missing_is_404(name):
        await service.threads.manage(stored_inside, tenant.store, name)
    try:
        await change(tenant.engine_name(name))
    except UnknownAdapterError:
        raise
    except HalkaError as error:
        raise refusal(error, 409, caller=caller, code="wrong_status") from None
    return Json(await service.threads.manage(lambda: _describe(service, caller, name)))


def _describe_all(service: Service, caller: Caller) -> list[dict[str, Any]]:
    described = list[dict[str, Any]]()
    for name in service.tenants.of(caller.tenant).store.names():
        with suppress(ApiError):  # removed meanwhile, or a link
            described.append(_describe(service, caller, name))
    return described


def _describe(service: Service, caller: Caller, name: str, version: int | None = None) -> dict[str, Any]:
    """An adapter as clients see it, without any path. One that is damaged has the reason as its `error`."""
    tenant, stored, damage = service.tenants.of(caller.tenant), None, {}
    with _missing_is_404(name, version):
        folder = folder_inside(tenant.store, name, version)
        files = {path.name: path.stat().st_size for path in sorted(folder.iterdir()) if path.is_file()}
        versions, created = tenant.store.versions(name), int(folder.stat().st_mtime)
        try:
            stored = tenant.store.get(name, int(folder.name))
        except FileNotFoundError:
            raise
        except (DamagedFolderError, OSError) as error:
            damage = {"error": api_error(error, caller).message}
    card, engine_name = stored and stored.card, tenant.engine_name(name)
    resident = [version for version in service.engine.engine.adapters.residents.versions if version.name == engine_name]
    return {
        "id": name,
        "object": "adapter",
        "version": int(folder.name),
        "versions": versions,
        "created_at": created,
        "method": None if card is None else card.method,
        "task": stored.task if stored else "",
        "tags": stored.tags if stored else (),
        "parameters": None if card is None else card.parameters,
        "measurements": None if card is None else card.measurements,
        "files": files,
        "bytes": sum(files.values()),
        "loaded": bool(resident),
        "pinned": any(version.pinned for version in resident),
        "requests": sum(version.users for version in resident),
        **damage,
    }


def _attachment(name: str) -> dict[str, str]:
    shown = name if is_portable_name(name) else "file"
    return {"content-disposition": f'attachment; filename="{shown}"'}
