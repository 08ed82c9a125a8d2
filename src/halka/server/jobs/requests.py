"""What may be asked of a job: its kinds and their fields.

A client names adapters of its own, never a path, a hub's name or a task file, which is a program.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from halka.server.requests import Body, Count, Name

Probe = Literal["fit", "cleanliness", "strength", "knowledge", "learnability"]

Row = dict[str, Any]
Rows = Annotated[list[Row], Field(min_length=1, fail_fast=True)]


def _rows_or_share(value: Any) -> Any:
    if not isinstance(value, list | None) and (not isinstance(value, float) or not 0 < value < 1):
        raise ValueError("give rows, or the share of data to hold out, above 0 and below 1")
    return value


Validation = Annotated[Rows | float | None, BeforeValidator(_rows_or_share)]
FileId = Annotated[str, Field(pattern=r"^file-[0-9a-f]{16}$")]
Versioned = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}(@[0-9]{1,9})?$")]


class DataFiles(Body):
    """The ids of files, as `POST /v1/files` gives them, in place of rows."""

    data_file: FileId | None = None
    validation_file: FileId | None = None


class _Job(DataFiles):
    """`data` is rows, unless a file comes with the request or the task is the one that Halka has."""

    data: Rows | None = None
    task: Literal["support"] | None = None
    shape: Annotated[str, Field(max_length=40)] | None = None


class TrainJob(_Job):
    """Train an adapter, which is stored as `name`. `settings` are those of a file for `halka train --config`."""

    kind: Literal["train"]
    name: Name
    validation: Validation = None
    settings: dict[str, Any] = Field(default_factory=dict[str, Any])


class EvaluateJob(_Job):
    """Score adapters, as NAME or NAME@VERSION, or the base on examples.

    `held_out_of`: the id of a training job, on whose validation examples they are scored, in place of data.
    """

    kind: Literal["evaluate"]
    held_out_of: Annotated[str, Field(max_length=40)] | None = None
    adapters: Annotated[list[Versioned], Field(max_length=100)] = Field(default_factory=list[str])
    with_base: bool = False
    split: Literal["train", "validation", "test"] | None = None
    metrics: (
        Annotated[list[Annotated[str, Field(pattern=r"^[^,]+$")]], Field(max_length=100, fail_fast=True)] | None
    ) = None
    limit: Count | None = None
    max_new_tokens: Count | None = None
    seed: Annotated[int, Field(ge=0)] | None = None

    @model_validator(mode="after")
    def _base_beside_adapters(self) -> EvaluateJob:
        if self.with_base and not self.adapters:
            raise ValueError("with_base scores the base beside adapters: name some, or leave it out")
        return self


class AdviseJob(_Job):
    """Measure with short probes whether to prompt, retrieve or train. `collection`: the documents to retrieve from."""

    kind: Literal["advise"]
    validation: Rows | None = None
    collection: str | None = None
    metric: str | None = None
    target: Annotated[float, Field(ge=0, le=1)] | None = None
    tasks: Count | None = None
    minutes: Annotated[float, Field(gt=0, le=24 * 60)] | None = None
    skip: Annotated[list[Probe], Field(max_length=100, fail_fast=True)] = Field(default_factory=list[Probe])
    passages: Count | None = None
    max_new_tokens: Count | None = None
    full: bool = False


class MergeJob(Body):
    """Merge an adapter, as NAME or NAME@VERSION, and write the result; without `format` only the error is measured.

    `limit` is of the error, as a share of the adapter's effect; `force` writes even past it.
    """

    kind: Literal["merge"]
    adapter: Versioned
    format: Literal["safetensors", "gguf", "lora-gguf", "peft", "vllm"] | None = None
    dtype: Literal["float32", "bfloat16", "float16", "q8_0"] | None = None
    pad_rank: bool = False
    limit: Annotated[float, Field(ge=0)] | None = None
    force: bool = False

    @model_validator(mode="after")
    def _of_what_is_written(self) -> MergeJob:
        if self.format is None and (self.dtype or self.pad_rank):
            raise ValueError("dtype and pad_rank are of what is written: give a format, or leave them out")
        return self


Job = Annotated[TrainJob | EvaluateJob | AdviseJob | MergeJob, Field(discriminator="kind")]
