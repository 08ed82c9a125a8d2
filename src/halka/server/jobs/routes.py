"""`/v1/jobs`: train, evaluate, advise and merge in processes of their own; watched as events, stopped, resumed."""

from __future__ import annotations

import os
import re
import shutil
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Annotated, Any, BinaryIO, TypeVar

import anyio
from fastapi import APIRouter, Form, Header, UploadFile
from pydantic import TypeAdapter
from starlette.responses import Response, StreamingResponse

from halka.server.errors import ApiError, refusal
from halka.server.guards.access import Caller, ManagerDep
from halka.server.jobs.commands import DOCUMENTS, PREDICTIONS, NewJob, new_job
from halka.server.jobs.data import DATA, VALIDATION, check_data, is_large, written
from halka.server.jobs.documents import document_lines, write_lines
from halka.server.jobs.files import named_files
from halka.server.jobs.folder import ENDED, MERGED, JobFolder, jobs_in
from halka.server.jobs.requests import AdviseJob, EvaluateJob, Job, MergeJob
from halka.server.jobs.uploading import read_form, save_data
from halka.server.jobs.views import steps_of, view_of
from halka.server.locks import locked
from halka.server.resources.adapter_files import close, opened_files, pieces_of, zipped
from halka.server.resources.collection_access import threads_of
from halka.server.resources.uploads import UploadRoute, staging
from halka.server.service import Service, ServiceDep
from halka.server.tenants import Tenant
from halka.server.wire import Events, Json, event
from halka.util.errors import DamagedFolderError, HalkaError
from halka.util.files import flush

router = APIRouter(tags=["jobs"], route_class=UploadRoute)
T = TypeVar("T")
JOBS: TypeAdapter[Job] = TypeAdapter(Job)

ID = re.compile(r"job-[0-9a-f]{16}")
TIMEOUT = 10.0  # seconds for a process to end
EVERY, SILENCE = 0.5, 15.0  # seconds between two looks, and after which a comment says that the server is there


@router.post("/v1/jobs")
async def start_job(job: Job, service: ServiceDep, caller: ManagerDep) -> Response:
    """Queue a job whose data is in the request, as rows, or a file that is kept."""
    return await _start(job, {}, service, caller)


@router.post("/v1/jobs/upload")
async def upload_job(
    service: ServiceDep,
    caller: ManagerDep,
    job: Annotated[str, Form(description="the job as JSON, as POST /v1/jobs takes it")],
    data: UploadFile,
    validation: UploadFile | None = None,
) -> Response:
    """Queue a job whose data comes as files: .jsonl, .json, .csv, .tsv, .parquet, .txt or .md."""
    parsed = read_form(JOBS, job)
    async with staging(service) as folder:
        files = await save_data(service, caller, {DATA: data, VALIDATION: validation}, folder)
        return await _start(parsed, files, service, caller)


@router.get("/v1/jobs")
async def list_jobs(service: ServiceDep, caller: ManagerDep) -> Response:
    """List the caller's jobs, the newest first."""

    def views() -> list[dict[str, Any]]:
        views = list[dict[str, Any]]()
        for job in jobs_in(service.tenants.of(caller.tenant).jobs):
            with suppress(FileNotFoundError):  # it was deleted meanwhile
                views.append(view_of(job, caller.folders))
        return sorted(views, key=lambda view: -view["created_at"])

    return Json({"object": "list", "data": await service.threads.manage(views)})


@router.get("/v1/jobs/{id}")
async def get_job(id: str, service: ServiceDep, caller: ManagerDep) -> Response:
    """A job: its status, its last step, and what came of it."""
    return Json(await _with_job(service, caller, id, lambda job: view_of(job, caller.folders)))


@router.get("/v1/jobs/{id}/events")
async def watch_job(
    id: str, service: ServiceDep, caller: ManagerDep, last_event_id: Annotated[str | None, Header()] = None
) -> Response:
    """A job's steps and changes of its status as server-sent events, to its end; also those that were before."""
    job, _ = await _with_job(service, caller, id, lambda job: (job, view_of(job, caller.folders)))
    seen = (last_event_id or "")[:18]  # no step's number has more digits
    after = int(seen) if seen.isascii() and seen.isdigit() else 0
    return Events(_events(job, after, service))


