"""`halka adapters`: show an adapter's folder, and keep many in a store, without loading a base."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from halka.cli import convert
from halka.cli.adapter_names import open_adapter
from halka.cli.command import Command, Failed, Json, emit, examples, existing_folder, group, say, show
from halka.util.errors import HalkaError
from halka.util.text import columns, plural

if TYPE_CHECKING:
    from halka.storage.adapter_folder import AdapterFolder
    from halka.storage.adapter_store import AdapterStore

app = group(
    "Adapter folders: look into one, or keep many in a store.",
    "halka adapters show runs/support/adapter",
    "halka adapters add runs/support/adapter support --store adapters",
    "halka adapters list --store adapters --task support",
)

app.command("convert", cls=Command, epilog=convert.EXAMPLES)(convert.convert)

Store = Annotated[Path, typer.Option("--store", metavar="FOLDER", envvar="HALKA_STORE", help="the store's folder")]
Name = Annotated[str, typer.Argument(metavar="NAME", help="an adapter's name in the store")]
Version = Annotated[int | None, typer.Option("--version", metavar="N", min=1, help="one version of it")]


@app.command(
    "show",
    cls=Command,
    epilog=examples("halka adapters show runs/support/adapter", "halka adapters show support --store adapters"),
)
def show_(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER|NAME", help="its folder, Halka's or peft's; a name in --store")
    ],
    store: Annotated[Path | None, typer.Option(metavar="FOLDER", help="the store that has it")] = None,
    version: Version = None,
    json: Json = False,
) -> None:
    """Show an adapter: base, method, task, training, scores, shapes."""
    usual = os.environ.get("HALKA_STORE")
    if store is None and usual and folder.name == str(folder) and not folder.exists():
        store = Path(usual)
    if store is not None:
        adapter = _opened(store).get(str(folder), version).open()
    elif version is not None:
        raise HalkaError("--version is of an adapter in a store: give --store FOLDER with it")
    else:
        adapter = open_adapter(folder, "FOLDER")
    if json:
        emit(describe(adapter))
    else:
        _show(describe(adapter))


@app.command(
    "readme",
    cls=Command,
    epilog=examples("halka adapters readme runs/support/adapter --name ORG/support"),
)
def readme(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="an adapter's folder, or a run's")],
    name: Annotated[str | None, typer.Option(metavar="ORG/NAME", help="what the hub is to call it")] = None,
    force: Annotated[bool, typer.Option("--force", help="write over a README.md that is there")] = False,
    json: Json = False,
) -> None:
    """Write an adapter's model card, its README.md, as the hub shows it.

    A licence is yours to add.
    """
    from halka.report.model_card import model_card
    from halka.storage.save_load import README
    from halka.util.files import write_text

    adapter = open_adapter(existing_folder(folder, "FOLDER"), "FOLDER")
    if name is not None and not re.fullmatch(r"[\w.-]+/[\w.-]+", name, re.ASCII):
        raise HalkaError(f"--name {name} is no name of the hub's: write ORG/NAME")
    file = adapter.path / README
    if file.exists() and not force:
        raise HalkaError(f"{file} is there: pass --force to write over it")
    write_text(file, model_card(adapter, name or f"ORG/{adapter.name}"))
    emit({"file": file}) if json else show(f"{file}: add a licence, then upload the folder")


@app.command(
    "list",
    cls=Command,
    epilog=examples("halka adapters list --store adapters", "halka adapters list --store adapters --tag live --json"),
)
def list_(
    store: Store,
    task: Annotated[str | None, typer.Option(metavar="NAME", help="those of this task")] = None,
    tag: Annotated[str | None, typer.Option(metavar="TAG", help="those with this tag")] = None,
    method: Annotated[str | None, typer.Option(metavar="NAME", help="those of this method")] = None,
    json: Json = False,
) -> None:
    """List a store's adapters, the newest version of each."""
    from halka.report.units import count, size

    opened = _opened(store)
    whole = opened.list(task=task, tag=tag, method=method, on_damage=lambda name, error: say(f"{name}: {error}"))
    rows = [
        {
            "name": stored.name,
            "version": stored.version,
            "versions": len(opened.versions(stored.name)),
            "method": stored.method,
            "task": stored.task,
            "tags": stored.tags,
            "parameters": stored.card.parameters if stored.card else None,
            "bytes": sum(file.stat().st_size for file in stored.folder.iterdir()),
            "folder": stored.folder,
        }
        for stored in whole
    ]
    if json:
        return emit(rows)
    table = columns("name", "version", "method", "task", "tags", "parameters", "size", right=("parameters", "size"))
    for row in rows:
        parameters = "–" if row["parameters"] is None else count(row["parameters"])
        texts = (row["method"] or "–", row["task"] or "–", ", ".join(row["tags"]) or "–")
        table.add_row(row["name"], str(row["version"]), *texts, parameters, size(row["bytes"]))
    show(table, f"{plural(len(rows), 'adapter')} in {store}")


@app.command("add", cls=Command, epilog=examples("halka adapters add runs/support/adapter support --store adapters"))
def add(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="an adapter's folder, a run's, or a name on the hub")
    ],
    store: Store,
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="its name in the store; its folder's or run's if not given")
    ] = None,
    json: Json = False,
) -> None:
    """Copy an adapter into a store, as the next version of a name."""
    from halka.storage.adapter_store import AdapterStore

    stored = AdapterStore(store).add(open_adapter(folder, "FOLDER"), name)
    result = {"name": stored.name, "version": stored.version, "folder": stored.folder}
    emit(result) if json else show(f"{stored.name}, version {stored.version}, in {stored.folder}")


