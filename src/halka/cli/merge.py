"""`halka merge`: measure what merging an adapter changes, combine several, and write the result for other tools."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from halka.cli.adapter_names import BARE, Adapters, StoreFolder, given_adapters
from halka.cli.command import Json, emit, examples, readable_text, say, show, show_warnings
from halka.cli.opening import Base, Loading, open_model, with_loading
from halka.cli.reading import named_task
from halka.util.errors import HalkaError
from halka.util.text import columns

if TYPE_CHECKING:
    from halka.core import AdaptedModel
    from halka.data.task import Task
    from halka.merging.error import MergeError
    from halka.merging.exporting import ExportFormat

EXAMPLES = examples(
    "halka merge runs/support/adapter --base smollm2-135m",
    "halka merge runs/support/adapter --base smollm2-135m --into support-model",
    "halka merge runs/support/adapter --base smollm2-135m --into support.gguf --as gguf --to-dtype q8_0",
    "halka merge a=runs/a/adapter b=runs/b/adapter --base smollm2-135m --combine ties --density 0.5 --task support",
)
COMBINED = "combined"
ALONE = ("lora-gguf", "peft", "vllm")  # formats that hold an adapter, and not its base


@with_loading
def merge(
    adapter: Annotated[
        list[str], typer.Argument(metavar="[NAME=]FOLDER...", help="adapters' folders, or with --store their names")
    ],
    base: Base,
    store: StoreFolder = None,
    combine: Annotated[
        str | None,
        typer.Option(metavar="METHOD", help="combine several into one: linear, cat, svd, ties, dare_linear, …"),
    ] = None,
    weights: Annotated[
        str | None, typer.Option(metavar="X,X,…", help="the adapters' weights; equal if not given")
    ] = None,
    density: Annotated[
        float | None, typer.Option(metavar="X", help="the share of values that ties, dare, magnitude_prune keep")
    ] = None,
    rank: Annotated[int | None, typer.Option(metavar="N", min=1, help="of the result of svd and its like")] = None,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="for dare's draws, and the choice of examples")] = 0,
    task: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="a task to score base, adapters and combination on; may be repeated"),
    ] = None,
    examples: Annotated[int, typer.Option(metavar="N", min=1, help="of each task's test split, at random")] = 50,
    probes: Annotated[
        Path | None, typer.Option(metavar="FILE", help="a text to compare merged and unmerged on; else a neutral one")
    ] = None,
    into: Annotated[
        Path | None, typer.Option("--into", "-o", metavar="PATH", help="write it here: a folder, or a .gguf file")
    ] = None,
    format: Annotated[
        Literal["safetensors", "gguf", "lora-gguf", "peft", "vllm"] | None,
        typer.Option("--as", metavar="FORMAT", help="safetensors, gguf (merged), lora-gguf, peft, vllm (not merged)"),
    ] = None,
    to_dtype: Annotated[
        str | None, typer.Option(metavar="TEXT", help="precision of the written weights; gguf has q8_0 too")
    ] = None,
    pad_rank: Annotated[bool, typer.Option("--pad-rank", help="for vllm: pad the rank to one that it takes")] = False,
    limit: Annotated[
        float, typer.Option(metavar="X", min=0.0, help="the largest KL of the error, as a share of the effect's")
    ] = 0.05,
    force: Annotated[
        bool, typer.Option("--force", help="write even past the limit, and over a .gguf file or an adapter")
    ] = False,
    *,
    loading: Loading,
    json: Json = False,
) -> None:
    """Merge an adapter into its base: measure the change, write it.

    With --combine several adapters become one first. Without --into nothing is written.
    """
    from halka.core import VIRTUAL_ROLES

    adapters = given_adapters(adapter, store, loading.allow_pickle)
    if (len(adapters.named) > 1) != (combine is not None):
        raise HalkaError("--combine METHOD combines several adapters: give it with two or more, and only then")
    if combine is None and (weights or density is not None or rank is not None):
        raise HalkaError("--weights, --density and --rank are for several adapters: give --combine METHOD with them")
    if probes and format in ALONE:
        raise HalkaError(f"--probes measure what merging changes, and {format} holds the adapter alone: leave them out")
    if into is None and (format or to_dtype or pad_rank):
        raise HalkaError("--as, --to-dtype and --pad-rank set how --into is written: give --into PATH with them")
    tasks = [_scorable(name) for name in task or ()]
    text = readable_text(probes, "--probes") if probes else None
    factors = weights_of(weights, adapters.named)
    if combine is not None:
        from halka.merging.combining import check_combination

        check_combination(combine, factors, density, rank)
    if into is not None:
        from halka.merging.exporting import checked_precision

        checked_precision(format or "safetensors", to_dtype, pad_rank)
        _check_into(into, format or "safetensors", base, adapters, force)
    model = open_model(base, adapters, adapters.named, loading)
    result: dict[str, Any] = {"base": base, "adapters": factors}
    name = adapters.named[0]
    card = adapters.folder(name).history
    if combine is not None:
        options = {"density": density, "rank": rank, "seed": seed}
        name = _combined(model, factors, combine, **options)
        card = {"training": {"combined": factors, "by": combine, **options}}
        result["combination"] = combine
    if tasks:
        everyone = dict.fromkeys((None, *adapters.named, name))
        with show_warnings():
            result["tasks"] = scored(model, [*everyone], tasks, examples, seed)
        if not json:
            _show_tasks(result["tasks"])

    def report(error: MergeError) -> None:
        result["error"] = {**asdict(error), "relative": error.relative}
        if not json:
            _show_error(error)

    virtual = any(target.role in VIRTUAL_ROLES for target in model.adapter(name).targets.values())
    measures = into is not None or not (tasks and virtual)  # of virtual tokens nothing is merged
    if measures and format not in ALONE:
        say("comparing merged and unmerged …")
    try:
        if not measures:
            say("virtual tokens are no weights: there is nothing to merge, and no error to measure")
        elif into is None:
            from halka.merging.error import merge_error

            report(error := merge_error(model, name, text))
            if not force:
                error.check(limit)
        else:
            from halka.merging.exporting import export

            written = {"format": format or "safetensors", "dtype": to_dtype, "pad_rank": pad_rank, "card": card}
            measured = {"probes": text, "limit": limit, "force": force, "on_error": report}
            result["written"] = export(model, name, into, **written, **measured)
    except HalkaError:
        if json:
            emit(result)  # what was measured took its time
        raise
    if json:
        return emit(result)
    if into is not None:
        show(f"written to {into}")


def _check_into(into: Path, format: ExportFormat, base: str, adapters: Adapters, force: bool) -> None:
    """Raises HalkaError for the folder of an adapter that is read, and as `check_destination` does."""
    from halka.merging.exporting import check_destination

    folders = {name: adapters.folder(name).path for name in adapters.named}
    if source := next((name for name, folder in folders.items() if into.exists() and into.samefile(folder)), None):
        raise HalkaError(f"--into {into} is the folder of {source}, which is read: choose another")
    check_destination(into, format, base, force)


def _combined(model: AdaptedModel, weights: dict[str, float], how: str, **options: Any) -> str:
    """Add the combination of the adapters to the model; returns its name, which is none of theirs."""
    from halka.merging.combining import combine

    name = COMBINED
    while name in weights:
        name += "'"
    combine(model, weights, how, name=name, **options)
    return name


def _scorable(name: str) -> Task:
    """The task of that name. Raises HalkaError where it has no test examples, or its metric is unknown."""
    from halka.evaluation.validation_score import primary_metric

    task = named_task(name)
    if not task.test:
        raise HalkaError(f"--task: {task.name} has no test examples to score on: give it some (test:)")
    primary_metric(task, None)
    return task


def weights_of(text: str | None, names: Sequence[str]) -> dict[str, float]:
    """Each adapter's weight, by name. Raises HalkaError for a text that is not a number for each adapter."""
    if text is None:
        return dict.fromkeys(names, 1 / len(names))
    try:
        numbers = [float(number) for number in text.split(",")]
    except ValueError:
        raise HalkaError(f"--weights {text!r} are no numbers with commas between them, such as 0.5,0.5") from None
    if len(numbers) != len(names):
        raise HalkaError(f"--weights has {len(numbers)} for {len(names)} adapters: give one for each")
    return dict(zip(names, numbers, strict=True))


