"""Documents as they are named: files, folders, and rows of a `.jsonl` that are a document each."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from halka.data.readers import whole_rows
from halka.rag.collection import Collection, Event
from halka.rag.texts import is_readable


def listed(documents: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """The rows among them, as texts by name, and the paths of files and folders.

    Raises ValueError for a row that is no document.
    """
    texts = {name: text for path in documents if _is_rows(path) for name, text in _read_rows(path)}
    return texts, [str(Path(path).absolute()) for path in documents if not _is_rows(path)]


def taken_in(collection: Collection, texts: Mapping[str, str], files: Sequence[str]) -> Iterator[Event]:
    """Take in what is listed, and remove what is there from an earlier go and no longer is."""
    roots = [root.path for root in collection.roots if root.path not in files]
    names = [each.name for each in collection.documents() if each.name not in texts]
    rows = [name for name in names if not any(Path(name).is_relative_to(each) for each in (*files, *roots))]
    if roots or rows:
        collection.remove([*roots, *rows])
    yield from collection.put(texts.items())
    yield from collection.add(files)
    yield from (event for event in collection.refresh() if event.what == "removed")


def digest_of(documents: Sequence[str]) -> str:
    """Twelve letters that are the same for documents of the same names and contents, wherever they are."""
    read = hashlib.sha256()
    for path in documents:
        parts = _read_rows(path) if _is_rows(path) else _files(Path(path))
        for name, content in parts:
            for each in (name, content):
                told = each.encode("utf-8", "surrogatepass") if isinstance(each, str) else each
                read.update(hashlib.sha256(told).digest())
    return read.hexdigest()[:12]


def _files(path: Path) -> Iterator[tuple[str, bytes]]:
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        name = file.relative_to(path.parent)
        if file.is_file() and is_readable(file) and not any(each.startswith(".") for each in name.parts[1:]):
            yield name.as_posix(), file.read_bytes()


def _is_rows(path: str) -> bool:
    """Whether a path is a file of rows, each a document."""
    return path.endswith((".jsonl", ".jsonl.gz"))


def _read_rows(path: str) -> Iterator[tuple[str, str]]:
    """(name, text) of a file's rows. Raises ValueError for a row that has not both."""
    for row in whole_rows(path):
        name, text = row.fields.get("name"), row.fields.get("text")
        if not isinstance(name, str) or not isinstance(text, str):
            raise ValueError(f'{row.where}: not a document: a row has "name" and "text"')
        yield name, text
