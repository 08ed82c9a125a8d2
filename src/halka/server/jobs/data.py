"""The data of a job: rows or files, called by what they are for, and read once before anything is queued.

data.jsonl                           what came as rows
data/letters.csv, validation/…       what came as a file, which keeps its name, but for what no name needs
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import regex

from halka.data.examples import read_examples
from halka.data.readers import TEXTS
from halka.server.errors import ApiError, public
from halka.server.jobs.reading import read_by
from halka.server.jobs.requests import AdviseJob, EvaluateJob, TrainJob
from halka.util.errors import HalkaError

DATA, VALIDATION = "data", "validation"
SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", *TEXTS)
PARQUET = ".parquet"  # becomes .jsonl as it comes
SMALL = 1 << 18  # bytes of data that are read in this process; reading takes up to a hundred times as many
MOST = 1 << 20  # bytes of what is said of data
PROGRAM = "halka.server.jobs.data_reader"
LONGEST = 50  # characters of a name before its suffix: at most 200 bytes, of the 255 that a file's name may have
UNPLAIN = regex.compile(r"[^\p{L}\p{M}\p{N}_\u200c\u200d]+")


def placed(asked: Any, files: Mapping[str, Path]) -> tuple[dict[str, str], dict[str, bytes | Path]]:
    """The files' names in a folder, by what they are for, and their contents.

    asked  has `data`, and perhaps `validation`, as rows
    files  those that came with the request, or that it names, each called as `plain_name` has it
    Raises ApiError for what came in both ways, and for a file of another kind.
    """
    for name, path in files.items():
        check_suffix(name, path)
    names = {name: f"{name}/{path.name}" for name, path in files.items()}
    contents: dict[str, bytes | Path] = {names[name]: path for name, path in files.items()}
    for name in (DATA, VALIDATION):
        rows = getattr(asked, name, None)
        if isinstance(rows, list):
            if name in names:
                raise ApiError(400, f"{name} came as rows and as a file: give one of them", param=name)
            names[name] = f"{name}.jsonl"
            contents[names[name]] = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
    return names, contents


def written(contents: Mapping[str, bytes | Path], folder: Path) -> dict[str, Path]:
    """The files' paths, of which those that came as rows are written to a folder."""
    paths = dict[str, Path]()
    for name, content in contents.items():
        paths[name] = content if isinstance(content, Path) else folder / name
        if isinstance(content, bytes):
            paths[name].write_bytes(content)
    return paths


def is_large(files: Mapping[str, bytes | Path]) -> bool:
    """Whether some of the data, by file, is read in a process of its own, so that it takes a turn."""
    data = [content for file, content in files.items() if _purpose(file) in (DATA, VALIDATION)]
    return any(len(it) > SMALL if isinstance(it, bytes) else it.stat().st_size > SMALL for it in data)


def check_data(files: Mapping[str, Path], job: TrainJob | EvaluateJob | AdviseJob) -> None:
    """Read the data as the job will. Raises ApiError for what it could not use."""
    adapters = [*job.adapters] if isinstance(job, EvaluateJob) else None
    for file, path in files.items():
        name = _purpose(file)
        if name in (DATA, VALIDATION):
            if is_large({file: path}):
                arguments = ("check", path, json.dumps(job.shape), json.dumps(adapters))
                problem = json.loads(read_by(PROGRAM, arguments, MOST, name))
            else:
                problem = problem_of(path, job.shape, adapters)
            if problem is not None:
                raise ApiError(400, public(problem[0].replace(str(path), name)), param=problem[1] or name)


def problem_of(path: Path, shape: str | None, adapters: Sequence[str] | None) -> tuple[str, str | None] | None:
    """Why a job could not use the data, and the parameter that is wrong if that is not the data; None if it could.

    adapters   those that its rows may name; None: any
    """
    try:
        rows = read_examples(path, shape).rows
    except HalkaError as error:
        return str(error), None
    for row in rows:
        if (adapter := row.fields.get("adapter")) and adapters is not None and adapter not in adapters:
            return f"{row.where} names {adapter!r}, which is not among adapters", "adapters"
    return None


def check_suffix(name: str, path: Path) -> None:
    """Raises ApiError for a file of a kind that holds no data."""
    if path.suffix.lower() not in SUFFIXES:
        kinds = ", ".join((*SUFFIXES, PARQUET))
        raise ApiError(400, f"{name} is a file of the kind {path.suffix!r}: use {kinds}", param=name)


def plain_name(name: str) -> str:
    """What a file of data is called on the disk: the letters, digits and underscores of its name, and its kind.

    name  as `file_name` has checked it
    """
    path = Path(name)
    return (UNPLAIN.sub("-", path.stem)[:LONGEST].strip("-") or DATA) + path.suffix[:10].lower()


def data_file(folder: Path, name: str) -> Path | None:
    """A job's data, or its validation examples, by the job's folder; None if it has none."""
    return next(chain(folder.glob(f"{name}/*"), folder.glob(f"{name}.*")), None)


def _purpose(file: str) -> str:
    """What a file of a job's folder is for."""
    return re.split(r"[./]", file, maxsplit=1)[0]