@app.command(
    "tag",
    cls=Command,
    epilog=examples(
        "halka adapters tag support live eu --store adapters",
        "halka adapters tag support eu --remove --store adapters",
    ),
)
def tag_(
    name: Name,
    tags: Annotated[list[str], typer.Argument(metavar="TAG...", help="words to find it by")],
    store: Store,
    remove: Annotated[bool, typer.Option("--remove", help="take them away")] = False,
    json: Json = False,
) -> None:
    """Give an adapter tags, or take them away."""
    now = _opened(store).tag(name, tags, remove=remove)
    emit({"name": name, "tags": now}) if json else show(f"{name}: {', '.join(now) or 'no tags'}")


@app.command("remove", cls=Command, epilog=examples("halka adapters remove support --version 2 --store adapters"))
def remove(name: Name, store: Store, version: Version = None, json: Json = False) -> None:
    """Remove an adapter from a store, or one version of it."""
    from halka.storage.adapter_store import name_and_version

    opened = _opened(store)
    if version is None:
        name, version = name_and_version(name)
    opened.remove(name, version)
    left = opened.versions(name) if name in opened else []
    outcome = f"versions left: {', '.join(map(str, left))}" if left else "removed"
    emit({"name": name, "versions": left}) if json else show(f"{name}: {outcome}")


@app.command("verify", cls=Command, epilog=examples("halka adapters verify --store adapters"))
def verify(store: Store, json: Json = False) -> None:
    """Read every file of a store, and name what is damaged.

    What killed writers left is removed.
    """
    opened = _opened(store)
    cleaned = opened.clean()
    results = list(opened.verify())
    damaged = [{"adapter": str(stored), "reason": reason} for stored, reason in results if reason]
    if json:
        emit({"versions": len(results), "damaged": damaged, "cleaned": cleaned})
    else:
        show(*(f"{row['adapter']}: {row['reason']}" for row in damaged))
        show(f"{plural(len(results), 'version')} read, {len(damaged)} damaged, {plural(cleaned, 'leftover')} removed")
    if damaged:
        raise Failed(f"{len(damaged)} of {len(results)} versions are damaged: remove them, or add them again")


def _opened(folder: Path) -> AdapterStore:
    from halka.storage.adapter_store import AdapterStore

    return AdapterStore(existing_folder(folder, "--store"))


def describe(adapter: AdapterFolder) -> dict[str, Any]:
    """An adapter's configuration and Card, its files, and its tensors from the header of its weights.

    Raises DamagedFolderError for weights that are damaged.
    """
    card, config, tensors = adapter.card, adapter.config, _tensors(adapter)
    return {
        "folder": adapter.path,
        "base": config.get("base_model_name_or_path") if card is None else card.base,
        "method": config.get("peft_type") if card is None else card.method,
        "parameters": sum(group["parameters"] for group in tensors),
        "bytes": adapter.size,
        "files": adapter.files,
        "tensors": tensors,
        "card": card,
        "config": config,
    }


def _tensors(adapter: AdapterFolder) -> list[dict[str, Any]]:
    """The numbers of tensors by last name, shape and dtype, from the file's header."""
    import math
    from collections import Counter

    from halka.storage.tensors import shapes

    kinds = Counter((_last_name(key), shape, dtype) for key, (shape, dtype) in shapes(adapter.weights).items())
    return [
        {"name": name, "shape": list(shape), "dtype": dtype, "count": count, "parameters": math.prod(shape) * count}
        for (name, shape, dtype), count in sorted(kinds.items())
    ]


def _last_name(key: str) -> str:
    """`lora_A` of `base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight`."""
    return key.removesuffix(".weight").rpartition(".")[2]


def _show(about: dict[str, Any]) -> None:
    from halka.report.model_card import TRAINING
    from halka.report.units import count, size
    from halka.storage.formats import json_object

    card, config = about["card"], about["config"]
    table = columns("", "")
    table.show_header = False
    if card is None:
        options = {key: value for key, value in config.items() if value not in (None, False, [], {}, "")}
        lines = {"base": config.get("base_model_name_or_path") or "not named", **options}
        lines.pop("base_model_name_or_path", None)
    else:
        base = card.base
        form = f", quantised to {base['quantize']}" if base.get("quantize") else ""
        lines = {
            "base": f"{base.get('name') or 'unnamed'} ({_pairs(json_object(base.get('fingerprint')) or {})}){form}",
            "method": f"{card.method['name']} ({_pairs(card.method['fields'])})",
            "task": card.task,
            "chat template": card.chat_template,
            "training": _pairs({key: card.training.get(key) for key in TRAINING}),
            "system message": card.training.get("system") or "",
            "scores": _pairs(card.measurements),
            "made": f"{card.created} with {_pairs(card.versions)}",
        }
    lines |= {"parameters": count(about["parameters"]), "size": size(about["bytes"])}
    for key, value in lines.items():
        table.add_row(key, _text(value) or "–")
    shapes = columns("tensors", "count", "shape", "type", right=("count",))
    for kind in about["tensors"]:
        shapes.add_row(kind["name"], str(kind["count"]), " × ".join(map(str, kind["shape"])), kind["dtype"])
    show(table, "", shapes)
    if card is None:
        show("", "No Card (halka.json): another tool wrote this folder.")


def _pairs(values: Any) -> str:
    return ", ".join(f"{key} {_text(value)}" for key, value in values.items() if value not in (None, []))


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)
