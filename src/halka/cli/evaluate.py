"""`halka evaluate`: answers of a base or an adapter, their scores, and what a neutral text says of forgetting."""

from __future__ import annotations

import json as jsonlib
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from halka.cli.command import Json, columns, emit, examples, new_file, plain, readable_text, show
from halka.cli.examples import data_rows, named_task
from halka.cli.opening import Base, Loading, open_model, with_loading
from halka.cli.routing import AdapterNames, PoolSize, StoreFolder, addressed, given_adapters, route
from halka.util.errors import HalkaError

if TYPE_CHECKING:
    from halka.core import AdaptedModel
    from halka.data.examples import Example
    from halka.data.task import Task

EXAMPLES = examples(
    "halka evaluate --base smollm2-135m --adapter runs/support/adapter --task support -o predictions.jsonl",
    "halka evaluate --base smollm2-135m --data test.jsonl --metrics exact_match,rouge_l --limit 100",
    "halka evaluate --base smollm2-135m --adapter runs/support/adapter --perplexity prose.txt",
    "halka evaluate --base smollm2-135m --store adapters --adapter support --adapter support@1 --task support",
)
Split = Literal["train", "validation", "test"]


@with_loading
def evaluate(
    base: Base,
    adapter: AdapterNames = None,
    store: StoreFolder = None,
    pool: PoolSize = None,
    task: Annotated[str | None, typer.Option(metavar="NAME", help="a task: support, a .yaml or .py file")] = None,
    split: Annotated[
        Split | None, typer.Option(metavar="NAME", help="the task's train, validation or test (test if not given)")
    ] = None,
    data: Annotated[Path | None, typer.Option(metavar="FILE", help="examples, where there is no task")] = None,
    shape: Annotated[str | None, typer.Option(metavar="TEXT", help="how its rows are written; else found out")] = None,
    metrics: Annotated[
        str | None, typer.Option(metavar="NAMES", help="with commas between; else the task's, or as the data need")
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
    *,
    loading: Loading,
    json: Json = False,
) -> None:
    """Score a base or adapters on examples, with 95 % intervals.

    Several adapters are each scored on all examples. Where rows of --data have a field "adapter", each is answered by
    the adapter that it names, and scores are told by adapter and overall.
    """
    asked = None if perplexity and not (task or data) else judged_on(task, split, data, shape, metrics, limit, seed)
    text = readable_text(perplexity, "--perplexity") if perplexity else None
    if out is not None:
        new_file(out, "--out")
        given = {each.resolve() for each in (data, perplexity, task and Path(task)) if each}
        if given & {out.resolve(), scores_beside(out).resolve()}:
            raise HalkaError(f"--out: {out} would write over what is read: name another file")
    adapters = given_adapters(adapter, store, loading.allow_pickle)
    examples, names = route(asked.test if asked else (), adapters)
    everyone = [*dict.fromkeys(names or adapters.named or (None,))]
    model = open_model(base, adapters, everyone, loading, pool=pool)
    result: dict[str, Any] = {"base": base, "adapter": adapter[0] if adapter and len(adapter) == 1 else adapter or None}
    if asked is not None:
        tokens = max_new_tokens or asked.max_new_tokens
        result |= _score(model, names, examples, asked, tokens, batch_size, seed, out)
    if text is not None:
        result["perplexity"] = _perplexity(model, everyone, text)
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

    from halka.data.task import OF_SHAPES, Task
    from halka.data.task import limit as limited
    from halka.evaluation.metrics import default_metrics, find_metric

    if (task is None) == (data is None):
        raise HalkaError("what to evaluate on is said by --task NAME or by --data FILE: give one of them")
    if data is not None:
        if split is not None:
            raise HalkaError(f"--split {split} is for --task: a data file is one split")
        rows = data_rows(data, "--data", shape)
        names = default_metrics(rows.examples, OF_SHAPES.get(rows.shape))
        test = addressed(rows.examples, rows.rows)
        found = Task(data.name.partition(".")[0], (), (), tuple(test), names, names[0])
    else:
        if shape is not None:
            raise HalkaError("--shape is for --data: a task says its own")
        found = named_task(str(task))
        found = replace(found, test=getattr(found, split or "test"))
    if metrics is not None:
        names = tuple(name.strip() for name in metrics.split(",") if name.strip())
        if not names:
            raise HalkaError(f"--metrics {metrics!r} names none: give names with commas, such as exact_match,token_f1")
        found = replace(found, metrics=names, primary=names[0])
    for name in found.metrics:
        find_metric(name)
    if not found.test:
        raise HalkaError(
            f"the task {found.name} has no {split or 'test'} examples: choose another --split, or give --data"
        )
    return limited(found, test=limit, seed=seed)


def _score(
    model: AdaptedModel,
    names: list[str | None],
    examples: list[Example],
    task: Task,
    tokens: int,
    batch_size: int,
    seed: int,
    out: Path | None,
) -> dict[str, Any]:
    """Scores overall, unless each adapter answered the same examples, and by adapter where there are several."""
    from halka.cli.progress import CountProgress
    from halka.evaluation.evaluating import evaluate
    from halka.util.files import write_text

    with CountProgress("answers", len(examples)) as progress:
        evaluation = evaluate(
            *(model, names, examples, task.metrics),
            max_new_tokens=tokens,
            batch_size=batch_size,
            seed=seed,
            on_progress=progress.done,
        )
    result: dict[str, Any] = {"task": task.name, "examples": len(task.test)}
    if len(examples) == len(task.test):
        result["scores"] = evaluation.scores
    if evaluation.by_adapter:
        result["by_adapter"] = [
            {"adapter": name, "examples": names.count(name), "scores": scores}
            for name, scores in evaluation.by_adapter.items()
        ]
    if out is not None:
        made = ({**asdict(each), "adapter": name} for each, name in zip(evaluation.predictions, names, strict=True))
        scores = scores_beside(out)
        write_text(out, "".join(f"{jsonlib.dumps(each, ensure_ascii=False)}\n" for each in made))
        write_text(scores, jsonlib.dumps(plain(result), indent=1) + "\n")
        result |= {"predictions": out, "scores_file": scores}
    return result


def scores_beside(predictions: Path) -> Path:
    return predictions.with_suffix(".scores.json")


def _perplexity(model: AdaptedModel, names: list[str | None], text: str) -> dict[str, Any]:
    """The base's, and each adapter's with its change from that."""
    from halka.evaluation.evaluating import perplexity

    bare = perplexity(model, None, text)
    each = {name: perplexity(model, name, text) for name in names if name is not None}
    found = [{"adapter": name, "perplexity": value, "change": value / bare - 1} for name, value in each.items()]
    if len(found) == 1:
        return {"base": bare, "adapter": found[0]["perplexity"], "change": found[0]["change"]}
    return {"base": bare, "by_adapter": found} if found else {"base": bare}


def _show(result: dict[str, Any]) -> None:
    if "by_adapter" in result:
        _show_by_adapter(result)
    elif "scores" in result:
        table = columns("metric", "score", "95 % interval", right=("score",))
        for name, score in result["scores"].items():
            table.add_row(name, f"{score.value:.3f}", f"{score.low:.3f} to {score.high:.3f}")
        show(table)
    if "examples" in result:
        show(f"over {result['examples']} examples of {result['task']}")
    if "predictions" in result:
        show(f"predictions in {result['predictions']}, scores in {result['scores_file']}")
    if "perplexity" in result:
        _show_perplexity(result["perplexity"])


def _show_by_adapter(result: dict[str, Any]) -> None:
    """A row an adapter, and one for all where they answered examples of their own."""
    rows = list(result["by_adapter"])
    if "scores" in result:
        rows.append({"adapter": "all", "examples": result["examples"], "scores": result["scores"]})
    table = columns("adapter", "examples", *rows[0]["scores"], right=("examples",))
    for row in rows:
        scores = (f"{each.value:.3f} ({each.low:.3f} to {each.high:.3f})" for each in row["scores"].values())
        table.add_row(row["adapter"] or "the bare base", str(row["examples"]), *scores)
    show(table)


def _show_perplexity(found: dict[str, Any]) -> None:
    from halka.report.units import signed

    change = f", with the adapter {found['adapter']:.2f} ({signed(found['change'])})" if "adapter" in found else ""
    show(f"perplexity of the base {found['base']:.2f}{change}")
    for each in found.get("by_adapter", ()):
        show(f"  with {each['adapter']} {each['perplexity']:.2f} ({signed(each['change'])})")
