"""`halka advise`: measures the base, data and hardware with short probes, and advises what to do."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, cast

import typer

from halka.cli.command import Json, emit, examples, existing_file, memory_size, say, show
from halka.cli.opening import Base, Dtype, Quantize
from halka.util.errors import HalkaError

if TYPE_CHECKING:
    from halka.data.examples import Example

EXAMPLES = examples(
    "halka advise --base smollm2-135m --task support",
    "halka advise --base smollm2-135m --data questions.jsonl --documents handbook/ --minutes 20",
    "halka advise --base Qwen/Qwen2.5-7B --data train.jsonl --device rtx4090 --tasks 40 --skip learnability",
    "halka advise --base smollm2-135m --task support --on ray",
)
AGAIN = (
    *("documents", "metric", "target", "tasks", "gpu_memory", "device", "max_new_tokens", "passages", "minutes"),
    *("skip", "dtype", "quantize", "on", "out"),
)
"""The options that ask the same again, beside --full and those that name the base and its examples."""


def advise(
    ctx: typer.Context,
    base: Base,
    task: Annotated[str | None, typer.Option(metavar="NAME", help="a task: support, a .yaml or .py file")] = None,
    data: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="examples, where there is no task; may be repeated")
    ] = None,
    validation: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="held-out examples; else some of --data are held out"),
    ] = None,
    shape: Annotated[str | None, typer.Option(metavar="TEXT", help="shape of the rows; else detected")] = None,
    documents: Annotated[
        list[Path] | None,
        typer.Option(metavar="PATH", help="files and folders to retrieve passages from; may be repeated"),
    ] = None,
    metric: Annotated[
        str | None, typer.Option(metavar="NAME", help="the metric; else the task's, or one for answers that look so")
    ] = None,
    target: Annotated[
        float | None, typer.Option(metavar="X", min=0.0, max=1.0, help="the score that suffices, 0 to 1")
    ] = None,
    tasks: Annotated[int, typer.Option(metavar="N", min=1, help="tasks like this one, for storage and serving")] = 1,
    gpu_memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help="train on a GPU with this memory, such as 24GB; probes run here")
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="train on this GPU, such as h100; probes run here"),
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="also try full fine-tuning")] = False,
    passages: Annotated[int, typer.Option(metavar="N", min=1, help="passages in a prompt")] = 3,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="length of an answer; else the task's, or the longest held-out one's"),
    ] = None,
    minutes: Annotated[
        float, typer.Option(metavar="X", help="time to generate and train; loading and indexing come on top")
    ] = 10.0,
    skip: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PROBE", help="leave out fit, cleanliness, strength, knowledge or learnability; may be repeated"
        ),
    ] = None,
    dtype: Dtype = "bfloat16",
    quantize: Quantize = None,
    on: Annotated[
        str | None,
        typer.Option("--on", metavar="CLUSTER", help="probe a node of a Ray cluster: ray, or ray://HOST:10001"),
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FOLDER", help="results, advice and report")] = Path(
        "advice"
    ),
    json: Json = False,
) -> None:
    """Advise what to do: prompt, PEFT, RAG, both, or full fine-tuning.

    The advice is for this base, data and hardware, and may be to do something else first. Short probes measure it: the
    base answers with and without examples and passages, and small adapters are trained for some minutes. The same
    command resumes an interrupted one.
    """
    from dataclasses import asdict
    from functools import partial
    from json import dumps

    from halka.advisor import Request, advise_from, probe
    from halka.advisor.on_ray import probe_on
    from halka.advisor.rendering import to_terminal, write_advice
    from halka.cli.progress import ProbesProgress
    from halka.util.files import write_text

    if out.is_file():
        raise HalkaError(f"--out: {out} is a file: name a folder")
    if (task is None) == (not data):
        raise HalkaError("name the examples with either --task NAME or --data FILE")
    if task is not None and shape is not None:
        raise HalkaError("--shape is for --data: a task says what its files have")
    source = _task_data(task, validation, metric) if task is not None else _file_data(data or [], validation, shape)
    for path in documents or []:
        if not path.exists():
            raise HalkaError(f"--documents: {path} does not exist (seen from {Path.cwd()})")
    request = Request(
        base=base,
        train=source.train,
        held_out=source.held_out,
        metric=metric or source.metric,
        max_new_tokens=max_new_tokens or source.max_new_tokens,
        documents=tuple(map(str, documents or ())),
        target=target,
        tasks=tasks,
        memory=memory_size(gpu_memory, "--gpu-memory"),
        device=device,
        dtype=cast(Any, dtype),  # checked where the base is loaded
        quantize=cast(Any, quantize),
        full=full,
        passages=passages,
        data=source.name,
        flags=(*source.flags, *source.kind_flags),
        again=(*source.flags, *_flags(_changed(ctx)), *(["--full"] if full else [])),
    )
    run = probe if on is None else partial(probe_on, on)
    evidence = run(request, out, minutes=minutes, skip=skip or (), progress=ProbesProgress())
    advice = advise_from(evidence)
    result = {"advice": {**asdict(advice), "title": advice.title}, "evidence": asdict(evidence)}
    write_text(out / "advice.json", dumps(result, indent=1, ensure_ascii=False) + "\n")
    report = write_advice(advice, evidence, out / "report.html")
    if json:
        return emit({**result, "report": report})
    show(*to_terminal(advice, evidence))
    say(f"report: {report}")


class _Data(NamedTuple):
    """The examples, how they are scored, what they are called, and the flags that name them."""

    name: str
    train: tuple[Example, ...]
    held_out: tuple[Example, ...]
    flags: tuple[str, ...]
    metric: str | None = None
    max_new_tokens: int | None = None
    kind_flags: tuple[str, ...] = ()


def _task_data(task: str, validation: Path | None, metric: str | None) -> _Data:
    from halka.cli.reading import named_task
    from halka.data.metric import Metric

    if validation is not None:
        raise HalkaError(f"--validation is for --data: the task {task} has its own validation examples")
    read = named_task(task)
    if read.kind not in (None, "causal-lm"):
        raise HalkaError(f"--task: {task} is for a {read.kind}: the advisor needs a task for causal language models")
    if metric is None and read.primary in {own.name for own in read.metrics if isinstance(own, Metric)}:
        raise HalkaError(
            f"--task: {task} is scored by a function of its own, {read.primary!r}, which the advisor cannot hand on: "
            "name another metric with --metric"
        )
    flags = ("--task", task)
    return _Data(read.name, read.train, read.validation, flags, read.primary or None, read.max_new_tokens)


def _file_data(data: list[Path], validation: Path | None, shape: str | None) -> _Data:
    from halka.cli.reading import data_rows, read_data
    from halka.data.task import KIND_OF_SHAPE

    train: list[Example] = []
    shapes = set()
    for file in data:
        rows = data_rows(file, "--data", shape)
        train += rows.examples
        shapes.add(rows.shape)
    held_out = [] if validation is None else read_data(existing_file(validation, "--validation"), "--validation", shape)
    return _Data(
        name=", ".join(file.name for file in data),
        train=tuple(train),
        held_out=tuple(held_out),
        flags=tuple(_flags({"--data": data, "--validation": validation, "--shape": shape})),
        kind_flags=("--kind", "causal-lm") if shapes & KIND_OF_SHAPE.keys() else (),  # labels are generated, as words
    )


def _changed(ctx: typer.Context) -> dict[str, Any]:
    """The options of `AGAIN` by their flags, where they differ from their defaults."""
    options = {option.name: option for option in ctx.command.params}
    values = {options[name]: ctx.params[name] for name in AGAIN}
    changed = {option.opts[0]: value for option, value in values.items() if value != option.get_default(ctx)}
    return {flag: f"{value:g}" if flag == "--minutes" else value for flag, value in changed.items()}


def _flags(values: Mapping[str, Any]) -> list[str]:
    """Flags with their values; those without one are left out, and those with a list repeated."""
    words = []
    for flag, value in values.items():
        for item in value if isinstance(value, list | tuple) else [value]:
            words += [] if item is None else [flag, str(item)]
    return words
