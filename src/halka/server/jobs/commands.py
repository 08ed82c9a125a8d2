"""A job as the command of `halka` that does it: checked at once, so that what is queued can be done.

Base and precision are the server's; the data comes with the request and lies in the job's folder.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from halka.core import Method
from halka.evaluation.metrics import find_metric
from halka.methods import method_named
from halka.methods.prompt import check_start
from halka.models.loading import place_of, resolve, weight_files
from halka.server.errors import ApiError, refusal
from halka.server.jobs.data import DATA, VALIDATION, placed
from halka.server.jobs.folder import MERGED, RUN, JobRequest
from halka.server.jobs.held_out import held_out_lines
from halka.server.jobs.requests import AdviseJob, EvaluateJob, Job, MergeJob, TrainJob
from halka.server.resources.adapter_files import check_inside, stored_inside
from halka.server.settings import MB, ServerSettings
from halka.server.storage import bytes_below
from halka.server.tenants import Tenant
from halka.storage.adapter_store import Stored, name_and_version
from halka.training import TrainConfig
from halka.util.errors import HalkaError, UnknownAdapterError
from halka.util.precision import usable_precision
from halka.util.python import program
from halka.util.settings import Setting, build, convert, from_content, settings_of

DOCUMENTS = "documents.jsonl"
SETTINGS, PREDICTIONS = "settings.yaml", "predictions.jsonl"
DEFAULT_METHOD = "lora"
TEXT = Setting("text", str | None, "what virtual tokens start as")
OF_TRAINING = {path: one for path, one in settings_of(TrainConfig, "train").items() if one.name != "keep_every"}
"""TrainConfig's settings, but for that which fills a job's folder with adapters that nobody gets."""
BEST_BY = Setting("best_by", Literal["loss", "score"], "which evaluation is the best", default="loss")


@dataclass(frozen=True)
class NewJob:
    """A job that may be queued: its request and the files for its folder."""

    request: JobRequest
    files: dict[str, bytes | Path]


def new_job(job: Job, files: Mapping[str, Path], tenant: Tenant, settings: ServerSettings) -> NewJob:
    """The job as a command. `files` came with the request, as `data` and `validation`; they keep their names.

    Raises ApiError that names the field, for what cannot be done.
    """
    names, contents = placed(job, files)
    if isinstance(job, MergeJob):
        if names:
            raise ApiError(400, "a merge has no data", param=DATA)
        stored = _stored(tenant, job.adapter)  # a name alone means its newest version of now, whatever comes meanwhile
        job = job.model_copy(update={"adapter": f"{stored.name}@{stored.version}"})
        return NewJob(_request(job, _merge(job, tenant, settings), names, tenant, settings), contents)
    if isinstance(job, EvaluateJob) and job.held_out_of is not None:
        if DATA in names or job.task is not None:
            raise ApiError(400, "give one of data, task and held_out_of", param="held_out_of")
        names[DATA] = DATA + ".jsonl"
        contents[names[DATA]] = held_out_lines(tenant.jobs, job.held_out_of, int(settings.upload_size * MB))
    if (job.task is None) == (DATA not in names):
        raise ApiError(400, "give either data, as rows or a file, or task", param=DATA)
    if job.task is not None and (VALIDATION in names or getattr(job, VALIDATION, None) is not None):
        raise ApiError(400, f"the task {job.task} has validation examples of its own: leave it out", param=VALIDATION)
    if VALIDATION in names and not hasattr(job, VALIDATION):
        raise ApiError(400, f"a job that is to {job.kind} has no validation data", param=VALIDATION)
    if isinstance(job, TrainJob):
        check_inside(tenant.store, job.name)
        tenant.store.check_new(job.name)
        contents[SETTINGS] = _training(job, names, settings)
        command = ["train", "--config", SETTINGS, "--json"]
    elif isinstance(job, EvaluateJob):
        command = _evaluation(job, names, tenant, settings)
    else:
        command = _advice(job, names, settings)
    return NewJob(_request(job, command, names, tenant, settings), contents)


def _request(
    job: Job, command: list[str], names: Mapping[str, str], tenant: Tenant, settings: ServerSettings
) -> JobRequest:
    """What the job's folder says of it. Paths within the server's data, which may move, are as seen from there."""

    def seen(path: Path) -> str:
        return os.path.relpath(path, tenant.jobs / "job") if path.is_relative_to(settings.data) else str(path)

    return JobRequest(
        kind=job.kind,
        settings=_public(job),
        command=program("halka", *command),
        name=getattr(job, "name", None),
        store=seen(tenant.store.folder) if isinstance(job, TrainJob) else None,
        storage=tenant.storage.described(seen),
        room=_room(job, tenant, settings) if isinstance(job, MergeJob) else 0,
        hidden={
            str(Path(settings.base).absolute()): settings.public_name,
            str(tenant.store.folder): "the store",
            **{file: Path(file).name for file in names.values()},
        },
    )


def _public(job: Job) -> dict[str, Any]:
    """The request as it is shown again: without rows, of which it has the number."""
    shown = job.model_dump(exclude_none=True, exclude={"kind", "name"}, exclude_defaults=True)
    rows = (DATA, VALIDATION)
    return {name: len(value) if name in rows and isinstance(value, list) else value for name, value in shown.items()}


# ── train ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _training(job: TrainJob, names: Mapping[str, str], settings: ServerSettings) -> bytes:
    """The file for `halka train --config`."""
    check_settings(job.settings)
    validation = names.get(VALIDATION, job.validation)
    if job.settings.get("best_by") == "score" and validation is None and job.task is None:
        why = "a score is made of answers to validation examples, and there are none: give validation"
        raise ApiError(400, why, param="settings.best_by")
    return yaml.safe_dump(
        {
            **job.settings,
            **_base(settings),
            "out": RUN,
            "kind": "causal-lm",
            "task": job.task,
            "data": [names[DATA]] if DATA in names else [],
            "validation": None if validation is None else str(validation),
            "shape": job.shape,
        },
        allow_unicode=True,
    ).encode()


def check_settings(settings: Mapping[str, Any]) -> tuple[Method, TrainConfig]:
    """What the settings of a training that a client may choose are: the method with its fields, and TrainConfig's.

    Raises ApiError that names a wrong or unknown one.
    """
    allowed = {"method": Setting("method", str, "as `halka methods` lists them")}
    try:
        method = method_named(str(settings.get("method", DEFAULT_METHOD)))
        of_method = settings_of(method)
        allowed |= {**of_method, **OF_TRAINING, "text": TEXT, "best_by": BEST_BY}
        layer = from_content(settings, Path("settings"), allowed)
        chosen, config = build(method, of_method, layer), build(TrainConfig, OF_TRAINING, layer)
        if "text" in layer and convert(TEXT, layer["text"]) is not None:
            check_start(chosen, "settings: text")
        if "best_by" in layer:
            convert(BEST_BY, layer["best_by"])
    except HalkaError as error:
        raise refusal(error, param=_param(str(error), allowed)) from None
    return chosen, config


def _param(message: str, allowed: Mapping[str, Setting]) -> str:
    """The setting that a message is about: what it begins with, else the first that it names."""
    if message.startswith("settings: "):
        return f"settings.{message.removeprefix('settings: ').partition(':')[0]}"
    names = {path.rpartition(".")[2]: path for path in allowed}
    path = next((names[word] for word in re.findall(r"\w+", message) if word in names), None)
    return "settings" if path is None else f"settings.{path}"


def _base(settings: ServerSettings) -> dict[str, Any]:
    """The server's base as `halka train` names it."""
    return {
        "base": settings.base,
        "dtype": settings.dtype,
        "device": settings.device,
        "quantize": settings.quantize,
    }


