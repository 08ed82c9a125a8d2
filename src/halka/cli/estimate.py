"""`halka estimate`: what each method will need on a base, before anything is downloaded."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from halka.cli.command import Json, columns, emit, examples, say, show

EXAMPLES = examples(
    "halka estimate smollm2-135m",
    "halka estimate Qwen/Qwen2.5-7B --device rtx4090 --checkpointing --quantize nf4",
    "halka estimate ./my-model --method lora --method full --gpu-memory 24GB --length 1024 --tasks 50",
)


def estimate(
    base: Annotated[str, typer.Argument(metavar="BASE", help="short name, folder or hub name of a base")],
    method: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="a method; more than one by repeating it; else all families"),
    ] = None,
    kind: Annotated[
        str | None, typer.Option(metavar="KIND", help="what the base is for; as its configuration says if not given")
    ] = None,
    labels: Annotated[int, typer.Option(metavar="N", help="labels that a classifier tells apart")] = 2,
    batch_size: Annotated[int, typer.Option(metavar="N", help="examples a batch")] = 4,
    length: Annotated[int, typer.Option(metavar="N", help="tokens an example")] = 256,
    accumulate: Annotated[int, typer.Option(metavar="N", help="batches whose gradients make one step")] = 1,
    checkpointing: Annotated[bool, typer.Option("--checkpointing", help="recompute activations in backward")] = False,
    dtype: Annotated[str, typer.Option(metavar="TYPE", help="bfloat16, float32 or float16")] = "bfloat16",
    quantize: Annotated[str | None, typer.Option(metavar="FORM", help="the base in fewer bits: nf4 or int8")] = None,
    gpu_memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help="memory that it is to fit in, such as 24GB")
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="whose memory and speed: a GPU of the table such as a100, or here"),
    ] = None,
    tasks: Annotated[int, typer.Option(metavar="N", help="tasks, each with an adapter of its own")] = 1,
    steps: Annotated[int | None, typer.Option(metavar="N", help="steps of a run, to tell its time")] = None,
    json: Json = False,
) -> None:
    """Tell what each method needs on a base: memory by part, the largest batch, time, storage.

    Nothing but the base's configuration is read: a training step is rehearsed with tensors without content.
    """
    import halka
    from halka.estimating import FAMILIES
    from halka.report.units import bytes_said

    try:
        memory = None if gpu_memory is None else bytes_said(gpu_memory)
    except ValueError as error:
        raise ValueError(f"--gpu-memory: {error}") from None
    found = halka.estimate(
        base,
        method or FAMILIES,
        kind=kind,
        labels=labels,
        batch_size=batch_size,
        length=length,
        accumulate=accumulate,
        checkpointing=checkpointing,
        dtype=dtype,
        quantize=quantize,
        memory=memory,
        device=device,
        tasks=tasks,
        progress=lambda name: say(f"rehearsing {name}"),
    )
    if json:
        return emit(found)
    _show(found, steps)


def _show(found: Any, steps: int | None) -> None:
    from halka.report.units import count, size

    numbers = ["trained", "weights", "gradients", "optimizer", "activations", "allocator", "total"]
    extra = ["fits", "largest batch"] if found.memory is not None else []
    timed = ["a step", *(["the run"] if steps else [])] if found.device else []
    table = columns(
        *("method", *numbers, *extra, *timed, "on disk", "serving"),
        right=(*numbers, "largest batch", *timed, "on disk", "serving"),
    )
    for row in found.rows:
        if row.memory is None:
            continue
        parts = [size(getattr(row.memory, part)) for part in numbers[1:]]
        fits = [("yes" if row.fits else "no"), str(row.largest_batch)] if extra else []
        seconds = [_time(row.seconds * times) for times in (1, steps) if times] if timed else []
        table.add_row(row.method, count(row.trained), *parts, *fits, *seconds, size(row.stored), size(row.served))
    how = found.setup
    form = f"{how.quantize} in {how.dtype}" if how.quantize else how.dtype
    show(
        f"{found.base}: {count(found.parameters)} parameters, {size(found.base_bytes)} in {form}",
        f"a batch of {how.rows} × {how.length} tokens"
        + (f", {how.accumulate} a step" if how.accumulate > 1 else "")
        + (", checkpointing" if how.checkpointing else ""),
        "",
        table,
        "",
        f"Beside the total, {'CUDA' if found.gpu else 'the process'} holds about {size(found.process)}. "
        f"On disk and serving: of {found.tasks} task{'s' if found.tasks > 1 else ''}, serving with the keys and values "
        f"of the batch ({size(found.cache)} a row).",
        *([f"Speed of {found.device}: {found.source}."] if found.device else []),
        *(f"{row.method} cannot be trained here: {row.refused}" for row in found.rows if row.refused),
    )


def _time(seconds: float) -> str:
    from halka.report.units import duration

    return f"{1000 * seconds:.0f} ms" if seconds < 1 else duration(seconds)
