"""Which adapter answers which row: by `--adapter`, `--store` and a row's own field "adapter"."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from halka.cli.command import existing_folder, say
from halka.data.examples import Example
from halka.data.readers import Row
from halka.util.errors import HalkaError, UnknownAdapterError
from halka.util.text import one_line

if TYPE_CHECKING:
    from halka.storage.adapter_folder import AdapterFolder
    from halka.storage.adapter_store import AdapterStore

BARE = "the bare base"
SHOWN = 200  # characters of a system message
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
    """Parse a size into bytes. Raises typer's BadParameter."""
    from halka.report.units import bytes_said

    try:
        return bytes_said(text)
    except HalkaError as error:
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
    """An example of a file whose rows name adapters; None: the adapter for rows that name none."""

    adapter: str | None = None


@dataclass(frozen=True)
class Adapters:
    """The adapters that a command may use, and those that --adapter names."""

    folders: Mapping[str, AdapterFolder]  # of --adapter, by the name before the = or the folder's own
    store: AdapterStore | None
    stored: Sequence[str]  # the names in the store
    named: Sequence[str]  # those that --adapter names, in order
    plain: Sequence[str]  # those of `named` without NAME=
    allow_pickle: bool  # weights may be a pickle
    opened: dict[str, AdapterFolder] = field(default_factory=dict)  # cache of the store's folders

    @property
    def usual(self) -> str | None:
        """The adapter for rows that name none."""
        return self.plain[0] if len(self.plain) == 1 else None

    @property
    def only(self) -> str | None:
        """The adapter that answers where one does; None: the base.

        Raises HalkaError for several, and for a store from which none is named.
        """
        if len(self.named) > 1:
            raise HalkaError(f"{len(self.named)} adapters were given, and one answers: name one")
        if self.store is not None and not self.named:
            raise HalkaError("--store: nothing names an adapter in it: add --adapter NAME")
        return self.named[0] if self.named else None

    def folder(self, name: str) -> AdapterFolder:
        """The folder of an adapter of --adapter, or of the store's as NAME or NAME@VERSION.

        Raises UnknownAdapterError for another name, DamagedFolderError for a folder that is not whole.
        """
        if name in self.folders:
            return self.folders[name]
        from halka.storage.adapter_store import name_and_version

        stored, version = name_and_version(name)
        if self.store is not None and stored in self.stored:
            if name not in self.opened:
                entry = self.store.get(stored, version)
                self.opened[name] = entry.open(allow_pickle=self.allow_pickle)
            return self.opened[name]
        names = [*self.folders, *self.stored]
        if not names:
            none = "and none was given" if self.store is None else f"and {self.store.folder} holds none"
            raise UnknownAdapterError(
                f"there is no adapter {name!r}, {none}: add --adapter {name}=FOLDER, or --store FOLDER"
            )
        near = difflib.get_close_matches(stored, names, n=3)
        listed = ", ".join(names[:10]) + (", …" if len(names) > 10 else "")
        hint = f"did you mean {' or '.join(near)}?" if near else f"those are {listed}"
        raise UnknownAdapterError(f"there is no adapter {name!r} among those given: {hint}")

    def pooled(self, name: str) -> bool:
        """Whether the name means the store's newest version, which an `AdapterPool` loads when it is used."""
        return name in self.stored and name not in self.folders


