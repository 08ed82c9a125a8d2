"""`halka data`: what files hold, before anything is trained on them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from halka.cli.command import Command, Json, emit, examples, existing_file, group

app = group("Data files: look at them as the model will.", "halka data preview train.jsonl --base smollm2-135m")


@app.command(
    cls=Command,
    epilog=examples(
        "halka data preview train.jsonl --base smollm2-135m",
        "halka data preview train.jsonl test.jsonl --base smollm2-135m --max-length 512",
    ),
)
def preview(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="JSONL, JSON, CSV, TSV or Parquet")],
    base: Annotated[str, typer.Option(metavar="NAME", help="the base whose tokens and chat template are used")],
    max_length: Annotated[
        int | None,
        typer.Option(metavar="N", min=2, help="count examples with more tokens; the base's context if not given"),
    ] = None,
    shape: Annotated[str | None, typer.Option(metavar="TEXT", help="how rows are written; else found out")] = None,
    examples: Annotated[int, typer.Option(metavar="N", min=0, help="examples to show in full")] = 3,
    json: Json = False,
) -> None:
    """Show files as the model will see them: tokens, loss, lengths, faults, leaks.

    Each file's prompts are looked for in the files before it, so that a test file comes after what is trained on.
    """
    from rich.console import Console

    from halka.data.preview import preview, render
    from halka.models.description import describe_base, load_tokenizer

    for file in files:
        existing_file(file, "FILE")
    tokenizer, context = load_tokenizer(base), describe_base(base)["context"]
    previews = [
        preview(file, tokenizer, max_length or context, shape, examples, others=files[:index])
        for index, file in enumerate(files)
    ]
    if json:
        return emit([each.to_json() for each in previews])
    console = Console(highlight=False)
    for index, each in enumerate(previews):
        if index:
            console.print()
        render(each, console)
