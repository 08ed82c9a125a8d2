"""`/v1/files`: data that is sent once, and named by the requests that look at it, estimate with it and train on it.

tenants/acme/files/file-5f3a….letters.jsonl    counts as stored, for an hour at most
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from stat import S_ISREG
from typing import Any, TypeVar

from fastapi import APIRouter, UploadFile
from starlette.responses import Response

from halka.server.errors import ApiError
from halka.server.guards.access import Caller, ManagerDep
from halka.server.jobs.data import DATA, VALIDATION, check_suffix
from halka.server.jobs.uploading import save_data
from halka.server.locks import locked
from halka.server.resources.uploads import UploadRoute, file_name, remove_stale, staging
from halka.server.service import Service, ServiceDep
from halka.server.tenants import Tenant
from halka.server.wire import Json

log = logging.getLogger("halka.server.jobs")
router = APIRouter(tags=["jobs"], route_class=UploadRoute)
T = TypeVar("T")

EVERY = 60  # seconds between two looks for files that are too old
AHEAD = -60  # seconds: a file from the future was kept while the clock was wrong
MOST = 8  # files that are kept of a tenant: another ends the oldest


@router.post("/v1/files")
async def keep_file(service: ServiceDep, caller: ManagerDep, file: UploadFile) -> Response:
    """Keep a file of data for an hour, to be named as `data_file`: .jsonl, .json, .csv, .tsv, .parquet, .txt or .md."""
    async with staging(service) as folder:
        path = (await save_data(service, caller, {"file": file}, folder))["file"]
        check_suffix("file", path)
        view = await service.threads.manage(_keep, path, service.tenants.of(caller.tenant), service.file_life)
    return Json(view | {"filename": file_name(file)}, 201)


@router.get("/v1/files")
async def list_files(service: ServiceDep, caller: ManagerDep) -> Response:
    """List the files that are kept of the caller's tenant, the newest first."""

    def views() -> list[dict[str, Any]]:
        views = list[dict[str, Any]]()
        for path in _kept(service.tenants.of(caller.tenant), service.file_life).values():
            with suppress(FileNotFoundError):  # it has ended meanwhile
                views.append(_view(path, service.file_life))
        return views

    data = await service.threads.manage(views)
    return Json({"object": "list", "has_more": False, "data": data})  # else OpenAI's client asks again, without end


@router.get("/v1/files/{id}")
async def get_file(id: str, service: ServiceDep, caller: ManagerDep) -> Response:
    """A file that is kept: how large it is, and until when it is there."""
    return Json(await _with_file(service, caller, id, lambda path: _view(path, service.file_life)))


@router.delete("/v1/files/{id}")
async def delete_file(id: str, service: ServiceDep, caller: ManagerDep) -> Response:
    """Remove a file that is kept; jobs that were queued with it have their own."""
    await _with_file(service, caller, id, Path.unlink)
    return Json({"id": id, "object": "file", "deleted": True})


async def end_old_files(service: Service) -> None:
    """Remove files as they grow old, of all tenants, and what killed servers have left, without end."""
    while True:
        try:
            tenants = await service.threads.manage(service.tenants.all)
            await service.threads.manage(remove_stale, service.settings.data, tenants)
            for tenant in tenants:
                await service.threads.manage(_kept, tenant, service.file_life)
        except Exception:
            log.exception("files that have grown old could not be removed")
        await asyncio.sleep(EVERY)


def _kept(tenant: Tenant, life: float) -> dict[str, Path]:
    """A tenant's files by their ids, the newest first. Those older than `life`, in seconds, end here."""
    ages, now = list[tuple[float, Path]](), time.time()
    for path in tenant.files.glob("file-*"):
        with suppress(OSError):  # it has ended meanwhile, or is somebody else's
            about = path.lstat()
            if not S_ISREG(about.st_mode):
                continue
            if AHEAD < (age := now - about.st_mtime) < life:
                ages.append((age, path))
            else:
                path.unlink()
    return {_id(path): path for _, path in sorted(ages)}


def _id(path: Path) -> str:
    return path.name.partition(".")[0]


def _view(path: Path, life: int) -> dict[str, Any]:
    about = path.lstat()
    times = {"created_at": int(about.st_mtime), "expires_at": int(about.st_mtime) + life}
    return {"id": _id(path), "object": "file", "format": path.suffix[1:], "bytes": about.st_size, **times}


def _keep(path: Path, tenant: Tenant, life: int) -> dict[str, Any]:
    """The view of a file that is moved to where it is kept."""
    with locked(tenant.files):
        for old in [*_kept(tenant, life).values()][MOST - 1 :]:
            old.unlink(missing_ok=True)
        return _view(path.rename(tenant.files / f"file-{secrets.token_hex(8)}.{path.name}"), life)


async def _with_file(service: Service, caller: Caller, id: str, do: Callable[[Path], T]) -> T:
    """What `do` makes of a file that is kept. Raises ApiError for none."""

    def done() -> T:
        try:
            return do(_kept(service.tenants.of(caller.tenant), service.file_life)[id])
        except (KeyError, FileNotFoundError):  # it may end meanwhile
            raise _no_file(id, "id") from None

    return await service.threads.manage(done)


def _no_file(id: str, param: str) -> ApiError:
    return ApiError(
        404, f"there is no file {id[:100]!r} any more: POST /v1/files keeps it anew", param=param, code="no_file"
    )


def named_files(asked: Any, came: Mapping[str, Path], tenant: Tenant, folder: Path, life: int) -> dict[str, Path]:
    """The files that came with a request, and those that it names, linked into a folder, by what they are for.

    Raises ApiError for one that is not there any more, and for what came in both ways.
    """
    files = dict(came)
    for name in (DATA, VALIDATION):
        id = getattr(asked, f"{name}_file", None)
        if id is None:
            continue
        if name in came:
            raise ApiError(400, f"{name} came with the request and by its id: give one of them", param=f"{name}_file")
        try:
            kept = _kept(tenant, life)[id]
            files[name] = folder / name / kept.name.partition(".")[2]
            files[name].parent.mkdir()
            os.link(kept, files[name], follow_symlinks=False)
        except (KeyError, FileNotFoundError):
            raise _no_file(id, f"{name}_file") from None
    return files