def given_adapters(options: Sequence[str] | None, store: Path | None, allow_pickle: bool = False) -> Adapters:
    """Parse the values of `--adapter`, which may be repeated, and `--store`.

    Raises HalkaError for a folder that does not exist or is not whole, and for a name that is given twice.
    """
    from halka.storage.adapter_store import AdapterStore

    opened = None if store is None else AdapterStore(existing_folder(store, "--store"))
    folders: dict[str, AdapterFolder] = {}
    named: list[str] = []
    plain: list[str] = []
    for text in options or ():
        name, equals, source = text.partition("=")
        if not equals or Path(text).exists():
            name, source = (text, "") if opened is not None else ("", text)
        elif not name or not source:
            raise HalkaError(f"--adapter: {text!r} is not NAME=FOLDER: give both, or the folder alone")
        folder = open_adapter(Path(source), allow_pickle=allow_pickle) if source else None
        if folder is not None and not name:
            name = folder.name
        if name == text or source == text:
            plain.append(name)
        if name in named:
            raise HalkaError(
                f"--adapter: two are named {name!r}: give them different names, as in NAME={source or 'FOLDER'}"
            )
        if folder is not None:
            folders[name] = folder
        named.append(name)
    adapters = Adapters(folders, opened, [] if opened is None else opened.names(), named, plain, allow_pickle)
    for name in named:
        _check(adapters, name, "--adapter")
    return adapters


def open_adapter(
    source: Path, flag: str = "--adapter", *, allow_pickle: bool = False, head: bool = True
) -> AdapterFolder:
    """Open the adapter of a folder, a run's folder or a name on the hub. Errors begin with the flag."""
    from halka.models.fetching.hub import adapter_parts
    from halka.storage.adapter_folder import AdapterFolder

    if adapter_parts(source) is None:
        existing_folder(source.expanduser(), flag)
    try:
        return AdapterFolder.open(source, allow_pickle=allow_pickle, head=head)
    except HalkaError as error:
        raise type(error)(f"{flag}: {error}") from None


def addressed(examples: Sequence[Example], rows: Sequence[Row]) -> list[Example]:
    """Attach to a file's examples the adapters that their rows name, if any row has the field "adapter".

    Raises HalkaError for a name that is no text.
    """
    if not any("adapter" in row.fields for row in rows):
        return list(examples)
    named = []
    for example, row in zip(examples, rows, strict=True):
        name = row.fields.get("adapter")
        if name is not None and not isinstance(name, str):
            raise HalkaError(f"{row.where}: the adapter is {name!r}: give its name as a text, or null")
        named.append(Addressed(example.messages, example.references, example.where, (name or "").strip() or None))
    return named


def route(examples: Sequence[Example], adapters: Adapters) -> tuple[list[Example], list[str | None]]:
    """Pair examples with adapters: the one that the row names or, where no row has the field, every --adapter.

    Raises HalkaError, naming the row, for an unknown adapter, and for a store from which nothing names an adapter.
    """
    if not any(isinstance(example, Addressed) for example in examples):
        if adapters.store is not None and not adapters.named:
            raise HalkaError('--store: nothing names an adapter in it: add --adapter NAME, or rows with "adapter"')
        everyone = adapters.named or (None,)
        return [example for example in examples for _ in everyone], [name for _ in examples for name in everyone]
    names = [(example.adapter if isinstance(example, Addressed) else None) or adapters.usual for example in examples]
    if None in names and len(adapters.plain) > 1:
        raise HalkaError(
            f"{examples[names.index(None)].where}: it names no adapter, and {' and '.join(adapters.plain)} were given: "
            'name one in its field "adapter", or give a single --adapter without NAME= for such rows'
        )
    checked = set()
    for example, name in zip(examples, names, strict=True):
        if name is not None and name not in checked:
            _check(adapters, name, example.where)
            checked.add(name)
    return list(examples), names


def note_system(adapters: Adapters, names: Iterable[str | None]) -> None:
    """Say which of these adapters, whose prompts have no system message, were trained with one."""
    from halka.report.units import shortened

    for name in dict.fromkeys(names):
        if name is not None and (system := adapters.folder(name).system):
            text = shortened(one_line(system), SHOWN)
            say(f"{name} was trained with the system message {text!r}, which the prompts lack: give --system")


def _check(adapters: Adapters, name: str, where: str) -> None:
    """Raises an error that begins with `where` for an adapter that does not exist, or is damaged."""
    try:
        adapters.folder(name)
    except HalkaError as error:
        raise type(error)(f"{where}: {error}") from None
