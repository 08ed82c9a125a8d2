"""`halka estimate`: what each method will need on a base, before anything is downloaded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, cast

import typer

from halka.cli.command import Json, emit, examples, memory_size, say, show
from halka.util.dtypes import Dtype
from halka.util.errors import HalkaError
from halka.util.text import columns, plural

if TYPE_CHECKING:
    from halka.core import Method
    from halka.estimating import Estimate

EXAMPLES = examples(
    "halka estimate smollm2-135m",
    "halka estimate Qwen/Qwen2.5-7B --device rtx4090 --checkpointing --quantize nf4",
    "halka estimate smollm2-135m --batch-size 60 --length 200 --shared 170",
    "halka estimate ./my-model --method lora:rank=64 --method full --gpu-memory 24 --length 1024 --tasks 50",
)


def estimate(
    base: Annotated[
        str, typer.Argument(metavar="BASE", help="short name, folder (or its config.json) or hub name of a base")
    ],
    method: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="a method, with fields of its own as in lora:rank=64,alpha=128 (`halka methods NAME` lists them); "
            "more than one by repeating it; else all families",
        ),
    ] = None,
    kind: Annotated[
        str | None, typer.Option(metavar="KIND", help="what the base is for; as its configuration says if not given")
    ] = None,
    labels: Annotated[
        int | None, typer.Option(metavar="N", help="labels that a classifier tells apart; 2 if not given")
    ] = None,
    batch_size: Annotated[int, typer.Option(metavar="N", help="examples a batch")] = 4,
    length: Annotated[int, typer.Option(metavar="N", help="tokens an example")] = 256,
    shared: Annotated[
        int,
        typer.Option(metavar="N", help="of these, those that all examples begin with, which a batch computes once"),
    ] = 0,
    accumulate: Annotated[int, typer.Option(metavar="N", help="batches whose gradients make one step")] = 1,
    checkpointing: Annotated[bool, typer.Option("--checkpointing", help="recompute activations in backward")] = False,
    dtype: Annotated[str, typer.Option(metavar="TYPE", help="bfloat16, float32 or float16")] = "bfloat16",
    quantize: Annotated[
        str | None, typer.Option(metavar="QUANTIZE", help="the base in fewer bits: nf4 or int8")
    ] = None,
    gpu_memory: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="memory to fit in, such as 24GB (or 24): a GPU's, or with --device here the processor's",
        ),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="whose memory and speed: a GPU of the table such as a100, or here: this machine's processor",
        ),
    ] = None,
    tasks: Annotated[int, typer.Option(metavar="N", help="tasks, each with an adapter of its own")] = 1,
    steps: Annotated[
        int | None, typer.Option(metavar="N", help="steps of a run, to estimate its time on --device")
    ] = None,
    json: Json = False,
) -> None:
    """Estimate the memory, time and storage that each method needs.

    Only the base's configuration is read: a dry run of a training step on fake tensors gives the numbers.
    """
    import halka
    from halka.estimating import FAMILIES

    if steps is not None and device is None:
        raise HalkaError("--steps: a run's time depends on the device: give --device, such as a100, or here")
    chosen = method or FAMILIES
    result = halka.estimate(
        base,
        [_method(text) for text in chosen],
        kind=kind,
        labels=labels,
        batch_size=batch_size,
        length=length,
        shared=shared,
        accumulate=accumulate,
        checkpointing=checkpointing,
        dtype=cast(Dtype, dtype),  # checked by `estimate`
        quantize=quantize,
        memory=memory_size(gpu_memory, "--gpu-memory"),
        device=device,
        tasks=tasks,
        steps=steps,
        progress=lambda name: say(f"estimating {name}"),
    )
    if json:
        return emit(result)
    _show(result, chosen)


def _method(text: str) -> Method:
    """A method from NAME or NAME:FIELD=VALUE,…; the values of a field may have commas between them, too."""
    from halka.methods import method_named
    from halka.util.settings import converted, settings_of

    name, _, assignments = text.partition(":")
    kind = method_named(name)
    values: dict[str, str] = {}
    for piece in assignments.split(",") if assignments else ():
        key, equals, value = piece.partition("=")
        if equals:
            values[key.strip()] = value
        elif values:
            values[[*values][-1]] += f",{piece}"
        else:
            raise HalkaError(f"--method {text}: {piece!r} is no field: write it as in lora:rank=64,alpha=128")
    settings = settings_of(kind)
    for key in values:
        if key not in settings:
            raise HalkaError(f"--method {text}: {name} has no field {key!r}; it has {', '.join(settings) or 'none'}")
    try:
        return kind(**converted(settings, values))
    except HalkaError as error:
        raise HalkaError(f"--method {text}: {error}") from None


def _show(result: Estimate, chosen: Sequence[str]) -> None:
    from halka.report.units import count, size, step_time

    parts = ["weights", "gradients", "optimizer", "activations", "allocator", "total"]
    fits = ["fits", "largest batch"] if result.memory is not None else []
    timed = ["a step", *(["the run"] if result.steps else [])] if result.device else []
    rest = ["trained", *fits, *timed, "on disk", "serving"]
    memory, others = columns("method", *parts, right=parts), columns("method", *rest, right={*rest} - {"fits"})
    for row, name in zip(result.rows, chosen, strict=True):
        if row.memory is None or row.trained is None or row.stored is None or row.served is None:  # refused
            continue
        memory.add_row(name, *(size(getattr(row.memory, part)) for part in parts))
        most = [("yes" if row.fits else "no"), str(row.largest_batch)] if fits else []
        seconds = (
            [step_time(seconds) for seconds in (row.seconds, row.run_seconds) if seconds is not None] if timed else []
        )
        others.add_row(name, count(row.trained), *most, *seconds, size(row.stored), size(row.served))
    how = result.setup
    form = f"{how.quantize} in {how.dtype}" if how.quantize else how.dtype
    show(
        f"{result.base}: {count(result.parameters)} parameters, {size(result.base_bytes)} in {form}",
        f"a batch of {how.rows} × {how.length} tokens"
        + (f", the first {how.shared} shared" if how.shared else "")
        + (f", {how.accumulate} a step" if how.accumulate > 1 else "")
        + (", checkpointing" if how.checkpointing else ""),
        _hardware(result),
        "",
        memory,
        "",
        others,
        "",
        f"Beside the total, {_holder(result)} takes about {size(result.process)}. "
        f"On disk and serving: {plural(result.tasks, 'task')}; serving includes the keys and "
        f"values of the batch ({size(result.cache)} a row).",
        *([f"Speed of {result.device}: {result.source}."] if result.device else []),
        *(
            f"{name} cannot train this base: {row.refused}"
            for row, name in zip(result.rows, chosen, strict=True)
            if row.refused
        ),
    )


def _hardware(result: Estimate) -> str:
    """The line on the device, and on the memory that rows must fit in."""
    from halka.report.units import size

    kind = "GPU" if result.gpu else "processor"
    named = {None: f"a {kind}", "here": "this machine's processor"}.get(result.device, f"the {kind} {result.device}")
    if result.memory is None:
        return f"on {named}; --gpu-memory, or a GPU as --device, shows what fits"
    left = size(max(0, result.memory - result.process))
    return f"on {named}, {size(result.memory)}; what fits: {left}, the rest is for {_holder(result)}"


def _holder(result: Estimate) -> str:
    return "CUDA" if result.gpu else "the process"
