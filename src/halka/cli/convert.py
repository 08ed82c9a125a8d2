"""`halka adapters convert`: write an adapter's folder in another tool's format, with the base that it is for."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

import typer

from halka.cli.adapter_names import open_adapter
from halka.cli.command import Json, emit, examples, say, show, show_warnings
from halka.cli.opening import Device, Dtype, OtherBase, OtherTemplate, Pickle, load_for
from halka.util.errors import HalkaError
from halka.util.files import contents

EXAMPLES = examples(
    "halka adapters convert runs/support/adapter support-for-adapters --base smollm2-135m --to adapterhub",
    "halka adapters convert their-adapter ours --base ./bert --allow-pickle --no-head",
    "halka adapters convert peft-classifier ours --base ./bert --labels good,bad",
    "halka adapters convert org/adapter@v2 adapters/theirs --to peft",
)
IN_PEFT = {
    "PREFIX_TUNING": (
        "note: PeftModel.generate of peft 0.21.2 ignores prefixes with transformers 5.24, whoever wrote them: generate "
        "with Halka, or use peft's forward pass"
    ),
    "PROMPT_TUNING": (
        "note: PeftModel.generate of peft 0.21.2 repeats prompts before every token with transformers 5.24, whoever "
        "wrote them: generate with Halka, or with use_cache=False"
    ),
}
ONLY_HALKA = "note: peft has no form for this adapter: only Halka reads the folder"


def convert(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="an adapter's folder, of any known format; or its name on the hub")
    ],
    into: Annotated[Path, typer.Argument(metavar="INTO", help="the folder to write")],
    base: Annotated[
        str | None,
        typer.Option("--base", metavar="NAME", help="the base it is for; else the one its folder names"),
    ] = None,
    kind: Annotated[
        str | None,
        typer.Option(
            metavar="KIND",
            help="of base that it is for: causal-lm, sequence-classification, …; else as its folder says",
        ),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(metavar="NAME,NAME,…", help="the labels of its head, in order; else as its folder says"),
    ] = None,
    to: Annotated[
        Literal["peft", "adapterhub"], typer.Option("--to", metavar="FORMAT", help="peft (Halka's own) or adapterhub")
    ] = "peft",
    no_head: Annotated[bool, typer.Option("--no-head", help="leave out the head that was saved beside it")] = False,
    dtype: Dtype = "float32",
    device: Device = None,
    allow_other_base: OtherBase = False,
    allow_other_template: OtherTemplate = False,
    allow_pickle: Pickle = False,
    json: Json = False,
) -> None:
    """Write an adapter's folder in another tool's format.

    The base shows which modules the adapter acts on, and that it fits. An adapter that AdapterHub's format cannot hold
    is an error that names the reason; one that peft's cannot is written for Halka alone, which a note says. Its task,
    training and scores are copied.
    """
    from halka.storage.formats import peft
    from halka.storage.save_load import load, save

    source = open_adapter(folder, "FOLDER", allow_pickle=allow_pickle, head=not no_head)
    if into.resolve() == source.path.resolve():
        raise HalkaError(f"INTO: {into} is the adapter's own folder: name another")
    if into.is_file():
        raise HalkaError(f"INTO: {into} is a file: name a new folder")
    if into.is_dir() and (held := contents(into)):
        raise HalkaError(f"INTO: {into} exists and holds {held[0]}: name a new folder")
    card = source.card
    if card is not None and (kind or labels):
        raise HalkaError(
            f"--kind and --labels are for a folder without a Card, and this one has a Card of a {card.kind}"
        )
    name = base or source.base_name
    if name is None:
        raise HalkaError("FOLDER does not say which base it was trained on: give --base NAME")
    if labels:
        head_labels = tuple(label.strip() for label in labels.split(","))
    else:
        head_labels = source.labels if kind in (None, source.kind) else ()
    quantize = None if card is None else card.base.get("quantize")  # which the new Card says, too
    model = load_for(name, kind or source.kind, head_labels, dtype=dtype, device=device, quantize=quantize)
    with show_warnings():
        adapter = load(
            model,
            source,
            name="converted",
            allow_other_base=allow_other_base,
            allow_other_template=allow_other_template,
        )
    written = save(model, "converted", into, format=to, **source.history)
    note_peft([written])
    if to == "peft" and not peft.holds(adapter, model.targets):
        say(ONLY_HALKA)
    result = {
        "from": source.format.NAME,
        "to": to,
        "method": adapter.method.name,
        "parameters": adapter.count(),
        "folder": written,
    }
    if json:
        emit(result)
    else:
        show(f"{adapter.method.name} of {source.format.NAME} written to {written} as {to}'s folder")


def note_peft(folders: Iterable[Path]) -> None:
    """Print once what peft's `generate` makes of prefixes and of prompts, if one of these folders holds one."""
    from halka.storage.adapter_folder import AdapterFolder

    kinds = {AdapterFolder.open(folder).config.get("peft_type") for folder in folders}
    for kind, note in IN_PEFT.items():
        if kind in kinds:
            say(note)