# ── evaluate, advise ────────────────────────────────────────────────────────────────────────────────────────────────


def _evaluation(job: EvaluateJob, names: Mapping[str, str], tenant: Tenant, settings: ServerSettings) -> list[str]:
    for metric in job.metrics or ():
        try:
            find_metric(metric)
        except HalkaError as error:
            raise refusal(error, param="metrics") from None
    for adapter in job.adapters:
        _stored(tenant, adapter, "adapters")
    if job.split is not None and job.task is None:
        raise ApiError(400, "split is for a task: the data is one split", param="split")
    flags = {
        "data": names.get(DATA),
        "task": job.task,
        "split": job.split,
        "shape": job.shape,
        "store": str(tenant.store.folder) if job.adapters else None,
        "adapter": job.adapters,
        "with-base": job.with_base,
        "metrics": ",".join(job.metrics) if job.metrics else None,
        "limit": job.limit,
        "max-new-tokens": job.max_new_tokens,
        "seed": job.seed,
        "out": PREDICTIONS,
    }
    return ["evaluate", *_flags({**_base(settings), **flags}), "--json"]


def _advice(job: AdviseJob, names: Mapping[str, str], settings: ServerSettings) -> list[str]:
    if job.metric is not None:
        try:
            find_metric(job.metric)
        except HalkaError as error:
            raise refusal(error, param="metric") from None
    base = _base(settings)
    del base["device"]  # of `halka advise` it is the device to train on
    flags = {
        "data": names.get(DATA),
        "validation": names.get(VALIDATION),
        "documents": None if job.collection is None else DOCUMENTS,
        "task": job.task,
        "shape": job.shape,
        "metric": job.metric,
        "target": job.target,
        "tasks": job.tasks,
        "minutes": job.minutes,
        "skip": job.skip,
        "passages": job.passages,
        "max-new-tokens": job.max_new_tokens,
        "full": job.full,
        "out": "advice",
    }
    return ["advise", *_flags({**base, **flags}), "--json"]


