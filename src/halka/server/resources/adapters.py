"""`/v1/adapters`: the caller's adapters, uploaded and verified, downloaded and deleted.

What comes in is a version only after the engine has loaded it, as it would for a request.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, BinaryIO

from anyio import CancelScope
from fastapi import APIRouter, Form, Query, UploadFile
from pydantic import Field
from starlette.responses import Response, StreamingResponse

from halka.server.errors import ApiError, api_error, refusal
from halka.server.guards.access import Caller, CallerDep, ManagerDep
from halka.server.requests import Body, Count, Labels, Name
from halka.server.resources.adapter_files import (
    check_inside,
    check_names,
    close,
    content_id,
    copy_files,
    files_below,
    folder_inside,
    opened_files,
    pieces_of,
    sizes_of,
    stored_inside,
    zipped,
)
from halka.server.resources.adapter_list import page_of
from halka.server.resources.adapter_views import missing_is_404, view_of
from halka.server.resources.residency import check_successor, evict_removed
from halka.server.resources.uploads import UploadRoute, file_names, save, staging
from halka.server.service import Service, ServiceDep
from halka.server.tenants import Tenant
from halka.server.wire import Json
from halka.storage.adapter_store import Stored
from halka.util.errors import HalkaError
from halka.util.files import is_portable_name

router = APIRouter(tags=["adapters"], route_class=UploadRoute)
Version = Annotated[Count | None, Query()]
Words = Annotated[str, Query(max_length=200)]
Start = Annotated[int, Query(ge=0, lt=2**31)]
Listed = Annotated[Count | None, Query()]


class FromRoot(Body):
    """An adapter's folder, below one of those that the tenant may load from; its name is the folder's by default."""

    folder: Annotated[str, Field(max_length=500)]
    name: Name | None = None


class Tags(Body):
    """The tags that an adapter has from now on, and no others."""

    tags: Labels


@router.get("/v1/adapters")
async def list_adapters(
    service: ServiceDep, caller: CallerDep, find: Words = "", start: Start = 0, count: Listed = None
) -> Response:
    """List the caller's adapters by name, from `start` on; with `find` those that have all its words."""
    return Json({"object": "list", **await service.threads.read(page_of, service, caller, find, start, count)})


@router.post("/v1/adapters")
async def upload_adapter(
    service: ServiceDep, caller: ManagerDep, name: Annotated[Name, Form()], files: list[UploadFile]
) -> Response:
    """Add an adapter by its files, or the next version of one: the configuration, safetensors, and halka.json."""
    names = file_names(files)
    sizes = {name: upload.size or 0 for name, upload in zip(names, files, strict=True)}
    check_names(sizes)
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
            sizes = sizes_of(files)
            await service.guards.quota.reserve(caller, sum(sizes.values()))
            await service.threads.manage(copy_files, files, sizes, folder)
        finally:
            close(files)
        return await _verify_and_add(service, caller, body.name or body.folder.rpartition("/")[2], folder)


@router.get("/v1/adapters/{name}")
async def get_adapter(name: str, service: ServiceDep, caller: CallerDep, version: Version = None) -> Response:
    """One of the caller's adapters: its versions, and one of them, by default the newest, with its content's id."""

    def view() -> dict[str, Any]:
        shown = view_of(service, caller, name, version)
        return shown | _fingerprint(service, caller, shown)

    return Json(await service.threads.read(view))


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


@router.patch("/v1/adapters/{name}")
async def tag_adapter(name: str, body: Tags, service: ServiceDep, caller: ManagerDep) -> Response:
    """Give an adapter tags, which all its versions have."""
    store = service.tenants.of(caller.tenant).store

    def tag() -> dict[str, Any]:
        with missing_is_404(name):
            check_inside(store, name)
            store.set_tags(name, body.tags)
        return view_of(service, caller, name)

    return Json(await service.threads.manage(tag))


@router.delete("/v1/adapters/{name}")
async def delete_adapter(name: str, service: ServiceDep, caller: ManagerDep, version: Version = None) -> Response:
    """Remove a version of an adapter, or all of them. Requests under way that have it finish with it."""
    tenant = service.tenants.of(caller.tenant)

    def remove() -> None:
        with missing_is_404(name, version):
            folder_inside(tenant.store, name, version)
            tenant.store.remove(name, version)

    try:
        await service.threads.manage(remove)
    finally:  # also where `halka adapters remove` was first
        await evict_removed(service, tenant, name)
    return Json({"id": name, "object": "adapter", "version": version, "deleted": True})


# ── inside ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _fingerprint(service: Service, caller: Caller, shown: Mapping[str, Any]) -> dict[str, Any]:
    """The id of an adapter's content, which answers by it name; for one whose files are damaged the reason."""
    name, version = shown["id"], shown["version"]
    try:
        with missing_is_404(name, version):
            stored = stored_inside(service.tenants.of(caller.tenant).store, name, version)
            return {"fingerprint": content_id(stored.folder)}
    except (HalkaError, OSError) as error:
        return {"fingerprint": None, "error": api_error(error, caller).message}


def _open_files(tenant: Tenant, name: str, version: int | None) -> tuple[Stored, dict[str, BinaryIO]]:
    """An adapter with its files, opened. Raises ApiError if there is none."""
    with missing_is_404(name, version):
        stored = stored_inside(tenant.store, name, version)
        return stored, opened_files(stored.folder)


async def _verify_and_add(service: Service, caller: Caller, name: str, folder: Path) -> Response:
    """Verify an adapter in a folder and store it."""
    tenant = service.tenants.of(caller.tenant)
    if name in service.own_names:
        raise ApiError(400, f"{name!r} is the name of the base or the embedder: choose another", param="name")
    check_inside(tenant.store, name)
    await service.threads.manage(tenant.store.check_new, name)
    size = await verify(service, name, folder)
    await service.engine.call(lambda: check_successor(service, caller, tenant.engine_name(name), size))
    try:
        stored = await service.threads.manage(tenant.store.add, folder, name)
    except HalkaError as error:
        raise _refused(error, folder) from None
    return Json(await service.threads.manage(view_of, service, caller, name, stored.version), 201)


async def verify(service: Service, name: str, folder: Path) -> int:
    """Let the engine load the adapter, and take it back; returns its bytes in memory. Raises ApiError with what is
    wrong with it, or with the room for it.
    """
    engine, upload = service.engine.engine, f"upload {uuid.uuid4().hex}"
    try:
        try:
            await service.engine.call(lambda: engine.put(upload, folder))
            await service.engine.load(upload)
            loaded = service.adapters.residents.versions
            return await service.engine.call(lambda: sum(version.bytes for version in loaded if version.name == upload))
        finally:
            with CancelScope(shield=True):  # also where the client has left
                await service.engine.call(lambda: _remove_upload(service, upload))
    except (HalkaError, OSError) as error:
        raise _refused(error, folder, (upload, name)) from None


def _refused(error: Exception, folder: Path, *names: tuple[str, str]) -> ApiError:
    """What is wrong with an adapter that came into this folder, of which nobody knows; `names` are replaced, too."""
    message = str(error)
    for own, public_name in ((f"{folder}/", ""), (str(folder), "the adapter"), *names):
        message = message.replace(own, public_name)
    return refusal(error, message=message)


def _remove_upload(service: Service, name: str) -> None:
    with suppress(HalkaError):  # it is not there
        service.adapters.unload(name)
        service.engine.engine.drop(name)


def _attachment(name: str) -> dict[str, str]:
    shown = name if is_portable_name(name) else "file"
    return {"content-disposition": f'attachment; filename="{shown}"'}
