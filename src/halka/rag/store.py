"""What a collection keeps its passages in, and who may see what of them. `lance.py` is the one that needs no server.

Whoever asks is part of every question: a store's methods take a `Scope`, there is no way to ask without one, and what
its caller may not read is not found, told or counted. One trace is left in LanceDB: BM25 weighs a word by how rare it
is, and there it is counted over all passages, so that what is hidden can move a score. PostgreSQL and Qdrant count
within the scope.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from halka.rag.passages import Passage
from halka.util.errors import HalkaError

EVERYONE = "*"
BM25_K1, BM25_B = 1.2, 0.75  # as Lucene and LanceDB have them
READER = re.compile(r"[\w][\w.@:/+-]{0,199}")


@dataclass(frozen=True)
class Scope:
    """Which passages a question is about.

    readers   who asks: a name, and the groups that it belongs to; what everyone may read is always in
    under     only the document of this name, and those whose name goes on with a / after it
    tags      only documents that have all of these
    """

    readers: frozenset[str] = frozenset()
    under: str = ""
    tags: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        object.__setattr__(self, "readers", frozenset({EVERYONE, *named(self.readers)}))
        object.__setattr__(self, "tags", frozenset(named(self.tags)))

    def holds(self, document: Document) -> bool:
        """Whether the document is one of these: the slow twin of what stores ask their tables."""
        return (
            not self.readers.isdisjoint(document.readers)
            and (not self.under or within(document.name, self.under))
            and self.tags.issubset(document.tags)
        )


def within(name: str, path: str) -> bool:
    """Whether a document's name is that path or stands below it."""
    return name == path.rstrip("/") or name.startswith(below(path))


def below(path: str) -> str:
    """What all names below a path begin with."""
    return path.rstrip("/") + "/"


def named(names: Iterable[str]) -> list[str]:
    """Names of readers or tags, checked. Raises ValueError for what is none, and for a text in place of several."""
    if isinstance(names, str):
        raise HalkaError(f"{names!r} is one name: give a list of names")
    names = [*names]
    for each in names:
        if each != EVERYONE and (not isinstance(each, str) or not READER.fullmatch(each)):
            raise HalkaError(f"{each!r} cannot name a reader or a tag: use letters, digits and . @ : / + - _")
    return names


@dataclass(frozen=True)
class Document:
    """A document of a collection.

    name      its path, or what it was called when its text was put in
    digest    of what was read; equal contents need not be read again
    readers   who may read it: names, groups, or everyone
    passages  how many it was cut into
    """

    name: str
    digest: str
    readers: tuple[str, ...] = (EVERYONE,)
    tags: tuple[str, ...] = ()
    added: str = ""
    passages: int = 0


@dataclass(frozen=True)
class Found:
    """A passage with its vector (width,), and how well it matches: its cosine, or its BM25."""

    passage: Passage
    score: float
    vector: np.ndarray = field(repr=False, compare=False)


@dataclass(frozen=True)
class Entry:
    """A document with its passages and their vectors (N, width), as it is put into a store."""

    document: Document
    passages: tuple[Passage, ...]
    vectors: np.ndarray

    def read_by(self, readers: tuple[str, ...], tags: tuple[str, ...]) -> Entry:
        """The same, read by others."""
        passages = tuple(replace(each, readers=readers) for each in self.passages)
        return replace(self, document=replace(self.document, readers=readers, tags=tags), passages=passages)


def last_of_each(entries: Iterable[Entry]) -> list[Entry]:
    """Entries without those whose document comes again later."""
    return [*{entry.document.name: entry for entry in entries}.values()]


class VectorStore(Protocol):
    """Passages with their vectors and words. Every change is whole or not there, also after a crash.

    In Qdrant this holds for each document, not for several that are put together (`qdrant.py`).
    """

    def put(self, entries: Sequence[Entry]) -> None:
        """Let these documents be what they are here, in one step; older passages of theirs are gone.

        Of those that have the same name, the last counts.
        """
        ...

    def set_access(self, names: Sequence[str], readers: tuple[str, ...], tags: tuple[str, ...]) -> None:
        """Let documents be read by these and have these tags, in one step; the rest of them stays."""
        ...

    def remove(self, names: Sequence[str]) -> int:
        """Remove documents with all that was kept of them; how many passages those were."""
        ...

    def documents(self, scope: Scope | None = None) -> list[Document]:
        """The documents that the scope holds, by name; without one all, which is for whoever keeps the store."""
        ...

    def nearest(self, vector: np.ndarray, count: int, scope: Scope) -> list[Found]:
        """The passages of the highest cosine, best first."""
        ...

    def matching(self, words: str, count: int, scope: Scope) -> list[Found]:
        """The passages of the highest BM25 for these words, best first; those that have none of them are left out."""
        ...

    def passages(self, document: str, numbers: Iterable[int], scope: Scope) -> list[Passage]:
        """Some passages of one document, in order."""
        ...

    def tidy(self) -> None:
        """Bring indexes up to date and forget what was removed."""
        ...

    def drop(self) -> None:
        """Remove all that is kept here; nothing can be asked of it or put into it afterwards."""
        ...