@router.get("/v1/jobs/{id}/predictions")
async def get_predictions(id: str, service: ServiceDep, caller: ManagerDep) -> Response:
    """The answers of an evaluation, a line of JSON each, with what was expected."""

    def opened() -> BinaryIO:
        try:
            return (_find_job(service, caller, id).path / PREDICTIONS).open("rb")
        except FileNotFoundError:
            raise ApiError(404, "this job has no predictions: an evaluation has, once it is done", param="id") from None

    return StreamingResponse(pieces_of(await service.threads.manage(opened)), media_type="application/jsonl")


@router.get("/v1/jobs/{id}/archive")
async def download_merged(id: str, service: ServiceDep, caller: ManagerDep) -> Response:
    """What a merge wrote, as one zip."""

    def opened() -> dict[str, BinaryIO]:
        job = _find_job(service, caller, id)
        folder = job.path / MERGED
        whole = folder.is_dir() and not folder.is_symlink()
        files = opened_files(folder) if whole else opened_files(job.path, (f"{MERGED}.gguf",))
        if not files or job.state() != "done":
            close(files)
            raise ApiError(404, "this job has written nothing to download: a merge has, once it is done", param="id")
        return files

    files = await service.threads.manage(opened)
    headers = {"content-disposition": f'attachment; filename="{id}.zip"'}
    return StreamingResponse(zipped(files), media_type="application/zip", headers=headers)


@router.post("/v1/jobs/{id}/stop")
async def stop_job(id: str, service: ServiceDep, caller: ManagerDep) -> Response:
    """Stop a job: a training ends after its step with a checkpoint; asked again, it ends at once."""
    return Json(await _with_job(service, caller, id, lambda job: _change(job, JobFolder.stop, caller)))


@router.post("/v1/jobs/{id}/resume")
async def resume_job(id: str, service: ServiceDep, caller: ManagerDep) -> Response:
    """Queue a job again that was stopped, interrupted or failed; a training goes on from its checkpoint."""
    limit = caller.lease.limits.storage
    return Json(await _with_job(service, caller, id, lambda job: _change(job, lambda job: job.resume(limit), caller)))


@router.delete("/v1/jobs/{id}")
async def delete_job(id: str, service: ServiceDep, caller: ManagerDep) -> Response:
    """Remove a job that does not run, with its data; the adapter that it trained stays."""
    await _with_job(service, caller, id, _remove)
    return Json({"id": id, "object": "job", "deleted": True})


# ── one job ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def _start(job: Job, files: Mapping[str, Path], service: Service, caller: Caller) -> Response:
    def in_turn(large: bool) -> Callable[..., Awaitable[Any]]:
        """What runs a function that reads data: a turn for large ones, of which the readers take much memory."""
        return partial(service.reading, caller.tenant) if large else service.threads.manage

    async with staging(service) as folder:
        tenant = service.tenants.of(caller.tenant)
        files = await service.threads.manage(named_files, job, files, tenant, folder, service.file_life)
        earlier = isinstance(job, EvaluateJob) and job.held_out_of is not None  # its data may be large
        new = await in_turn(earlier)(_check, job, files, tenant, service)
        size = sum(len(content) for content in new.files.values() if isinstance(content, bytes))
        if isinstance(job, AdviseJob) and job.collection is not None:
            lines = partial(document_lines, service, tenant.name, job.collection)
            threads = await threads_of(service, tenant.name, job.collection)
            documents = await threads.ingest(lambda: sum(map(len, lines())))
            await service.guards.quota.reserve(caller, documents)
            threads = await threads_of(service, tenant.name, job.collection)  # another where it was made anew
            path = await threads.ingest(write_lines, lines(), folder / DOCUMENTS, documents)
            new.files[DOCUMENTS] = path
        await service.guards.quota.reserve(caller, size + new.request.room)
        paths = await service.threads.manage(written, new.files, folder)
        if not isinstance(job, MergeJob):
            await in_turn(is_large(new.files))(check_data, paths, job)
        queued = await service.threads.manage(_queue, new, paths, tenant, service, caller.lease.limits.storage)
        view = await service.threads.manage(view_of, queued, caller.folders)
    return Json(view, 201)


