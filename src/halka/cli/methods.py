"""`halka methods`: the methods with their hyper-parameters."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from halka.cli.command import Json, emit, show
from halka.util.text import columns


def methods(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="show this method")] = None,
    json: Json = False,
) -> None:
    """List the methods, or show one with its hyper-parameters."""
    from halka.methods import all_methods, catalogued, method_named

    methods = [method_named(name)] if name else all_methods().values()
    described = [catalogued(method) for method in methods]
    if json:
        emit(described[0] if name else described)
    elif name:
        _show_one(described[0])
    else:
        _show_all(described)


def _show_all(described: list[dict[str, Any]]) -> None:
    table = columns("method", "lr", "meaning", right=("lr",))
    for method in described:
        table.add_row(method["name"], f"{method['lr']:g}", method["meaning"])
    show(
        table,
        "",
        "`halka methods NAME` shows a method's hyper-parameters.",
        "docs/evidence.md has which of them come close to full fine-tuning, and what rank and rate do.",
    )


def _show_one(described: dict[str, Any]) -> None:
    from halka.models.rates import WIDTH

    show(
        described["meaning"],
        described["plain"],
        f"paper: {described['paper']}",
        f"learning rate: {described['lr']:g} on a decoder {WIDTH:,} wide, more on narrower ones, less on wider",
        f"acts on: {', '.join(described['roles'])}",
        "measured beside full fine-tuning (where it was): docs/evidence.md",
        "",
    )
    table = columns("flag", "default", "takes", "meaning")
    for field in described["fields"]:
        default = field["default"]
        shown = ",".join(map(str, default)) if isinstance(default, tuple) else str(default).lower()
        table.add_row(field["flag"], shown or "none", field["takes"], field["help"])
    show(table if described["fields"] else "It has no hyper-parameters.")
