"""The examples that a training job held out for validation, for an evaluation of what came of it."""

from __future__ import annotations

import json
from pathlib import Path

from halka.data.examples import read_examples
from halka.data.splits import hold_out
from halka.server.errors import ApiError, public
from halka.server.jobs.data import DATA, PROGRAM, VALIDATION, data_file, is_large
from halka.server.jobs.folder import JobFolder, jobs_in
from halka.server.jobs.reading import read_by
from halka.util.errors import DamagedFolderError, HalkaError


def held_out_lines(jobs: Path, id: str, most: int) -> bytes:
    """The validation examples of a training among these jobs, as the lines of a data file of so many bytes at most.

    Raises ApiError where there is no such training, and where it held nothing out.
    """
    job, shape, path, share = _held_out(jobs, id)
    try:
        if not is_large({DATA: path}):
            return lines_of(path, shape, share)
        lines = read_by(PROGRAM, ("held_out", path, json.dumps(shape), json.dumps(share)), most, "held_out_of")
        if lines.startswith(b'{"reason"'):
            raise HalkaError(json.loads(lines)["reason"])
    except HalkaError as error:
        raise ApiError(400, public(str(error).replace(f"{job.path}/", "")), param="held_out_of") from None
    return lines


def lines_of(path: Path, shape: str | None, share: float | None) -> bytes:
    """The examples of a file, or those of them that a training with that share held out, as the lines of a data file.

    Raises HalkaError for data that cannot be used.
    """
    examples = read_examples(path, shape).examples
    if share is not None:
        _, examples = hold_out(examples, share)
    return "".join(json.dumps(example.plain, ensure_ascii=False) + "\n" for example in examples).encode()


def _held_out(jobs: Path, id: str) -> tuple[JobFolder, str | None, Path, float | None]:
    """The training of that id, its data's shape, the file of what it held out, and which share of that; None: all."""
    job = next((job for job in jobs_in(jobs) if job.id == id), None)
    try:
        request = None if job is None else job.request()
    except (DamagedFolderError, FileNotFoundError):
        request = None
    if job is None or request is None or request.kind != "train":
        raise ApiError(404, f"there is no training job {id!r}: GET /v1/jobs lists those there are", param="held_out_of")
    validation, shape = request.settings.get(VALIDATION), request.settings.get("shape")
    if (path := data_file(job.path, VALIDATION)) is not None:
        return job, shape, path, None
    if isinstance(validation, float) and (path := data_file(job.path, DATA)) is not None:
        return job, shape, path, validation
    raise ApiError(400, f"{id} held nothing out: give data", param="held_out_of")
