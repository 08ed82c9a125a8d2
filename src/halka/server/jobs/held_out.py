"""The examples that a training job held out for validation, for an evaluation of what came of it."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from halka.data.examples import read_examples
from halka.data.task import hold_out
from halka.server.errors import ApiError, public
from halka.server.jobs.data import DATA, VALIDATION
from halka.server.jobs.folder import JobFolder, jobs_in
from halka.util.errors import DamagedFolderError, HalkaError


def held_out_lines(jobs: Path, id: str) -> bytes:
    """The validation examples of a training among these jobs, as the lines of a data file.

    Raises ApiError where there is no such training, and where it held nothing out.
    """
    job = next((job for job in jobs_in(jobs) if job.id == id), None)
    try:
        request = None if job is None else job.request()
    except (DamagedFolderError, FileNotFoundError):
        request = None
    if job is None or request is None or request.kind != "train":
        raise ApiError(404, f"there is no training job {id!r}: GET /v1/jobs lists those there are", param="held_out_of")
    validation, shape = request.settings.get(VALIDATION), request.settings.get("shape")
    try:
        if (path := _file(job, VALIDATION)) is not None:
            examples = read_examples(path, shape).examples
        elif isinstance(validation, float) and (path := _file(job, DATA)) is not None:
            _, examples = hold_out(read_examples(path, shape).examples, validation)
        else:
            raise ApiError(400, f"{id} held nothing out: give data", param="held_out_of")
    except HalkaError as error:
        raise ApiError(400, public(str(error).replace(f"{job.path}/", "")), param="held_out_of") from None
    rows = (
        {"messages": [asdict(message) for message in example.messages], "references": example.references}
        for example in examples
    )
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def _file(job: JobFolder, name: str) -> Path | None:
    """The file of that name, whose suffix is its kind's; None if the job has none."""
    return next(job.path.glob(f"{name}.*"), None)
