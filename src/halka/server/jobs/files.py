"""`/v1/files`: data that is sent once, and named by the requests that look at it, estimate with it and train on it.

tenants/acme/files/file-5f3a….jsonl    counts as stored, for an hour at most; none outlives a restart
"""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastapi import APIRouter, UploadFile
from starlette.responses import Response

from halka.server.errors import ApiError
from halka.server.guards.access import ManagerDep
from halka.server.jobs.data import DATA, VALIDATION, check_suffix
from halka.server.jobs.uploading import save_data
from halka.server.locks import locked
from halka.server.resources.uploads import UploadRoute, file_name, staging
from halka.server.service import ServiceDep
from halka.server.tenants import Tenant
from halka.server.wire import Json

router = APIRouter(tags=["jobs"], route_class=UploadRoute)

MOST = 8  # files that are kept of a tenant: another ends the oldest
FILES = "file-*"


@router.post("/v1/files")
async def keep_file(service: ServiceDep, caller: ManagerDep, file: UploadFile) -> Response:
    """Keep a file of data for an hour, to be named as `data_file`: .jsonl, .json, .csv, .tsv or .parquet."""
    async with staging(service) as folder:
        path = (await save_data(service, caller, {"file": file}, folder))["file"]
        check_suffix("file", path)
        about = path.stat()
        kept = await service.threads.manage(_kept, path, service.tenants.of(caller.tenant).files)
    asyncio.get_running_loop().call_later(service.file_life, kept.unlink, True)
    times = {"created_at": int(about.st_mtime), "expires_at": int(about.st_mtime) + service.file_life}
    return Json({"id": kept.stem, "object": "file", "filename": file_name(file), "bytes": about.st_size, **times}, 201)


def _kept(path: Path, folder: Path) -> Path:
    """A file moved to where it is kept."""
    with locked(folder):
        for old in sorted(folder.glob(FILES), key=os.path.getmtime)[: 1 - MOST]:
            old.unlink()
        return path.rename(folder / f"file-{secrets.token_hex(8)}{path.suffix}")


def named_files(asked: Any, came: Mapping[str, Path], tenant: Tenant, folder: Path) -> dict[str, Path]:
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
            (kept,) = tenant.files.glob(f"{id}.*")
            files[name] = folder / f"{name}{kept.suffix}"
            os.link(kept, files[name], follow_symlinks=False)
        except (ValueError, FileNotFoundError):
            raise ApiError(
                404,
                f"there is no file {id!r} any more: POST /v1/files keeps it anew",
                param=f"{name}_file",
                code="no_file",
            ) from None
    return files
