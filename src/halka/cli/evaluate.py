"""`halka evaluate`: score a base or adapters on examples, and measure forgetting by the perplexity of a text."""

from __future__ import annotations

import json as jsonlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from halka.cli.adapter_names import BARE, AdapterNames, PoolSize, StoreFolder, addressed, given_adapters, route
from halka.cli.command import Json, emit, examples, new_file, readable_text, show, show_warnings
from halka.cli.opening import Base, Loading, open_model, with_loading
from halka.cli.reading import data_rows, named_task
from halka.util.errors import HalkaError
from halka.util.files import write_text
from halka.util.plain import plain
from halka.util.text import columns, plural

if TYPE_CHECKING:
    from halka.core import AdaptedModel
    from halka.data.examples import Example
    from halka.data.task import Task
    from halka.evaluation.evaluating import Evaluation
    from halka.evaluation.metrics import Score

EXAMPLES = examples(
    "halka evaluate --base smollm2-135m --adapter runs/support/adapter --task support --with-base",
    "halka evaluate --base smollm2-135m --adapter runs/support/adapter --data test.jsonl -o predictions.jsonl",
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
    with_base: Annotated[bool, typer.Option("--with-base", help="score the bare base on the examples, too")] = False,
    task: Annotated[str | None, typer.Option(metavar="NAME", help="a task: support, a .yaml or .py file")] = None,
    split: Annotated[
        Split | None, typer.Option(metavar="NAME", help="the task's train, validation or test examples [test]")
    ] = None,
    data: Annotated[Path | None, typer.Option(metavar="FILE", help="a file of examples, in place of a task")] = None,
    shape: Annotated[
        str | None, typer.Option(metavar="TEXT", help="the shape of its rows, if it is not recognised")
    ] = None,
    metrics: Annotated[
        str | None, typer.Option(metavar="NAMES", help="with commas between [the task's, or those that fit the data]")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="score at most so many examples, drawn at random")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="write predictions here, scores beside it")
    ] = None,
    perplexity: Annotated[
        Path | None, typer.Option(metavar="FILE", help="a text unlike the task, to measure forgetting")
    ] = None,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, help="the most tokens of an answer [the task's, or the longest accepted one's]"
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option(metavar="N", min=1, help="examples at a time")] = 32,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="for --limit and the intervals")] = 0,
    *,
    loading: Loading,
    json: Json = False,
) -> None:
    """Score a base or adapters on examples, with 95 % intervals.

    Several adapters are each scored on all examples. If rows of --data have a field "adapter", the adapter that a row
    names answers it, with scores by adapter and overall.
    """
    task_to_score, predictions = None, list[dict[str, Any]]()
    if task or data or not perplexity:
        task_to_score = task_of(task, split, data, shape, metrics, limit, seed)
    else:
        _check_unused(out=out, with_base=with_base, metrics=metrics, limit=limit, split=split, shape=shape)
    text = readable_text(perplexity, "--perplexity") if perplexity else None
    if out is not None:
        _check_out(out, task, data, perplexity)
    adapters = given_adapters(adapter, store, loading.allow_pickle)
    rows, names = route(task_to_score.test if task_to_score else (), adapters)
    everyone = [*dict.fromkeys(names or adapters.named or (None,))]
    if with_base and everyone == [None]:
        raise HalkaError("--with-base scores the bare base beside adapters: give --adapter, or leave it out")
    model = open_model(base, adapters, everyone, loading, pool=pool)
    if text is not None:
        from halka.evaluation.evaluating import check_has_perplexity

        check_has_perplexity(model)
    result: dict[str, Any] = {"base": base, "adapter": adapter[0] if adapter and len(adapter) == 1 else adapter or None}
    measured = {} if text is None else {"perplexity": _perplexity(model, everyone, text)}
    if task_to_score is not None:
        settings = {"max_new_tokens": max_new_tokens or task_to_score.max_new_tokens, "batch_size": batch_size}
        with show_warnings():
            scored, predictions = _score(model, rows, names, task_to_score, with_base, seed=seed, **settings)
        result |= scored
    if out is not None:
        result |= {"predictions": out, "scores_file": scores_file(out)}
    result |= measured
    try:
        if out is not None:
            write_text(out, "".join(f"{jsonlib.dumps(line, ensure_ascii=False)}\n" for line in predictions))
            write_text(scores_file(out), jsonlib.dumps(plain(result), indent=1) + "\n")
    finally:  # what was measured took its time: it is shown where no file can be written, too
        emit(result) if json else _show(result)
    if out is not None and not json:
        show(f"predictions in {out}, scores in {scores_file(out)}")