def _merge(job: MergeJob, tenant: Tenant, settings: ServerSettings) -> list[str]:
    if job.dtype == "q8_0" and job.format != "gguf":
        raise ApiError(400, "q8_0 is for gguf alone", param="dtype")
    if settings.quantize is not None and job.format in ("safetensors", "gguf"):
        why = f"the server's base is in {settings.quantize}, and a whole model is written unquantised"
        raise ApiError(400, f"{why}: write the adapter alone (lora-gguf, peft, vllm)", param="format")
    into = None if job.format is None else f"{MERGED}.gguf" if job.format.endswith("gguf") else MERGED
    flags = {
        "store": str(tenant.store.folder),
        "into": into,
        "as": job.format,
        "to-dtype": job.dtype,
        "pad-rank": job.pad_rank,
        "limit": job.limit,
        "force": job.force,
    }
    return ["merge", job.adapter, *_flags({**_base(settings), **flags}), "--json"]


def _room(job: MergeJob, tenant: Tenant, settings: ServerSettings) -> int:
    """The bytes that a merge may write: those of the base, or of the adapter alone, twice as many in float32."""
    if job.format is None:
        return 0
    if job.format in ("safetensors", "gguf"):
        bytes = sum(file.stat().st_size for file in weight_files(resolve(settings.base, fetch=False)))
    else:
        bytes = bytes_below([_stored(tenant, job.adapter).folder])
    precision = job.dtype or usable_precision(settings.dtype, place_of(settings.device))
    return bytes * (2 if precision == "float32" else 1)


def _stored(tenant: Tenant, adapter: str, param: str = "adapter") -> Stored:
    """An adapter of the tenant's, as NAME or NAME@VERSION. Raises ApiError if there is none."""
    try:
        return stored_inside(tenant.store, *name_and_version(adapter))
    except UnknownAdapterError:
        raise ApiError(404, f"there is no adapter {adapter!r}", param=param) from None


def _flags(values: Mapping[str, Any]) -> list[str]:
    """Flags with their values in one word, so that no value is read as a flag; those of lists are repeated."""
    words = list[str]()
    for name, value in values.items():
        if value is True:
            words.append(f"--{name}")
        elif value is not None and value is not False:
            words += [f"--{name}={item}" for item in (value if isinstance(value, list) else [value])]
    return words
