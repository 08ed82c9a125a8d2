"""Documents as they are named: files, folders, and rows of a `.jsonl` that are a document each."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from halka.data.readers import whole_rows
from halka.rag.collection import Collection, Event
from halka.rag.roots import files_at
from halka.rag.texts import is_readable
from halka.util.errors import HalkaError


def listed(documents: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """The rows among them, as texts by name, and the paths of files and folders as a collection has them.

    Raises ValueError for a row that is no document, and for one of the name of another with another text.
    """
    texts: dict[str, str] = {}
    for path in documents:
        for where, name, text in _read_rows(path) if _is_rows(path) else ():
            if texts.setdefault(name, text) != text:
                raise HalkaError(f"{where}: there is another document of the name {name!r}: give each its own")
    return texts, [str(_place(path)) for path in documents if not _is_rows(path)]


def taken_in(
    collection: Collection, texts: Mapping[str, str], files: Sequence[str], leave_out: str | Path | None = None
) -> Iterator[Event]:
    """Take in what is listed, and remove what is there from an earlier go and no longer is.

    leave_out   a folder below `files` that is none of the documents
    """
    roots = [root.path for root in collection.roots if root.path not in files]
    names = [each.name for each in collection.documents() if each.name not in texts]
    rows = [name for name in names if not any(Path(name).is_relative_to(each) for each in (*files, *roots))]
    if roots or rows:
        collection.remove([*roots, *rows])
    yield from collection.put(texts.items())
    yield from collection.add(files, leave_out=leave_out)
    yield from (event for event in collection.refresh() if event.what == "removed")


def digest_of(documents: Sequence[str], leave_out: str | Path | None = None) -> str:
    """Twelve letters that are the same for documents of the same names and contents, wherever they are.

    leave_out   a folder below them that is none of the documents
    """
    read = hashlib.sha256()
    for path in documents:
        rows = ((name, text) for _, name, text in _read_rows(path)) if _is_rows(path) else None
        for name, content in rows or _files(_place(path), leave_out):
            for each in (name, content):
                told = each.encode("utf-8", "surrogatepass") if isinstance(each, str) else each
                read.update(hashlib.sha256(told).digest())
    return read.hexdigest()[:12]


def _files(path: Path, leave_out: str | Path | None) -> Iterator[tuple[str, bytes]]:
    """Names, as seen from above the path, and contents."""
    out = None if leave_out is None else _place(leave_out)
    for file in sorted(files_at(path)):
        if is_readable(file) and (out is None or not file.is_relative_to(out)):
            yield file.relative_to(path.parent).as_posix(), file.read_bytes()


def _place(path: str | Path) -> Path:
    """A path without links and dots, as a collection has it."""
    return Path(path).expanduser().resolve()


def _is_rows(path: str) -> bool:
    """Whether a path is a file of rows, each a document."""
    return path.endswith((".jsonl", ".jsonl.gz"))


def _read_rows(path: str) -> Iterator[tuple[str, str, str]]:
    """(place, name, text) of a file's rows. Raises ValueError for a row that has not both."""
    for row in whole_rows(path):
        name, text = row.fields.get("name"), row.fields.get("text")
        if not isinstance(name, str) or not isinstance(text, str):
            raise HalkaError(f'{row.where}: not a document: a row has "name" and "text"')
        yield row.where, name, text