def _check(job: Job, files: Mapping[str, Path], tenant: Tenant, service: Service) -> NewJob:
    """A job that may be queued. Raises ApiError for what cannot be done, and where the tenant has too many."""
    if getattr(job, "name", None) in service.own_names:
        raise ApiError(
            400, f"{service.name!r} and {service.embedders.default!r} are the base and the embedder", param="name"
        )
    _check_count(tenant, service)
    return new_job(job, files, tenant, service.settings)


def _check_count(tenant: Tenant, service: Service) -> None:
    if len(jobs_in(tenant.jobs)) >= service.settings.jobs_kept:
        raise ApiError(
            429,
            f"there are {service.settings.jobs_kept} jobs: delete some that have ended",
            code="too_many",
            headers={"retry-after": "60"},
        )


def _queue(new: NewJob, paths: Mapping[str, Path], tenant: Tenant, service: Service, limit: int | None) -> JobFolder:
    """Queue a job, whose data can be used. Raises ApiError as `_check` for too many."""
    for path in paths.values():  # else the lock is held while they are
        flush(path)
    with locked(tenant.jobs):
        _check_count(tenant, service)  # again: others may have come meanwhile
        return JobFolder.new(tenant.jobs, new.request, paths, limit)


def _find_job(service: Service, caller: Caller, id: str) -> JobFolder:
    """The caller's job of that id. Raises ApiError if there is none."""
    path = service.tenants.of(caller.tenant).jobs / id if ID.fullmatch(id) else None
    if path is None or path.is_symlink() or not path.is_dir():
        raise _no_job(id)
    return JobFolder(path)


def _no_job(id: str) -> ApiError:
    return ApiError(404, f"there is no job {id[:100]!r}: GET /v1/jobs lists those there are", param="id")


async def _with_job(service: Service, caller: Caller, id: str, function: Callable[[JobFolder], T]) -> T:
    """What a function returns of the caller's job. Raises ApiError if there is none, or none any more."""

    def call() -> T:
        try:
            return function(_find_job(service, caller, id))
        except FileNotFoundError:
            raise _no_job(id) from None

    return await service.threads.manage(call)


def _change(job: JobFolder, change: Callable[[JobFolder], None], caller: Caller) -> dict[str, Any]:
    try:
        change(job)
    except HalkaError as error:
        raise refusal(error, 409, caller=caller, code="wrong_status") from None
    return view_of(job, caller.folders)


def _remove(job: JobFolder) -> None:
    end = time.monotonic() + TIMEOUT
    while (lock := job.claim()) is None:
        with suppress(DamagedFolderError):
            if (state := job.state()) in ("running", "stopping"):
                raise ApiError(409, f"{job.id} is {state}: stop it first", code="wrong_status")
        if time.monotonic() > end:
            raise ApiError(409, f"the process of {job.id} does not end", code="wrong_status")
        time.sleep(0.05)  # who looks holds the lock for a moment, and so does a process that has written its end
    try:
        beside = job.path.with_name(f".{job.id}.{uuid.uuid4().hex[:8]}")
        job.path.rename(beside)
    finally:
        os.close(lock)
    shutil.rmtree(beside, ignore_errors=True)


# ── its events ────────────────────────────────────────────────────────────────────────────────────────────────────────


async def _events(job: JobFolder, after: int, service: Service) -> AsyncGenerator[bytes]:
    """What has happened and what happens to a job, with the number of its step as the event's id.

    A server that is about to end ends them: the job goes on, and the next server has the rest.
    """
    place, status, progress, spoken = 0, "", None, time.monotonic()
    while True:
        try:
            # before the steps: at its end none is missing
            view = await service.threads.manage(view_of, job, service.settings.folders)
            new, place = await service.threads.manage(steps_of, job, place)
        except FileNotFoundError:  # it was deleted
            return
        for step in new:
            if step["step"] > after:
                after, spoken = step["step"], time.monotonic()
                yield f"id: {after}\n".encode() + event(step, "step")
        if view["status"] != status:
            status, spoken = view["status"], time.monotonic()
            yield event(view, "status")
        elif view["progress"] != progress:
            spoken = time.monotonic()
            yield event({"progress": view["progress"]}, "progress")
        progress = view["progress"]
        if status in ENDED or service.guards.drain.draining:
            return
        if time.monotonic() - spoken > min(SILENCE, service.settings.timeout / 3):
            spoken = time.monotonic()
            yield b": still here\n\n"
        await anyio.sleep(EVERY)
