"""`halka data`: look at data files before training on them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from halka.cli.command import Command, Json, emit, examples, existing_file, group

app = group("Look at data files as the model will see them.", "halka data preview train.jsonl --base smollm2-135m")


@app.command(
    cls=Command,
    epilog=examples(
        "halka data preview train.jsonl --base smollm2-135m",
        "halka data preview train.jsonl test.jsonl --base smollm2-135m --max-length 512",
    ),
)
def preview(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="JSONL, JSON, CSV, TSV, Parquet or text")],
    base: Annotated[str, typer.Option(metavar="NAME", help="the base whose tokens and chat template are used")],
    max_length: Annotated[
        int | None,
        typer.Option(metavar="N", min=2, help="count examples with more tokens than this [the base's context]"),
    ] = None,
    batch_tokens: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="tokens a batch, to count what packing saves [as in training]"),
    ] = None,
    batch_size: Annotated[int | None, typer.Option(metavar="N", min=1, help="examples a batch [no limit]")] = None,
    group_shared: Annotated[
        bool, typer.Option("--group-shared", help="count batches in which examples that begin alike are together")
    ] = False,
    shape: Annotated[
        str | None, typer.Option(metavar="TEXT", help="the shape of rows, if it is not recognised")
    ] = None,
    examples: Annotated[int, typer.Option(metavar="N", min=0, help="examples to show in full")] = 3,
    json: Json = False,
) -> None:
    """Show tokens, loss, lengths, faults and leaks of data files.

    Prompts that are in an earlier file, too, are reported as leaks: name the files to train on before those to test on.
    It also counts the tokens that packed batches save: padding, and beginnings that examples share.
    """
    from rich.console import Console

    from halka.cli.progress import TokensProgress
    from halka.data.preview import preview
    from halka.data.preview_print import render
    from halka.data.truncation import lowest_limit, watched
    from halka.models.description import describe_base, load_tokenizer
    from halka.training.config import TrainConfig

    for file in files:
        existing_file(file, "FILE")
    tokenizer, context = load_tokenizer(base), describe_base(base)["context"]
    limits = TrainConfig(batch_tokens=batch_tokens, batch_size=batch_size).limits()
    longest = lowest_limit(max_length, context)
    with watched(TokensProgress()):
        previews = [
            preview(file, tokenizer, longest, shape, examples, files[:index], **limits, group_shared=group_shared)
            for index, file in enumerate(files)
        ]
    if json:
        return emit([shown.to_json() for shown in previews])
    console = Console(highlight=False)
    for index, shown in enumerate(previews):
        if index:
            console.print()
        render(shown, console)
