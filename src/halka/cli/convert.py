"""`halka adapters convert`: an adapter's folder written again as another tool's, with the base that it is for."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from halka.cli.command import Json, emit, examples, say, show, warnings_said
from halka.cli.opening import Base, Device, Dtype, OtherBase, OtherTemplate, adapter_folder

EXAMPLES = examples(
    "halka adapters convert runs/support/adapter support-for-adapters --base smollm2-135m --to adapterhub",
    "halka adapters convert their-adapter ours --base ./bert --allow-pickle --no-head",
)


def convert(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="an adapter's folder, of any format that is known")],
    into: Annotated[Path, typer.Argument(metavar="INTO", help="the folder to write")],
    base: Base,
    to: Annotated[str, typer.Option("--to", metavar="FORMAT", help="adapterhub, or peft: our own")] = "peft",
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="read weights that are a pickle, by torch's loader for weights alone")
    ] = False,
    no_head: Annotated[bool, typer.Option("--no-head", help="leave out the head that stands beside it")] = False,
    dtype: Dtype = "float32",
    device: Device = None,
    allow_other_base: OtherBase = False,
    allow_other_template: OtherTemplate = False,
    json: Json = False,
) -> None:
    """Write an adapter's folder as another tool's.

    The base says where the adapter's parts stand, and that it fits. What the other tool has no form for is refused by
    name.
    """
    from halka.formats import format_named, format_of
    from halka.models import adapt
    from halka.models.loading import load_base
    from halka.store import load, save

    format_named(to)
    source = format_of(adapter_folder(folder, "FOLDER")).NAME
    say(f"loading {base} …")
    model = adapt(*load_base(base, dtype=dtype, device=device))
    with warnings_said():
        adapter = load(
            model,
            folder,
            name="converted",
            allow_other_base=allow_other_base,
            allow_other_template=allow_other_template,
            allow_pickle=allow_pickle,
            head=not no_head,
        )
    written = save(model, "converted", into, format=to)
    told = {"from": source, "to": to, "method": adapter.method.name, "parameters": adapter.count(), "folder": written}
    emit(told) if json else show(f"{adapter.method.name} of {source} written to {written} as {to}'s folder")