def scored(
    model: AdaptedModel, names: Sequence[str | None], tasks: Sequence[Any], count: int, seed: int
) -> list[dict[str, Any]]:
    """The loss and the primary score of adapters (None: the bare base) on each task's test examples."""
    from halka.cli.progress import CountProgress
    from halka.data.task import limit as limited
    from halka.evaluation.evaluating import evaluate
    from halka.evaluation.validation_score import primary_metric
    from halka.models.kinds import kind_of
    from halka.training import TrainConfig, as_tokens, mean_loss

    rows: list[dict[str, Any]] = []
    for task in tasks:
        metric = primary_metric(task, kind_of(model.base))
        test = limited(task, test=count, seed=seed).test
        for name in names:
            with CountProgress(f"{name or BARE} on {task.name}", len(test)) as progress:
                evaluation = evaluate(
                    model,
                    name,
                    test,
                    (metric,),
                    max_new_tokens=task.max_new_tokens,
                    seed=seed,
                    on_progress=progress.done,
                )
            loss = mean_loss(model, name, as_tokens(model, test, TrainConfig(max_length=None), name))
            row = {"task": task.name, "adapter": name, "examples": len(test), "loss": loss}
            rows.append({**row, "metric": metric.name, "score": evaluation.scores[metric.name]})
    return rows


def _show_error(error: MergeError) -> None:
    table = columns("compared", "KL", "largest", "mean", "same token", right=("KL", "largest", "mean", "same token"))
    rows = {
        "merged and unmerged": error.error,
        "the bare base and the adapter": error.effect,
        f"rounding to {error.dtype}, unmerged": error.noise,
        "the same, merged": error.merged,
        "of the merged weights alone": error.rounding,
    }
    for compared, difference in rows.items():
        table.add_row(
            compared,
            f"{difference.kl:.2g}",
            f"{difference.max:.3g}",
            f"{difference.mean:.2g}",
            f"{difference.same_token:.1%}",
        )
    share = f"merging changes {error.relative:.2%} of {error.adapter}'s effect, over {error.tokens} positions of text"
    show(table, share)


def _show_tasks(rows: list[dict[str, Any]]) -> None:
    right = ("examples", "loss", "score")
    table = columns("task", "adapter", "examples", "loss", "metric", "score", "95 % interval", right=right)
    for row in rows:
        score = row["score"]
        cells = (row["metric"], f"{score.value:.3f}", f"{score.low:.3f} to {score.high:.3f}")
        table.add_row(row["task"], row["adapter"] or BARE, str(row["examples"]), f"{row['loss']:.3f}", *cells)
    show(table)
