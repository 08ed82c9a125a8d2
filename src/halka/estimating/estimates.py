"""`estimate`: the memory, time and storage that training and serving will need, from a base's configuration alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from numbers import Integral
from pathlib import Path
from typing import Any

import torch

from halka.core import Method
from halka.estimating.batches import largest_batch
from halka.estimating.dry_runs import DryRun, Memory, Setup, dry_run
from halka.estimating.hardware import Hardware, hardware_of
from halka.methods import build_method, described
from halka.models.kinds import usual_kind
from halka.models.loading import base_config, check_class
from halka.models.quantised import check_quantize
from halka.objectives import OBJECTIVES
from halka.util.dtypes import Dtype, dtype_name
from halka.util.errors import HalkaError
from halka.util.kinds import LABELLED
from halka.util.precision import precision_here

FAMILIES = ("lora", "dora", "ia3", "bitfit", "bottleneck", "prefix", "prompt", "llama_adapter", "full")


@dataclass(frozen=True)
class Row:
    """The estimate of one method.

    fits            whether a step fits in the memory beside what the process holds; None without a memory
    largest_batch   the most rows of that length that fit: 0 if not even one does
    seconds         of a step, with a device; run_seconds of all steps, with their number
    flops           of a step's matrix products
    stored          bytes on the disk of all tasks' adapters (full fine-tuning: of all tasks' models)
    served          bytes in memory of one base that serves all tasks, with a batch's keys and values
    refused         why this method cannot train the base; all else is None then
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
    """The arguments of an estimate, and a row for each method.

    process      bytes in use before a base is loaded; no row's memory includes them
    base_bytes   of the base's weights as they are stored
    cache        bytes of the keys and values of one row of that length
    device       whose speed gives the seconds, with its source; None without a device
    steps        of the run, if its time is estimated
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
    shared: int = 0,
    accumulate: int = 1,
    checkpointing: bool = False,
    dtype: Dtype | torch.dtype = "bfloat16",
    quantize: str | None = None,
    memory: int | None = None,
    device: str | None = None,
    tasks: int = 1,
    steps: int | None = None,
    progress: Callable[[str], None] | None = None,
) -> Estimate:
    """Estimate what each of `methods` needs on a base; reads nothing but the base's configuration.

    base     a short name, a folder, its config.json, a name on the hub, or a transformers configuration
    methods  one or several, as names or as methods
    kind, dtype, quantize   as `load_base` takes them, without "auto": the stored precision is not read
    shared   tokens that all examples begin with, as an instruction, which packed batches compute once
    labels   how many a classifier or tagger has (2 if None)
    memory   bytes to fit in, of a GPU unless the device is "here"; the largest batch that fits is searched for
    device   a name in `devices.DEVICES`, whose memory and speed count, or "here": this machine's processor, which runs
             and times each operation of a step. Without device and memory, the estimate is for a processor, without
             seconds
    steps    of a run, to estimate its seconds, too
    progress   called with each method's name, and with each batch that is tried

    Rows of a batch have equal length, and all that is their own carries loss: the most that the sizes allow.
    Raises HalkaError as `load_base`, `adapt` and `AdaptedModel.add` do, for an unknown device, and for steps without a
    device.
    """
    precision = dtype_name(dtype)
    config, setup = prepared(
        base,
        kind,
        rows=batch_size,
        length=length,
        shared=shared,
        accumulate=accumulate,
        checkpointing=checkpointing,
        dtype=precision_here(precision, gpu=device != "here" and (device, memory) != (None, None)),
        quantize=quantize,
        labels=labels,
    )
    if isinstance(memory, float) and memory.is_integer():  # such as 24e9
        memory = int(memory)
    optional = {"steps": steps, "memory": memory}
    at_least_one(tasks=tasks, **{name: value for name, value in optional.items() if value is not None})
    if steps is not None and device is None:
        raise HalkaError("steps take time by the speed of a device: name one, such as a100 or here")
    several = methods if isinstance(methods, Sequence) and not isinstance(methods, str) else [methods]
    chosen = [build_method(method, {}) if isinstance(method, str) else method for method in several]
    if not chosen:
        raise HalkaError(f"there is no method to estimate: name one or more of {', '.join(FAMILIES)}")
    where = hardware_of(device, memory, setup.dtype)
    setup = replace(setup, flash=where.flash, dtype=where.precision_of(config, setup.dtype))
    rows: list[Row] = []
    run: DryRun | None = None
    for method in chosen:
        if progress is not None:
            progress(method.name)
        try:
            run = dry_run(config, method, setup, gpu=where.gpu)
        except HalkaError as error:
            if len(chosen) == 1:
                raise
            rows.append(Row(**_method(method), refused=str(error)))
            continue
        row = row_of(method, run, setup, where, tasks)
        if steps is not None and row.seconds is not None:
            row = replace(row, run_seconds=steps * row.seconds)
        if where.room is not None:
            most = largest_batch(
                config,
                method,
                setup,
                where.room,
                gpu=where.gpu,
                memory=run.memory,
                progress=partial(_report_batch, progress, method.name),
            )
            row = replace(row, largest_batch=most)
        rows.append(row)
    if run is None:
        raise HalkaError(f"none of the methods can be trained on this base: {rows[0].refused}")
    return Estimate(
        base=str(base) if isinstance(base, str | Path) else str(config.model_type),
        parameters=run.parameters,
        base_bytes=run.base_bytes,
        setup=setup,
        gpu=where.gpu,
        process=where.process,
        memory=where.memory,
        tasks=tasks,
        cache=run.cached * length,
        device=None if where.device is None else where.device.name,
        source=None if where.device is None else where.device.source,
        steps=steps,
        rows=tuple(rows),
    )


def _report_batch(progress: Callable[[str], None] | None, name: str, rows: int) -> None:
    if progress is not None:
        progress(f"{name}, a batch of {rows:,}")


def prepared(
    base: str | Path | Any, kind: str | None = None, *, labels: int | None = None, **options: Any
) -> tuple[Any, Setup]:
    """A base's configuration and a `Setup` of that kind (else the configuration's), checked; `options` are its fields.

    Raises HalkaError for an unknown name, a base that is quantised already, and a setup that makes no sense.
    """
    config = base_config(_folder(base)) if isinstance(base, str | Path) else base
    _check_base(config)
    setup = Setup(kind=kind or usual_kind(config), **({} if labels is None else {"labels": labels}), **options)
    if setup.kind not in OBJECTIVES:
        source = "" if kind else f" (the configuration is of {', '.join(config.architectures or ())})"
        others = f"choose one of {', '.join(OBJECTIVES)}{'' if kind else ', with kind (--kind)'}"
        raise HalkaError(f"kind {setup.kind!r}{source} cannot be trained: {others}")
    check_class(config, setup.kind)
    if labels is not None and setup.kind not in LABELLED:
        raise HalkaError(f"labels are for {' and '.join(LABELLED)}: a {setup.kind} has none; leave them out, or say so")
    if setup.labels < 2:
        raise HalkaError(f"labels must be at least 2, not {labels}: it takes two to tell something apart")
    dtype_name(setup.dtype)  # raises for an unknown one
    if setup.quantize is not None:
        check_quantize(setup.quantize)
    at_least_one(batch_size=setup.rows, length=setup.length, accumulate=setup.accumulate)
    if setup.length < 3:
        raise HalkaError(f"length must be at least 3 tokens, not {setup.length}: there is nothing to learn in fewer")
    if not 0 <= setup.shared < setup.length - 1:
        raise HalkaError(
            f"shared must be at least 0 and leave two tokens or more of the {setup.length:,} of an example, not "
            f"{setup.shared:,}"
        )
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    if positions is not None and setup.length > positions:
        raise HalkaError(f"length must be at most the base's {positions:,} positions, not {setup.length:,}")
    return config, setup


def _folder(base: str | Path) -> str | Path:
    """The folder of a config.json; any other name as it is."""
    path = Path(base)
    return path.parent if path.name == "config.json" and path.is_file() else base


def _method(method: Method) -> dict[str, Any]:
    """A row's first fields."""
    data = described(method)
    return {"method": data["name"], "fields": data["fields"]}


