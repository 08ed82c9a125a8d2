"""Documents as settings files name them: files, folders, and `.jsonl` files, whose rows are documents."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from halka.data.readers import whole_rows
from halka.rag.collection import Collection, Event
from halka.rag.roots import files_at, located
from halka.rag.texts import is_readable
from halka.util.errors import DataError


def listed(documents: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Return the texts of all rows by name, and the resolved paths of files and folders.

    Raises DataError for a row without "name" and "text", and for two rows of one name with different texts.
    """
    texts: dict[str, str] = {}
    for path in documents:
        for where, name, text in _read_rows(path) if _is_rows(path) else ():
            if texts.setdefault(name, text) != text:
                raise DataError(f"{where}: there is another document of the name {name!r}: give each its own")
    return texts, [str(located(path)) for path in documents if not _is_rows(path)]


def taken_in(
    collection: Collection, texts: Mapping[str, str], files: Sequence[str], leave_out: str | Path | None = None
) -> Iterator[Event]:
    """Add texts and files, and remove what an earlier call added and this one does not name.

    leave_out   a folder below `files` to leave out
    """
    roots = [root.path for root in collection.roots if root.path not in files]
    rows = [
        document.name
        for document in collection.documents()
        if document.name not in texts
        and (document.was_put or not any(Path(document.name).is_relative_to(path) for path in (*files, *roots)))
    ]
    if roots or rows:
        collection.remove([*roots, *rows])
    yield from collection.put(texts.items())
    yield from collection.add(files, leave_out=leave_out, removed_too=True)
    yield from (event for event in collection.refresh() if event.what == "removed")


def digest_of(documents: Sequence[str], leave_out: str | Path | None = None) -> str:
    """A hash of twelve hexadecimal digits over the documents' names and contents, not their location.

    leave_out   a folder below them to leave out
    """
    digest = hashlib.sha256()
    for path in documents:
        rows = ((name, text) for _, name, text in _read_rows(path)) if _is_rows(path) else None
        for name, content in rows or _files(located(path), leave_out):
            for part in (name, content):
                data = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
                digest.update(hashlib.sha256(data).digest())
    return digest.hexdigest()[:12]


def _files(path: Path, leave_out: str | Path | None) -> Iterator[tuple[str, bytes]]:
    """The names, relative to the path's parent, and contents of the files at a path."""
    out = None if leave_out is None else located(leave_out)
    for file in sorted(files_at(path)):
        if is_readable(file) and (out is None or not file.is_relative_to(out)):
            yield file.relative_to(path.parent).as_posix(), file.read_bytes()


def _is_rows(path: str) -> bool:
    """Whether a file's rows are the documents."""
    return path.endswith((".jsonl", ".jsonl.gz"))


def _read_rows(path: str) -> Iterator[tuple[str, str, str]]:
    """(place, name, text) of a file's rows. Raises DataError for a row without a name or text."""
    for row in whole_rows(path):
        name, text = row.fields.get("name"), row.fields.get("text")
        if not isinstance(name, str) or not isinstance(text, str):
            raise DataError(f'{row.where}: not a document: a row has "name" and "text"')
        yield row.where, name, text
