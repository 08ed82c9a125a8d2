"""Files that come with a request: kept in a folder of their own until they are checked, and known by plain names."""

from __future__ import annotations

import shutil
import time
import unicodedata
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import regex
from anyio import CancelScope
from fastapi import Request, Response, UploadFile
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

from halka.rag.collection_folder import ended_in
from halka.server.errors import ApiError

if TYPE_CHECKING:
    from halka.server.service import Service
    from halka.server.tenants import Tenant

STALE = 24 * 3600  # seconds after which nobody is at work with an upload
LONGEST = 200  # characters of a file's name
FILES, FIELDS = 64, 128  # the most of an upload: of each, up to a MB is kept in memory
# What separates a path's parts, and what is not seen, but for joiners after a letter, as Bengali and Persian have them.
UNFIT = regex.compile(r"[/\\\p{Cc}\p{Cs}\p{Co}\p{Zl}\p{Zp}]|[^\P{Cf}\u200c\u200d]|(?<![\p{L}\p{M}])[\u200c\u200d]")


class UploadRoute(APIRoute):
    """A route whose forms have a bounded number of files and fields; more are refused with 400 as they come."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_bounded(request: Request) -> Response:
            try:
                return await handle(_BoundedRequest(request.scope, request.receive))
            except HTTPException as error:  # whatever was wrong as the form came, for FastAPI it is the client's fault
                if isinstance(error.__cause__, OSError):
                    raise error.__cause__ from None
                raise

        return handle_bounded


class _BoundedRequest(Request):
    def form(self, **limits: Any):
        return super().form(**limits | {"max_files": FILES, "max_fields": FIELDS})


@asynccontextmanager
async def staging(service: Service) -> AsyncIterator[Path]:
    """A folder for one request's files, below the server's data, which is removed at the block's end."""
    folder = service.settings.data / "uploads" / uuid.uuid4().hex
    await service.threads.manage(lambda: folder.mkdir(parents=True, mode=0o700))
    try:
        yield folder
    finally:
        with CancelScope(shield=True):  # also where the client has left
            await service.threads.manage(lambda: shutil.rmtree(folder, ignore_errors=True))


def remove_stale(data: Path, tenants: Sequence[Tenant]) -> None:
    """Remove what killed servers have left: uploads, halves of jobs, and of collections that were removed."""
    jobs = (tenant.jobs.glob(".job-*") for tenant in tenants)
    collections = (ended_in(tenant.collections) for tenant in tenants)
    for folder in chain((data / "uploads").glob("*"), *jobs, *collections):
        with suppress(OSError):
            if time.time() - folder.lstat().st_mtime > STALE:
                shutil.rmtree(folder)


async def save(service: Service, upload: UploadFile, path: Path) -> Path:
    """Write what was uploaded to a new file, in a new folder if need be; where it came to is free then."""

    def copy() -> None:
        path.parent.mkdir(exist_ok=True)
        with upload.file, path.open("xb") as file:
            shutil.copyfileobj(upload.file, file, 1 << 20)

    await service.threads.manage(copy)
    return path


def file_names(uploads: Sequence[UploadFile]) -> list[str]:
    """The names that files came under. Raises ApiError as `file_name`, and for two that are the same."""
    names = [file_name(upload) for upload in uploads]
    if len({*names}) < len(names):
        raise ApiError(400, "two files have the same name", param="files")
    return names


def file_name(upload: UploadFile) -> str:
    """The name that a file came under. Raises ApiError for none, and for what could be a path or hide something."""
    name = unicodedata.normalize("NFC", upload.filename or "")
    if not name.strip() or len(name) > LONGEST or UNFIT.search(name) or name.startswith("."):
        raise ApiError(
            400,
            f"{name[:LONGEST]!r} cannot be a file's name here: it has up to {LONGEST} visible characters, none of them "
            "a slash, and does not begin with a dot",
            param="files",
        )
    return name