def _check_base(config: Any) -> None:
    """Raises HalkaError for what is no configuration, and for that of a base that is quantised already."""
    from transformers import PretrainedConfig

    if not isinstance(config, PretrainedConfig):
        instead = "give its .config" if isinstance(getattr(config, "config", None), PretrainedConfig) else "give one"
        raise HalkaError(
            f"a base is a name, a folder or a transformers configuration, not a {type(config).__name__}: {instead}"
        )
    if packed := getattr(config, "quantization_config", None):
        form = (packed if isinstance(packed, Mapping) else packed.to_dict()).get("quant_method", "in its configuration")
        raise HalkaError(
            f"the base is quantised already ({getattr(form, 'value', form)}), which cannot be estimated: "
            'name the plain base that it was made of, with quantize="nf4" (--quantize nf4)'
        )


def row_of(method: Method, run: DryRun, setup: Setup, where: Hardware, tasks: int = 1) -> Row:
    """A dry run of the method as a `Row` for that hardware, without the largest batch."""
    full = "base" in method.roles()
    return Row(
        **_method(method),
        trained=run.trained,
        memory=run.memory,
        fits=None if where.room is None else run.memory.total <= where.room,
        seconds=None if where.device is None else where.device.seconds(run.work, setup.dtype),
        flops=run.flops,
        stored=run.stored * tasks,
        served=run.served * tasks + (0 if full else run.base_bytes) + run.cached * setup.length * setup.rows,
    )


def at_least_one(**numbers: int) -> None:
    """Raises HalkaError that names what is no whole number, or below 1."""
    for name, value in numbers.items():
        if not isinstance(value, Integral):
            raise HalkaError(f"{name} must be a whole number, not {value!r}")
        if value < 1:
            raise HalkaError(f"{name} must be at least 1, not {value}")
