"""`halka adapters convert`: an adapter's folder written again as another tool's, with the base that it is for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from halka.cli.command import Json, emit, examples, say, show, warnings_said
from halka.cli.opening import Device, Dtype, OtherBase, OtherTemplate, Pickle, adapter_folder

if TYPE_CHECKING:
    from halka.store import Card

EXAMPLES = examples(
    "halka adapters convert runs/support/adapter support-for-adapters --base smollm2-135m --to adapterhub",
    "halka adapters convert their-adapter ours --base ./bert --allow-pickle --no-head",
    "halka adapters convert org/adapter@v2 adapters/theirs --to peft",
)


def convert(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="an adapter's folder, of any known format; or its name on the hub")
    ],
    into: Annotated[Path, typer.Argument(metavar="INTO", help="the folder to write")],
    base: Annotated[
        str | None,
        typer.Option("--base", metavar="NAME", help="the base it is for; else the one its folder names"),
    ] = None,
    to: Annotated[str, typer.Option("--to", metavar="FORMAT", help="adapterhub, or peft: our own")] = "peft",
    no_head: Annotated[bool, typer.Option("--no-head", help="leave out the head that stands beside it")] = False,
    dtype: Dtype = "float32",
    device: Device = None,
    allow_other_base: OtherBase = False,
    allow_other_template: OtherTemplate = False,
    allow_pickle: Pickle = False,
    json: Json = False,
) -> None:
    """Write an adapter's folder as another tool's.

    The base says where the adapter's parts stand, and that it fits. What the other tool has no form for is refused by
    name. Its task, training and scores go along.
    """
    from halka.formats import format_named, format_of
    from halka.models import adapt
    from halka.models.loading import load_base
    from halka.store import load, read_card, read_config, save

    format_named(to)
    folder = adapter_folder(folder, "FOLDER", allow_pickle=allow_pickle)
    if into.resolve() == folder.resolve():
        raise ValueError(f"INTO: {into} is the adapter's own folder: name another")
    source = format_of(folder).NAME
    config, card = read_config(folder, allow_pickle=allow_pickle), read_card(folder)
    base = base or _base_of(config, card)
    say(f"loading {base} …")
    model = adapt(*load_base(base, dtype=dtype, device=device, **_made_for(folder, card, head=not no_head)))
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
    kept = {} if card is None else {"task": card.task, "training": card.training, "measurements": card.measurements}
    written = save(model, "converted", into, format=to, **kept)
    told = {"from": source, "to": to, "method": adapter.method.name, "parameters": adapter.count(), "folder": written}
    emit(told) if json else show(f"{adapter.method.name} of {source} written to {written} as {to}'s folder")


def _made_for(folder: Path, card: Card | None, *, head: bool) -> dict[str, Any]:
    """The kind of base and its labels, where the Card says them, or the head beside the adapter."""
    from halka.formats import format_of
    from halka.formats.adapterhub.heads import base_for
    from halka.store import read_json

    if card is not None:
        return {"kind": card.kind, "labels": card.labels or None}
    files = format_of(folder).FILES.head
    if not head or files is None or not (folder / files.config).is_file():
        return {}
    return base_for(read_json(folder / files.config))


def _base_of(config: dict[str, Any], card: Card | None) -> str:
    found = (card.base.get("name") if card else None) or config.get("base_model_name_or_path")
    if not isinstance(found, str) or not found:
        raise ValueError("FOLDER does not say which base it was made for: give --base NAME")
    return found
