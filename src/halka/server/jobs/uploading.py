"""Files of data that come with a request. Parquet becomes JSON lines, in a process of its own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from fastapi import UploadFile
from fastapi.exceptions import RequestValidationError
from pydantic import TypeAdapter, ValidationError

from halka.server.errors import ApiError
from halka.server.guards.access import Caller
from halka.server.jobs.data import PARQUET, plain_name
from halka.server.jobs.reading import read_by
from halka.server.resources.uploads import file_name, save
from halka.server.service import Service
from halka.server.settings import MB

T = TypeVar("T")


def read_form(adapter: TypeAdapter[T], text: str) -> T:
    """What a form's field holds as JSON. Raises RequestValidationError."""
    try:
        return adapter.validate_json(text)
    except ValidationError as error:
        raise RequestValidationError(error.errors()) from None


async def save_data(
    service: Service, caller: Caller, uploads: Mapping[str, UploadFile | None], folder: Path
) -> dict[str, Path]:
    """Write the files that came below a folder; returns their paths by what they are for. Raises ApiError."""
    most, paths = int(service.settings.upload_size * MB), dict[str, Path]()
    for name, upload in uploads.items():
        if upload is not None:
            path = await save(service, upload, folder / name / plain_name(file_name(upload)))
            if path.suffix == PARQUET:
                room = await service.guards.quota.reserve(caller, 1, most)
                path = await service.reading(caller.tenant, json_lines_of, path, room)
            paths[name] = path
    return paths


def json_lines_of(path: Path, most: int) -> Path:
    """The rows of a Parquet file as a file of JSON lines of so many bytes at most, in its place. Raises ApiError."""
    name, lines = path.parent.name, path.with_suffix(".jsonl")
    try:
        output = read_by("halka.server.jobs.parquet", (path, lines, most), most, name)
    finally:
        path.unlink()
    if output:
        raise ApiError(400, output.decode().replace(str(path), name), param=name)
    return lines
