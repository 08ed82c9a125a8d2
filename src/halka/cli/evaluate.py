"""`halka evaluate`: answers of a base or an adapter, their scores, and what a neutral text says of forgetting."""

from __future__ import annotations

import json as jsonlib
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from halka.cli.command import Json, columns, emit, examples, new_file, plain, readable_text, show
from halka.cli.examples import named_task, read_data
from halka.cli.opening import AdapterFolder, Base, Device, Dtype, OtherBase, OtherTemplate, open_model

if TYPE_CHECKING:
    from halka.core import AdaptedModel
    from halka.data.task import Task

EXAMPLES = examples(
    "halka evaluate --base smollm2-135m --adapter runs/support/adapter --task support -o predictions.jsonl",
    "halka evaluate --base smollm2-135m --data test.jsonl --metrics exact_match,rouge_l --limit 100",
    "halka evaluate --base smollm2-135m --adapter runs/support/adapter --perplexity prose.txt",
)
METRICS = "exact_match,token_f1"

Split = Literal["train", "validation", "test"]


def evaluate(
    base: Base,
    adapter: AdapterFolder = None,
    task: Annotated[str | None, typer.Option(metavar="NAME", help="a task: support, a .yaml or .py file")] = None,
    split: Annotated[
        Split | None, typer.Option(metavar="NAME", help="the task's train, validation or test (test if not given)")
    ] = None,
    data: Annotated[Path | None, typer.Option(metavar="FILE", help="examples, where there is no task")] = None,
    shape: Annotated[str | None, typer.Option(metavar="TEXT", help="how its rows are written; else found out")] = None,
    metrics: Annotated[
        str | None, typer.Option(metavar="NAMES", help=f"with commas between; else the task's, or {METRICS}")
    ] = None,
    limit: Annotated[int | None, typer.Option(metavar="N", min=1, help="at most so many examples, at random")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="write predictions here, scores beside it")
    ] = None,
    perplexity: Annotated[
        Path | None, typer.Option(metavar="FILE", help="a text: its perplexity, to see what was forgotten")
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="tokens an answer; else the task's, or 64")
    ] = None,
    batch_size: Annotated[int, typer.Option(metavar="N", min=1, help="examples at a time")] = 32,
    seed: Annotated[int, typer.Option(metavar="N", help="for --limit and the intervals")] = 0,
    dtype: Dtype = "bfloat16",
    device: Device = None,
    allow_other_base: OtherBase = False,
    allow_other_template: OtherTemplate = False,
    json: Json = False,
) -> None:
    """Score a base or an adapter on examples, with 95 % intervals."""
    asked = None if perplexity and not (task or data) else judged_on(task, split, data, shape, metrics, limit, seed)
    text = readable_text(perplexity, "--perplexity") if perplexity else None
    if out is not None:
        new_file(out, "--out")
        given = {each.resolve() for each in (data, perplexity, task and Path(task)) if each}
        if given & {out.resolve(), scores_beside(out).resolve()}:
            raise ValueError(f"--out: {out} would write over what is read: name another file")
    model, name = open_model(
        *(base, adapter),
        dtype=dtype,
        device=device,
        allow_other_base=allow_other_base,
        allow_other_template=allow_other_template,
    )
    result: dict[str, Any] = {"base": base, "adapter": adapter}
    if asked is not None:
        result |= _score(model, name, asked, max_new_tokens or asked.max_new_tokens, batch_size, seed, out)
    if text is not None:
        result["perplexity"] = _perplexity(model, name, text)
    if json:
        emit(result)
    else:
        _show(result)


def judged_on(
    task: str | None,
    split: Split | None,
    data: Path | None,
    shape: str | None,
    metrics: str | None,
    limit: int | None,
    seed: int,
) -> Task:
    """The examples to answer, as a task's test split, with the metrics that judge them.

    Raises ValueError if neither or both of task and data were given, and for metrics that there are not.
    """
    from dataclasses import replace

    from halka.data.task import Task
    from halka.data.task import limit as limited
    from halka.metrics import find_metric

    if (task is None) == (data is None):
        raise ValueError("what to evaluate on is said by --task NAME or by --data FILE: give one of them")
    if data is not None:
        if split is not None:
            raise ValueError(f"--split {split} is for --task: a data file is one split")
        names = tuple(METRICS.split(","))
        found = Task(data.name.partition(".")[0], (), (), tuple(read_data(data, "--data", shape)), names, names[0])
    else:
        if shape is not None:
            raise ValueError("--shape is for --data: a task says its own")
        found = named_task(str(task))
        found = replace(found, test=getattr(found, split or "test"))
    if metrics is not None:
        names = tuple(name.strip() for name in metrics.split(",") if name.strip())
        if not names:
            raise ValueError(f"--metrics {metrics!r} names none: give names with commas between, such as {METRICS}")
        found = replace(found, metrics=names, primary=names[0])
    for name in found.metrics:
        find_metric(name)
    if not found.test:
        raise ValueError(
            f"the task {found.name} has no {split or 'test'} examples: choose another --split, or give --data"
        )
    return limited(found, test=limit, seed=seed)


def _score(
    model: AdaptedModel, name: str | None, task: Task, tokens: int, batch_size: int, seed: int, out: Path | None
) -> dict[str, Any]:
    from halka.cli.progress import CountProgress
    from halka.evaluation import evaluate
    from halka.files import write_text

    with CountProgress("answers", len(task.test)) as progress:
        evaluation = evaluate(
            *(model, name, task.test, task.metrics),
            max_new_tokens=tokens,
            batch_size=batch_size,
            seed=seed,
            on_progress=progress.done,
        )
    result = {"task": task.name, "examples": len(task.test), "scores": evaluation.scores}
    if out is not None:
        lines = (jsonlib.dumps(asdict(each), ensure_ascii=False) for each in evaluation.predictions)
        scores = scores_beside(out)
        write_text(out, "".join(f"{line}\n" for line in lines))
        write_text(scores, jsonlib.dumps(plain(result), indent=1) + "\n")
        result |= {"predictions": out, "scores_file": scores}
    return result


def scores_beside(predictions: Path) -> Path:
    return predictions.with_suffix(".scores.json")


def _perplexity(model: AdaptedModel, name: str | None, text: str) -> dict[str, float]:
    from halka.evaluation import perplexity

    bare = perplexity(model, None, text)
    if name is None:
        return {"base": bare}
    adapted = perplexity(model, name, text)
    return {"base": bare, "adapter": adapted, "change": adapted / bare - 1}


def _show(result: dict[str, Any]) -> None:
    from halka.report.units import signed

    if "scores" in result:
        table = columns("metric", "score", "95 % interval", right=("score",))
        for name, score in result["scores"].items():
            table.add_row(name, f"{score.value:.3f}", f"{score.low:.3f} to {score.high:.3f}")
        show(table, f"over {result['examples']} examples of {result['task']}")
    if "predictions" in result:
        show(f"predictions in {result['predictions']}, scores in {result['scores_file']}")
    if found := result.get("perplexity"):
        change = f", with the adapter {found['adapter']:.2f} ({signed(found['change'])})" if "adapter" in found else ""
        show(f"perplexity of the base {found['base']:.2f}{change}")
