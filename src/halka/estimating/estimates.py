"""What training and serving will need, told before anything is downloaded: bytes by part, batches that fit, seconds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from halka.core import Method, described
from halka.estimating.batches import largest_batch
from halka.estimating.dry_runs import Memory, Rehearsed, Setup, rehearse
from halka.estimating.hardware import Hardware, hardware_of
from halka.methods import build_method
from halka.models.kinds import LABELLED, usual_kind
from halka.models.loading import base_config, check_class
from halka.models.quantised import check_quantize
from halka.objectives import OBJECTIVES
from halka.util.dtypes import DTYPES
from halka.util.errors import HalkaError

__all__ = [
    "FAMILIES",
    "Estimate",
    "Memory",
    "Row",
    "Setup",
    "at_least_one",
    "estimate",
    "largest_batch",
    "prepared",
    "rehearse",
    "row_of",
]

FAMILIES = ("lora", "dora", "ia3", "bitfit", "bottleneck", "prefix", "prompt", "llama_adapter", "full")


@dataclass(frozen=True)
class Row:
    """One method on the base.

    fits            in the memory given, beside what the process holds; None if none was given
    largest_batch   rows that fit there at that length: 0 if not even one does
    seconds         a step's, where a device is known; run_seconds of all steps, where they are
    flops           of a step's products
    stored          bytes on the disk of all tasks' adapters (of full fine-tuning, of all tasks' models)
    served          bytes of memory in which one base serves all tasks, and a batch's keys and values
    refused         why the base cannot be trained so; all else is None then
    """

    method: str
    fields: Mapping[str, Any]
    refused: str | None = None
    trained: int | None = None
    memory: Memory | None = None
    fits: bool | None = None
    largest_batch: int | None = None
    seconds: float | None = None
    run_seconds: float | None = None
    flops: int | None = None
    stored: int | None = None
    served: int | None = None


@dataclass(frozen=True)
class Estimate:
    """What was asked, and a row for each method.

    process      bytes that are held before there is a base; no row's memory has them
    base_bytes   of the base's weights as they are kept
    cache        bytes of keys and values of one row of that length
    device       whose speed tells the seconds, and where it is from; None if there is none
    steps        of the run whose seconds are told
    """

    base: str
    parameters: int
    base_bytes: int
    setup: Setup
    gpu: bool
    process: int
    memory: int | None
    tasks: int
    cache: int
    device: str | None
    source: str | None
    steps: int | None
    rows: tuple[Row, ...]


def estimate(
    base: str | Path | Any,
    methods: Sequence[Method | str] | Method | str = FAMILIES,
    *,
    kind: str | None = None,
    labels: int | None = None,
    batch_size: int = 4,
    length: int = 256,
    accumulate: int = 1,
    checkpointing: bool = False,
    dtype: str = "bfloat16",
    quantize: str | None = None,
    memory: int | None = None,
    device: str | None = None,
    tasks: int = 1,
    steps: int | None = None,
    progress: Callable[[str], None] | None = None,
) -> Estimate:
    """What each of `methods` needs on a base, of which nothing but the configuration is read.

    base     a short name, a folder, a name on the hub, or a transformers configuration
    methods  by name, or as they are; one of them, or several
    kind, labels, dtype, quantize   as `load_base` takes them; labels only as many as they are (2)
    memory   bytes that it is to fit in, of a GPU unless the device is "here"; the largest batch that does is looked for
    device   of `devices.DEVICES`: whose memory and speed it is; "here" for this machine's processor, on which
             each operation of a step is done and timed; without both it is for this machine's processor, and no
             seconds are told
    steps    of a run, whose seconds are told, too
    progress   is told what is rehearsed: each method, and each batch that is tried for the largest

    A batch is rows of equal length that all carry loss: the most that `batch_size` and `length` allow.
    Raises ValueError as `load_base`, `adapt` and `AdaptedModel.add` do, for a device nobody knows, and for steps
    without a device.
    """
    config, setup = prepared(
        base,
        kind,
        rows=batch_size,
        length=length,
        accumulate=accumulate,
        checkpointing=checkpointing,
        dtype=dtype,
        quantize=quantize,
        labels=labels,
    )
    at_least_one(tasks=tasks, **({} if steps is None else {"steps": steps}))
    if steps is not None and device is None:
        raise HalkaError("steps take time by the speed of a device: name one, such as a100 or here")
    several = methods if isinstance(methods, Sequence) and not isinstance(methods, str) else [methods]
    chosen = [build_method(each, {}) if isinstance(each, str) else each for each in several]
    if not chosen:
        raise HalkaError(f"there is no method to estimate: name one or more of {', '.join(FAMILIES)}")
    where = hardware_of(device, memory, dtype)
    rows, found = [], None
    for method in chosen:
        if progress is not None:
            progress(method.name)
        try:
            found = rehearse(config, method, setup, gpu=where.gpu)
        except ValueError as error:
            if len(chosen) == 1:
                raise
            told = described(method)
            rows.append(Row(told["name"], told["fields"], refused=str(error)))
            continue
        row = row_of(method, found, setup, where, tasks)
        if steps is not None and row.seconds is not None:
            row = replace(row, run_seconds=steps * row.seconds)
        if where.room is not None:
            most = largest_batch(
                *(config, method, setup, where.room),
                gpu=where.gpu,
                memory=found.memory,
                progress=partial(_tell, progress, method.name),
            )
            row = replace(row, largest_batch=most)
        rows.append(row)
    if found is None:
        raise HalkaError(f"none of the methods can be trained on this base: {rows[0].refused}")
    return Estimate(
        base=str(base) if isinstance(base, str | Path) else str(config.model_type),
        parameters=found.parameters,
        base_bytes=found.base_bytes,
        setup=setup,
        gpu=where.gpu,
        process=where.process,
        memory=where.memory,
        tasks=tasks,
        cache=found.cached * length,
        device=None if where.device is None else where.device.name,
        source=None if where.device is None else where.device.source,
        steps=steps,
        rows=tuple(rows),
    )


def _tell(progress: Callable[[str], None] | None, name: str, rows: int) -> None:
    if progress is not None:
        progress(f"{name}, a batch of {rows:,}")


def prepared(
    base: str | Path | Any, kind: str | None = None, *, labels: int | None = None, **how: Any
) -> tuple[Any, Setup]:
    """A base's configuration, and the setup of that kind, or as the configuration says, with what else is given of it.

    Raises ValueError for a name nobody knows, a base that is packed already, and a setup that cannot be.
    """
    config = base_config(base) if isinstance(base, str | Path) else base
    _check_base(config)
    setup = Setup(kind=kind or usual_kind(config), **({} if labels is None else {"labels": labels}), **how)
    if setup.kind not in OBJECTIVES:
        said = "" if kind else f" (the configuration is of {', '.join(config.architectures or ())})"
        others = f"choose one of {', '.join(OBJECTIVES)}{'' if kind else ', with kind (--kind)'}"
        raise HalkaError(f"kind {setup.kind!r}{said} is none that is trained: {others}")
    check_class(config, setup.kind)
    if labels is not None and setup.kind not in LABELLED:
        raise HalkaError(f"labels are for {' and '.join(LABELLED)}: a {setup.kind} has none; leave them out, or say so")
    if setup.labels < 2:
        raise HalkaError(f"labels must be at least 2, not {labels}: it takes two to tell something apart")
    if setup.dtype not in DTYPES:
        raise HalkaError(f"dtype {setup.dtype!r} is none of {', '.join(DTYPES)}: the stored precision is not read")
    if setup.quantize is not None:
        check_quantize(setup.quantize)
    at_least_one(batch_size=setup.rows, length=setup.length, accumulate=setup.accumulate)
    if setup.length < 3:
        raise HalkaError(f"length must be at least 3 tokens, not {setup.length}: there is nothing to learn in fewer")
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    if positions is not None and setup.length > positions:
        raise HalkaError(f"length must be at most the base's {positions:,} positions, not {setup.length:,}")
    return config, setup


def _check_base(config: Any) -> None:
    """Raises ValueError for what is no configuration, and for that of a base that is stored in fewer bits."""
    from transformers import PretrainedConfig

    if not isinstance(config, PretrainedConfig):
        instead = "give its .config" if isinstance(getattr(config, "config", None), PretrainedConfig) else "give one"
        raise HalkaError(
            f"a base is a name, a folder or a transformers configuration, not a {type(config).__name__}: {instead}"
        )
    if packed := getattr(config, "quantization_config", None):
        told = packed if isinstance(packed, Mapping) else packed.to_dict()
        form = told.get("quant_method", "in its configuration")
        raise HalkaError(
            f"the base is packed already ({getattr(form, 'value', form)}), which is not rehearsed: "
            'name the plain base that it was made of, with quantize="nf4" (--quantize nf4)'
        )


def row_of(method: Method, found: Rehearsed, setup: Setup, where: Hardware, tasks: int = 1) -> Row:
    """What a rehearsal of the method tells of a run on that hardware; the largest batch is not looked for."""
    full = "base" in method.roles()
    own = found.parameters * getattr(torch, setup.dtype).itemsize if full else found.trained * 4
    told = described(method)
    return Row(
        told["name"],
        told["fields"],
        trained=found.trained,
        memory=found.memory,
        fits=None if where.room is None else found.memory.total <= where.room,
        seconds=None if where.device is None else where.device.seconds(found.work, setup.dtype),
        flops=found.flops,
        stored=found.stored * tasks,
        served=own * tasks + (0 if full else found.base_bytes) + found.cached * setup.length * setup.rows,
    )


def at_least_one(**numbers: int) -> None:
    """Raises ValueError that names the number that is less."""
    for name, value in numbers.items():
        if value < 1:
            raise HalkaError(f"{name} must be at least 1, not {value}")
