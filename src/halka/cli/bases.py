"""`halka base`: the models that adapters are trained on."""

from __future__ import annotations

from typing import Annotated

import typer

from halka.cli.command import Command, Json, emit, examples, group, say, show
from halka.util.text import columns

app = group("Base models: pull one, list them, show one.", "halka base list", "halka base pull smollm2-135m")


@app.command(cls=Command, epilog=examples("halka base pull smollm2-135m"))
def pull(
    name: Annotated[str, typer.Argument(metavar="NAME", help="a short name, as in `halka base list`")],
    json: Json = False,
) -> None:
    """Download a base, and keep it on this machine."""
    from halka.models.fetching import pull

    folder = pull(name, say)
    if json:
        emit({"name": name, "path": folder})
    else:
        show(f"{name} is in {folder}")
        say(f"Next: halka train --base {name} --task support -o runs/support")


@app.command("list", cls=Command, epilog=examples("halka base list"))
def list_(json: Json = False) -> None:
    """List the bases that have a short name."""
    from halka.models.fetching import known_bases, list_bases
    from halka.report.units import count, size

    bases, entries = list_bases(), known_bases()
    if json:
        return emit([{**vars(base), "parameters": entries[base.name].parameters} for base in bases])
    table = columns("name", "parameters", "on disk", "licence", "place", right=("parameters", "on disk"))
    for base in bases:
        info = entries[base.name]
        held = size(base.bytes) if base.pulled else "–"
        place = str(base.path) if base.pulled else f"not here yet: halka base pull {base.name}"
        table.add_row(base.name, count(info.parameters), held, info.licence, place)
    show(table, "Every command also takes a transformers folder, or a name on the hub: org/model, org/model@revision.")


@app.command("show", cls=Command, epilog=examples("halka base show smollm2-135m", "halka base show ./my-model --json"))
def show_(
    name: Annotated[str, typer.Argument(metavar="NAME", help="short name, folder or hub name of a base")],
    json: Json = False,
) -> None:
    """Show a base's sizes, context, chat template and licence."""
    from halka.models.description import describe_base
    from halka.report.units import size

    described = describe_base(name)
    if json:
        return emit(described)
    table = columns("", "")
    table.show_header = False
    for key, value in described.items():
        shown = size(value) if key == "bytes" else f"{value:,}" if isinstance(value, int) else str(value or "–")
        table.add_row(key.replace("_", " "), shown)
    show(table)
