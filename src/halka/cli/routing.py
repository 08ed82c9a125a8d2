"""Which adapter answers which row: those that `--adapter` and `--store` give, and a row's own field "adapter"."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from halka.cli.command import existing_folder
from halka.data.examples import Example
from halka.data.readers import Row
from halka.util.errors import HalkaError

if TYPE_CHECKING:
    from halka.storage.adapter_store import AdapterStore

AdapterNames = Annotated[
    list[str] | None,
    typer.Option(
        "--adapter",
        metavar="[NAME=]FOLDER",
        help="an adapter's folder or its name on the hub, with --store its name there; may be repeated; the bare base "
        "if not given",
    ),
]
StoreFolder = Annotated[
    Path | None,
    typer.Option("--store", metavar="FOLDER", help="a store, whose adapters are named NAME or NAME@VERSION"),
]


def _size(text: str) -> int:
    """The bytes that a size stands for, as typer takes what an option says."""
    from halka.report.units import bytes_said

    try:
        return bytes_said(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


PoolSize = Annotated[
    int | None,
    typer.Option(
        "--pool",
        parser=_size,
        metavar="SIZE",
        help="memory that the store's adapters may take: 512MB, 2GB, or a number of MB [1GB]",
    ),
]


@dataclass(frozen=True)
class Addressed(Example):
    """An example of a file whose rows name adapters; one without is answered by the usual one."""

    adapter: str | None = None


@dataclass(frozen=True)
class Adapters:
    """What a command was given: folders by name, a store, and who was named to answer."""

    folders: Mapping[str, Path]
    store: AdapterStore | None
    stored: Sequence[str]
    named: Sequence[str]
    plain: Sequence[str]  # those of `named` that were given without a name of their own
    allow_pickle: bool  # weights may be a pickle

    @property
    def usual(self) -> str | None:
        """Who answers rows that name none."""
        return self.plain[0] if len(self.plain) == 1 else None

    def folder(self, name: str) -> Path:
        """Where that adapter is: given by hand, or in the store as NAME or NAME@VERSION. Raises ValueError if not."""
        if name in self.folders:
            return self.folders[name]
        stored, at, version = name.partition("@")
        if self.store is not None and stored in self.stored and (version.isdecimal() or not at):
            return self.store.get(stored, int(version) if at else None).folder
        known = [*self.folders, *self.stored]
        if not known:
            told = "and none was given" if self.store is None else f"and none at all in {self.store.folder}"
            raise HalkaError(f"there is no adapter {name!r}, {told}: add --adapter {name}=FOLDER, or --store FOLDER")
        near = difflib.get_close_matches(stored, known, n=3)
        there = ", ".join(known[:10]) + (", …" if len(known) > 10 else "")
        hint = f"did you mean {' or '.join(near)}?" if near else f"those are {there}"
        raise HalkaError(f"there is no adapter {name!r} among those given: {hint}")

    def pooled(self, name: str) -> bool:
        """Whether the store's newest version is meant, which an `AdapterPool` reads when it is used."""
        return name in self.stored and name not in self.folders


def given_adapters(given: Sequence[str] | None, store: Path | None, allow_pickle: bool = False) -> Adapters:
    """What `--adapter` and `--store` say. Raises ValueError for what is not there, and for a name given twice."""
    from halka.models.fetching.hub import adapter_name
    from halka.storage.adapter_store import AdapterStore

    opened = None if store is None else AdapterStore(existing_folder(store, "--store"))
    folders: dict[str, Path] = {}
    named, plain = [], []
    for text in given or ():
        name, named_so, folder = text.partition("=")
        if not named_so or Path(text).exists():
            name = text if opened is not None else adapter_name(text)
            folder = "" if opened is not None else text
            plain.append(name)
        elif not name or not folder:
            raise HalkaError(f"--adapter: {text!r} is not NAME=FOLDER: give both, or the folder alone")
        if name in named:
            raise HalkaError(
                f"--adapter: two are named {name!r}: name each its own way, as in NAME={folder or 'FOLDER'}"
            )
        if folder:
            folders[name] = adapter_folder(Path(folder), allow_pickle=allow_pickle)
        named.append(name)
    stored = [] if opened is None else opened.names()
    found = Adapters(folders, opened, stored, named, plain, allow_pickle)
    for name in named:
        _check(found, name, "--adapter")
    return found


def addressed(examples: Sequence[Example], rows: Sequence[Row]) -> list[Example]:
    """A file's examples with the adapters that their rows name, if its rows have that field.

    Raises ValueError for a name that is no text.
    """
    if not any("adapter" in row.fields for row in rows):
        return list(examples)
    found = []
    for each, row in zip(examples, rows, strict=True):
        name = row.fields.get("adapter")
        if name is not None and not isinstance(name, str):
            raise HalkaError(f"{row.where}: the adapter is {name!r}: give its name as a text, or null")
        found.append(Addressed(each.messages, each.references, each.where, (name or "").strip() or None))
    return found


def route(examples: Sequence[Example], adapters: Adapters) -> tuple[list[Example], list[str | None]]:
    """Examples and who answers each: whom its row names or, where rows have no such field, every adapter given.

    Raises ValueError for a name that is not given, by the row's place, and for a store that nothing names.
    """
    if not any(isinstance(each, Addressed) for each in examples):
        if adapters.store is not None and not adapters.named:
            raise HalkaError('--store: nothing names an adapter in it: add --adapter NAME, or rows with "adapter"')
        everyone = adapters.named or (None,)
        return [each for each in examples for _ in everyone], [name for _ in examples for name in everyone]
    names = [(each.adapter if isinstance(each, Addressed) else None) or adapters.usual for each in examples]
    if None in names and len(adapters.plain) > 1:
        raise HalkaError(
            f"{examples[names.index(None)].where}: it names no adapter, and {' and '.join(adapters.plain)} were given: "
            'name one in its field "adapter", or give a single one for those that name none'
        )
    checked = set()
    for each, name in zip(examples, names, strict=True):
        if name is not None and name not in checked:
            _check(adapters, name, each.where)
            checked.add(name)
    return list(examples), names


def _check(adapters: Adapters, name: str, where: str) -> None:
    """Raises ValueError that begins with the place for an adapter that is not there, or not whole."""
    from halka.storage.save_load import read_config

    try:
        read_config(adapters.folder(name), allow_pickle=adapters.allow_pickle)
    except ValueError as error:
        raise HalkaError(f"{where}: {error}") from None


def adapter_folder(folder: Path, given_as: str = "--adapter", *, allow_pickle: bool = False) -> Path:
    """The folder, here or on the hub; ValueError with the way out if it is a run's, which holds the adapter's."""
    from halka.models.fetching import hub

    if hub.is_adapter_name(folder):
        return hub.adapter_folder(folder, allow_pickle=allow_pickle)
    existing_folder(folder, given_as)
    if not (folder / "adapter_config.json").exists() and (folder / "adapter" / "adapter_config.json").exists():
        raise HalkaError(f"{given_as}: {folder} is a run's folder: its adapter is {folder / 'adapter'}")
    return folder