def task_of(
    task: str | None,
    split: Split | None,
    data: Path | None,
    shape: str | None,
    metrics: str | None,
    limit: int | None,
    seed: int,
) -> Task:
    """The task of --task or --data; its test split holds the examples to answer.

    Raises HalkaError if neither or both of task and data were given, and for unknown metrics.
    """
    from halka.data.metric import Metric
    from halka.data.task import KIND_OF_SHAPE, Task
    from halka.data.task import limit as limited
    from halka.evaluation.metrics import default_metrics, find_metric

    if (task is None) == (data is None):
        raise HalkaError("give either --task NAME or --data FILE to evaluate on")
    if data is not None:
        if split is not None:
            raise HalkaError(f"--split {split} is for --task: a data file is one split")
        rows = data_rows(data, "--data", shape, also="adapter")
        names = default_metrics(rows.examples, KIND_OF_SHAPE.get(rows.shape))
        test = addressed(rows.examples, rows.rows)
        chosen = Task(data.name.partition(".")[0], (), (), tuple(test), names, names[0])
    else:
        if shape is not None:
            raise HalkaError("--shape is for --data: a task names its own")
        whole = named_task(str(task))
        splits = {"train": whole.train, "validation": whole.validation, "test": whole.test}
        chosen = replace(whole, test=splits[split or "test"])
    if metrics is not None:
        names = tuple(name.strip() for name in metrics.split(",") if name.strip())
        if not names:
            raise HalkaError(f"--metrics {metrics!r} names none: give names with commas, such as exact_match,token_f1")
        own = {metric.name: metric for metric in chosen.metrics if isinstance(metric, Metric)}
        chosen = replace(chosen, metrics=tuple(own.get(name, name) for name in names), primary=names[0])
    for name in chosen.metrics:
        find_metric(name)
    if not chosen.test:
        raise HalkaError(
            f"the task {chosen.name} has no {split or 'test'} examples: choose another --split, or give --data"
        )
    return limited(chosen, test=limit, seed=seed)


def _check_unused(**of_examples: Any) -> None:
    """Raises HalkaError for an option that is for examples, where there are none."""
    if unused := [name for name, value in of_examples.items() if value]:
        flag = f"--{unused[0].replace('_', '-')}"
        raise HalkaError(f"{flag} is for examples: give --task NAME or --data FILE beside --perplexity")


def _check_out(out: Path, task: str | None, *files: Path | None) -> None:
    """Raises HalkaError where nothing can be written there, or the predictions or scores would overwrite an input."""
    from halka.data.task import files_of

    new_file(out, "--out")
    own = files_of(Path(task)) if task else []
    inputs = {path.resolve() for path in (*files, *own) if path}
    if inputs & {out.resolve(), scores_file(out).resolve()}:
        raise HalkaError(f"--out: {out} would overwrite an input: name another file")


