"""A job as clients see it: its status, its steps and what came of it, without any path."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from halka.server.errors import public
from halka.server.folders import Folders, with_texts
from halka.server.jobs.data import DATA, VALIDATION, data_file
from halka.server.jobs.folder import OUTPUT, RUN, JobFolder
from halka.util.errors import DamagedFolderError
from halka.util.text import one_line

METRICS = Path(RUN) / "metrics.jsonl"
OF_TRAINING = (
    "lr",
    "steps",
    "loss",
    "validation_loss",
    "score",
    "best_step",
    "tokens",
    "seconds",
    "parameters",
    "bytes",
)


def view_of(job: JobFolder, folders: Folders) -> dict[str, Any]:
    """A job as clients see it, without any path: none of `folders` and of what the job hides."""
    try:
        request, state, written = job.request(), job.state(), job.written()
    except DamagedFolderError as error:
        return _damaged(job, public(str(error)))
    hide = partial(_hidden, {f"{job.path}/": "", **request.hidden}, folders)
    return {
        "id": job.id,
        "object": "job",
        "kind": request.kind,
        "name": request.name,
        "status": state,
        "settings": request.settings,
        "files": _file_names(job),
        "created_at": request.created,
        "queued_at": written["queued"] / 1e9,
        "started_at": written.get("started"),
        "ended_at": written.get("ended"),
        "error": None if (error := written.get("error")) is None else one_line(hide(str(error))),
        "adapter": written.get("adapter"),
        "last_step": _last_step(job),
        "progress": None if request.kind == "train" else _last_words(job, hide),
        "result": with_texts(_result(job, request.kind), hide) if state == "done" else None,
    }


def _damaged(job: JobFolder, reason: str) -> dict[str, Any]:
    """A job whose files do not say what it is, or how it is: it runs, or has failed."""
    nothing = dict.fromkeys(
        ("name", "queued_at", "started_at", "ended_at", "adapter", "last_step", "progress", "result")
    )
    return {
        "id": job.id,
        "object": "job",
        "kind": None,
        "status": job.under_way or "failed",
        "settings": {},
        "files": {},
        "created_at": int(job.path.stat().st_mtime),
        "error": reason,
        **nothing,
    }


def _file_names(job: JobFolder) -> dict[str, str]:
    """The names of the files that came with it, by what they are for; what came as rows has none."""
    paths = {name: data_file(job.path, name) for name in (DATA, VALIDATION)}
    return {name: path.name for name, path in paths.items() if path is not None and path.parent != job.path}


def _result(job: JobFolder, kind: str) -> Any:
    try:
        result = json.loads((job.path / OUTPUT).read_bytes())
    except (OSError, ValueError):
        return None
    if not isinstance(result, dict):
        return None
    if kind == "train":
        return {key: result[key] for key in OF_TRAINING if key in result}
    return {key: value for key, value in result.items() if key not in ("predictions", "scores_file", "report")}


def _hidden(words: Mapping[str, str], folders: Folders, text: str) -> str:
    """A text with the words for paths, and without all others."""
    for path in sorted(words, key=len, reverse=True):
        text = text.replace(path, words[path])
    return folders.hidden(text)


# ── its steps ───────────────────────────────────────────────────────────────────────────────────────────────────────


def steps_of(job: JobFolder, start: int) -> tuple[list[dict[str, Any]], int]:
    """The whole lines of the metrics from an offset on, and the offset behind them; from 0 where the file shrank."""
    try:
        with (job.path / METRICS).open("rb") as file:
            start = start if start <= file.seek(0, 2) else 0
            file.seek(start)
            lines = file.read()
    except FileNotFoundError:
        return [], start
    whole = lines[: lines.rfind(b"\n") + 1]
    return _rows(whole.splitlines()), start + len(whole)


def _last_step(job: JobFolder) -> dict[str, Any] | None:
    try:
        with (job.path / METRICS).open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - 4096))
            lines = file.read().split(b"\n")[:-1]  # without what is being written
    except FileNotFoundError:
        return None
    return next(iter(_rows(lines[-1:])), None)


def _last_words(job: JobFolder, hide: Callable[[str], str]) -> str | None:
    """What the job's command last wrote of its progress."""
    lines = job.messages(4096).split("\n")[:-1]  # without what is being written
    return next((one_line(hide(line)) for line in reversed(lines) if line.strip()), None)


def _rows(lines: Iterable[bytes]) -> list[dict[str, Any]]:
    """The steps that these lines are; a damaged one is none."""
    rows = list[dict[str, Any]]()
    for line in lines:
        with suppress(ValueError, RecursionError):
            row = json.loads(line)
            if isinstance(row, dict) and isinstance(row.get("step"), int):
                rows.append(row)
    return rows
