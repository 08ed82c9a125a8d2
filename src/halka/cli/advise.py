"""`halka advise`: probes of the user's own base, data and hardware, to a verdict with its evidence."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from halka.cli.command import Json, emit, examples, existing_file, memory_size, say
from halka.cli.opening import Base, Dtype, Quantize
from halka.util.errors import HalkaError

if TYPE_CHECKING:
    from halka.data.examples import Example

EXAMPLES = examples(
    "halka advise --base smollm2-135m --task support",
    "halka advise --base smollm2-135m --data questions.jsonl --documents handbook/ --minutes 20",
    "halka advise --base Qwen/Qwen2.5-7B --data train.jsonl --device rtx4090 --tasks 40 --skip learnability",
)


def advise(
    base: Base,
    task: Annotated[str | None, typer.Option(metavar="NAME", help="a task: support, a .yaml or .py file")] = None,
    data: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="examples, where there is no task; may be repeated")
    ] = None,
    validation: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="examples to judge by; else some of --data are held out"),
    ] = None,
    shape: Annotated[str | None, typer.Option(metavar="TEXT", help="how the rows are written; else found out")] = None,
    documents: Annotated[
        list[Path] | None,
        typer.Option(metavar="PATH", help="files and folders that may hold the answers; may be repeated"),
    ] = None,
    metric: Annotated[
        str | None, typer.Option(metavar="NAME", help="what answers are worth; else the task's, or as they look")
    ] = None,
    target: Annotated[
        float | None, typer.Option(metavar="X", min=0.0, max=1.0, help="the score that suffices, 0 to 1")
    ] = None,
    tasks: Annotated[int, typer.Option(metavar="N", min=1, help="tasks like this one, for storage and serving")] = 1,
    gpu_memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help="judge what fits by a GPU with this memory, such as 24GB")
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="judge what fits by this GPU, such as h100; it asks and trains here"),
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="try full fine-tuning, too, beside the small adapters")] = False,
    passages: Annotated[int, typer.Option(metavar="N", min=1, help="passages in a prompt")] = 3,
    max_new_tokens: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="tokens an answer; else the task's, or 64")
    ] = None,
    minutes: Annotated[
        float, typer.Option(metavar="X", help="how long to ask and train; loading and documents come on top")
    ] = 10.0,
    skip: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PROBE", help="leave out: fit, cleanliness, strength, knowledge, learnability; may be repeated"
        ),
    ] = None,
    dtype: Dtype = "bfloat16",
    quantize: Quantize = None,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FOLDER", help="evidence, advice and report")] = Path(
        "advice"
    ),
    json: Json = False,
) -> None:
    """Advise what to do with a base, data and hardware: prompt, PEFT, RAG, both, full fine-tuning, or something first.

    Nothing is assumed that can be measured: the base is asked with and without examples and documents, and small
    adapters are trained for some minutes. The same command goes on where it was stopped.
    """
    from dataclasses import asdict
    from json import dumps

    from halka.advisor.page import write_advice
    from halka.advisor.probing import probe
    from halka.advisor.request import Need
    from halka.advisor.terminal import show_advice
    from halka.advisor.verdict import advise_from
    from halka.cli.progress import ProbesProgress
    from halka.util.files import write_text

    if out.is_file():
        raise HalkaError(f"--out: {out} is a file: name a folder")
    given = _given(task, data or [], validation, shape)
    for path in documents or []:
        if not path.exists():
            raise HalkaError(f"--documents: there is no {path}: check the path, it is seen from {Path.cwd()}")
    memory = memory_size(gpu_memory, "--gpu-memory")
    given = {**given, "metric": metric or given["metric"], "max_new_tokens": max_new_tokens or given["max_new_tokens"]}
    others = {
        "--documents": documents,
        "--metric": metric,
        "--target": target,
        "--tasks": None if tasks == 1 else tasks,
        "--gpu-memory": gpu_memory,
        "--device": device,
        "--max-new-tokens": max_new_tokens,
        "--passages": None if passages == 3 else passages,
        "--dtype": None if dtype == "bfloat16" else dtype,
        "--quantize": quantize,
        "--out": None if str(out) == "advice" else out,
    }
    again = [*given.pop("again"), *_flags(others), *(["--full"] if full else [])]
    need = Need(
        base=base,
        **given,
        again=tuple(again),
        documents=tuple(map(str, documents or ())),
        target=target,
        tasks=tasks,
        memory=memory,
        device=device,
        dtype=dtype,
        quantize=quantize,
        full=full,
        passages=passages,
    )
    evidence = probe(need, out, minutes=minutes, skip=skip or (), progress=ProbesProgress())
    advice = advise_from(evidence)
    told = {"advice": {**asdict(advice), "title": advice.title}, "evidence": asdict(evidence)}
    write_text(out / "advice.json", dumps(told, indent=1, ensure_ascii=False) + "\n")
    report = write_advice(advice, evidence, out / "report.html")
    if json:
        return emit({**told, "report": report})
    show_advice(advice, evidence)
    say(f"report: {report}")


def _given(task: str | None, data: list[Path], validation: Path | None, shape: str | None) -> dict[str, Any]:
    """The examples by what they are for, and how they are called."""
    from halka.cli.examples import data_rows, named_task, read_data
    from halka.data.task import KIND_OF_SHAPE

    if (task is None) == (not data):
        raise HalkaError("what is to be learned is said by --task NAME or by --data FILE: give one of them")
    if task is not None:
        if validation is not None:
            raise HalkaError(f"--validation is for --data: the task {task} has its own validation examples")
        read = named_task(task)
        if read.kind not in (None, "causal-lm"):
            raise HalkaError(f"--task: {task} is for a {read.kind}: the advisor asks language models")
        return {
            "train": read.train,
            "held_out": read.validation,
            "metric": read.primary or None,
            "max_new_tokens": read.max_new_tokens,
            "data": read.name,
            "flags": ("--task", task),
            "again": ("--task", task),
        }
    train: list[Example] = []
    shapes = set()
    for file in data:
        rows = data_rows(file, "--data", shape)
        train += rows.examples
        shapes.add(rows.shape)
    held_out = [] if validation is None else read_data(existing_file(validation, "--validation"), "--validation", shape)
    own = _flags({"--data": data, "--validation": validation, "--shape": shape})
    as_text = (
        ["--kind", "causal-lm"] if shapes & KIND_OF_SHAPE.keys() else []
    )  # labels are asked for as answers, in words
    return {
        "train": tuple(train),
        "held_out": tuple(held_out),
        "metric": None,
        "max_new_tokens": 64,
        "data": ", ".join(file.name for file in data),
        "flags": (*own, *as_text),
        "again": tuple(own),
    }


def _flags(given: Mapping[str, Any]) -> list[str]:
    """Flags with their values, those that have one; a list's each with the flag."""
    told = []
    for flag, value in given.items():
        for each in value if isinstance(value, list) else [value]:
            told += [] if each is None else [flag, str(each)]
    return told
