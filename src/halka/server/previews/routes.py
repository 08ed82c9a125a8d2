"""`/v1/data/preview`, `/v1/estimate`: a draft looked at, in a process of its own, before it becomes a job.

A draft has a job's fields, but for `task`, which has no data to be looked at.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter
from pydantic import Field
from starlette.responses import Response

from halka.methods import described
from halka.server.errors import ApiError, public
from halka.server.guards.access import Caller, ManagerDep
from halka.server.jobs.commands import check_settings
from halka.server.jobs.data import DATA, VALIDATION, placed, written
from halka.server.jobs.files import named_files
from halka.server.jobs.requests import DataFiles, Rows, Validation
from halka.server.requests import Name
from halka.server.resources.uploads import staging
from halka.server.service import Service, ServiceDep
from halka.server.wire import Json

router = APIRouter(tags=["jobs"])
What = Literal["preview", "estimate"]


class Draft(DataFiles):
    """A training's data and settings. `examples`: how many to show, in previews; `name` changes nothing."""

    kind: Literal["train"] | None = None
    name: Name | None = None
    data: Rows | None = None
    validation: Validation = None
    shape: Annotated[str, Field(max_length=40)] | None = None
    settings: dict[str, Any] = Field(default_factory=dict[str, Any])
    examples: Annotated[int, Field(ge=0, le=20)] = 3


@router.post("/v1/data/preview")
async def preview_data(draft: Draft, service: ServiceDep, caller: ManagerDep) -> Response:
    """Show what a training would read of its data: tokens, loss, lengths, repeats, rows that cannot be used."""
    return await _look_at("preview", draft, service, caller)


@router.post("/v1/estimate")
async def estimate_training(draft: Draft, service: ServiceDep, caller: ManagerDep) -> Response:
    """Estimate the memory and time of a training with these settings on this data."""
    return await _look_at("estimate", draft, service, caller)


async def _look_at(what: What, draft: Draft, service: Service, caller: Caller) -> Response:
    async with staging(service) as folder:
        tenant = service.tenants.of(caller.tenant)
        files = await service.threads.manage(named_files, draft, {}, tenant, folder, service.file_life)
        look = await service.threads.manage(_prepare, what, draft, files, folder, service)
        result = await service.looks(look, caller.tenant)
    if (reason := result.get("reason")) is not None:
        raise ApiError(400, public(reason, caller), param=DATA)
    return Json(result)


def _prepare(what: What, draft: Draft, files: Mapping[str, Path], folder: Path, service: Service) -> Path:
    """The file that the process reads. Raises ApiError for data that is not there, and for wrong settings."""
    names, contents = placed(draft, files)
    if DATA not in names:
        raise ApiError(400, "give data, as rows or a file that is kept", param=DATA)
    method, config = check_settings(draft.settings)
    paths, settings = written(contents, folder), service.settings
    look = {
        "what": what,
        "data": str(paths[names[DATA]]),
        "validation": str(paths[names[VALIDATION]]) if VALIDATION in names else None,
        "held_out": draft.validation if isinstance(draft.validation, float) and VALIDATION not in names else 0.0,
        "shape": draft.shape,
        "examples": draft.examples,
        "method": described(method),
        "train": asdict(config),
        "limits": config.limits(),
        "base": settings.base,
        "dtype": settings.dtype,
        "quantize": settings.quantize,
        "device": settings.device,
    }
    path = folder / "look.json"
    path.write_text(json.dumps(look))
    return path
