"""`halka base`: the models that adapters are trained on."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from halka.cli.command import Command, Json, emit, examples, group, readable_text, say, show
from halka.util.errors import HalkaError
from halka.util.text import columns

app = group(
    "Base models: pull, list and show them, change a chat template.",
    "halka base list",
    "halka base pull smollm2-135m",
)


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


@app.command(
    cls=Command,
    epilog=examples(
        "halka base template smollm2-135m bases/turns --file turns.jinja",
        "halka base template Qwen/Qwen3-0.6B bases/no-thoughts --set enable_thinking=false",
    ),
)
def template(
    base: Annotated[str, typer.Argument(metavar="NAME", help="short name, folder or hub name of a base")],
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="the folder to make, a base like any other")],
    file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="the template, in Jinja; else the base's own")
    ] = None,
    values: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="what the template reads; may be repeated")
    ] = None,
    json: Json = False,
) -> None:
    """Give a base another chat template, in a folder of its own.

    Its weights are links to the base's, which stay where they are. Training, scores, the engine and the server all
    read the template of the base that they are given, and an adapter knows the one that it was trained with.
    """
    from halka.data.chat import settable, with_values
    from halka.data.examples import Example
    from halka.data.locating import PROBE
    from halka.data.tokens import UNCLOSED, encode, unclosed
    from halka.models.loading import read_tokenizer, resolve
    from halka.models.own_template import check_new, with_chat_template

    chosen = dict(map(_value, values or ()))
    if file is None and not chosen:
        raise HalkaError("this would be the base's own template: give another by --file, or what it reads by --set")
    text = None if file is None else readable_text(file, "--file").removeprefix("\ufeff")
    check_new(folder)
    origin = resolve(base, fetch=True)
    tokenizer = read_tokenizer(origin, base)
    own = tokenizer.chat_template if text is None else text
    if not isinstance(own, str):
        raise HalkaError(f"{base} has {'several chat templates' if own else 'no chat template'}: give one by --file")
    tokenizer.chat_template = own
    for name in sorted(chosen.keys() - settable(tokenizer)):
        raise HalkaError(
            f"--set: {name!r} is nothing that the chat template takes: it does not read it, or sets it itself"
        )
    tokenizer.chat_template = with_values(own, chosen)
    tokens = encode(Example(PROBE), tokenizer)
    if unclosed([tokens], tokenizer):
        say(f"warning: answers {UNCLOSED} (end them with {{{{ eos_token }}}})")
    with_chat_template(origin, folder, tokenizer.chat_template)
    if json:
        emit({"base": base, "path": folder})
    else:
        show(f"{folder} is {base} with this chat template")
        say(f"Next: halka train --base {folder} --data train.jsonl -o runs/mine")


def _value(text: str) -> tuple[str, str | int | bool]:
    """A name and its value of a text such as `enable_thinking=false`."""
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise HalkaError(f"--set: {text!r} is not NAME=VALUE, such as enable_thinking=false")
    if value.lower() in ("true", "false"):
        return name, value.lower() == "true"
    return name, int(value) if re.fullmatch(r"-?(0|[1-9][0-9]{0,17})", value) else value