def _score(
    model: AdaptedModel,
    rows: Sequence[Example],
    names: Sequence[str | None],
    task: Task,
    with_base: bool,
    **settings: Any,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Scores overall (unless several adapters answered the same examples), by adapter, and of the bare base.

    With them come the predictions, each with its adapter.
    """
    evaluation = _answer(model, names, rows, task, "answers", settings)
    answered = [*zip(names, evaluation.predictions, strict=True)]
    result: dict[str, Any] = {"task": task.name, "examples": len(task.test)}
    if len(rows) == len(task.test):
        result["scores"] = evaluation.scores
    if evaluation.by_adapter:
        result["by_adapter"] = [
            {"adapter": name, "examples": names.count(name), "scores": scores}
            for name, scores in evaluation.by_adapter.items()
        ]
    if with_base:
        bare = _answer(model, None, task.test, task, "answers of the bare base", settings)
        answered += [(None, prediction) for prediction in bare.predictions]
        result["base_scores"] = bare.scores
    return result, [{**asdict(prediction), "adapter": name} for name, prediction in answered]


def _answer(
    model: AdaptedModel,
    names: str | Sequence[str | None] | None,
    rows: Sequence[Example],
    task: Task,
    title: str,
    settings: Mapping[str, Any],
) -> Evaluation:
    from halka.cli.progress import CountProgress
    from halka.evaluation.evaluating import evaluate

    with CountProgress(title, len(rows)) as progress:
        return evaluate(model, names, rows, task.metrics, on_progress=progress.done, **settings)


def scores_file(predictions: Path) -> Path:
    """The file for the scores beside a file of predictions."""
    name = predictions.stem if predictions.suffix in (".jsonl", ".json") else predictions.name
    return predictions.with_name(f"{name}.scores.json")


def _perplexity(model: AdaptedModel, names: Sequence[str | None], text: str) -> dict[str, Any]:
    """The base's perplexity, and each adapter's with its relative change."""
    from halka.evaluation.evaluating import perplexity

    bare = perplexity(model, None, text)
    values = {name: perplexity(model, name, text) for name in names if name is not None}
    rows = [{"adapter": name, "perplexity": value, "change": value / bare - 1} for name, value in values.items()]
    if len(rows) == 1:
        return {"base": bare, "adapter": rows[0]["perplexity"], "change": rows[0]["change"]}
    return {"base": bare, "by_adapter": rows} if rows else {"base": bare}


def _show(result: dict[str, Any]) -> None:
    if "by_adapter" in result or "base_scores" in result:
        _show_by_adapter(result)
    elif "scores" in result:
        table = columns("metric", "score", "95 % interval", right=("score",))
        for name, score in result["scores"].items():
            table.add_row(name, f"{score.value:.3f}", f"{score.low:.3f} to {score.high:.3f}")
        show(table)
    if "examples" in result:
        show(f"over {plural(result['examples'], 'example')} of {result['task']}")
    if "perplexity" in result:
        _show_perplexity(result["perplexity"])


def _show_by_adapter(result: dict[str, Any]) -> None:
    """One row for each adapter, one overall if each answered its own examples, and one for --with-base."""
    rows: list[tuple[str, int, dict[str, Score]]] = [
        (row["adapter"] or BARE, row["examples"], row["scores"]) for row in result.get("by_adapter", ())
    ]
    if "scores" in result:
        alone = not rows and isinstance(result["adapter"], str)
        rows.append((result["adapter"] if alone else "all", result["examples"], result["scores"]))
    if "base_scores" in result:
        rows.append((BARE, result["examples"], result["base_scores"]))
    table = columns("adapter", "examples", *rows[0][2], right=("examples",))
    for name, count, scores in rows:
        shown = (f"{score.value:.3f} ({score.low:.3f} to {score.high:.3f})" for score in scores.values())
        table.add_row(name, str(count), *shown)
    show(table)


def _show_perplexity(result: dict[str, Any]) -> None:
    from halka.report.units import signed

    change = f", with the adapter {result['adapter']:.2f} ({signed(result['change'])})" if "adapter" in result else ""
    show(f"perplexity of the base {result['base']:.2f}{change}")
    for row in result.get("by_adapter", ()):
        show(f"  with {row['adapter']} {row['perplexity']:.2f} ({signed(row['change'])})")
