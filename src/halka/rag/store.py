"""The interface of stores of passages, and the scope that decides who may see which passages.

Every query takes a `Scope`, and passages that the reader may not see are neither returned nor counted. One exception:
LanceDB's BM25 weighs a word by how rare it is among all passages, so that hidden ones can change a score. PostgreSQL
and Qdrant count within the scope.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import regex

from halka.rag.passages import Passage
from halka.util.errors import HalkaError

EVERYONE = "*"
PUT = "put:"
BM25_K1, BM25_B = 1.2, 0.75  # the defaults of Lucene and LanceDB
INDEX_FROM = 100_000  # passages from which vectors have an index: exact searches take about a tenth of a second there
NARROW = 20_000  # passages of a scope that are compared one by one though there is an index
READER = regex.compile(r"\w[\w.@:/+-]{0,199}")  # `re` takes the vowel signs of Bengali or Hindi for no letters


@dataclass(frozen=True)
class Scope:
    """The passages that a query may return.

    readers   who asks: a name and the names of its groups; passages for everyone are always included
    under     only the document of this name, and those below it, whose names continue with / after it
    tags      only documents with all of these tags

    Raises HalkaError for a text that cannot be a name.
    """

    readers: frozenset[str] = frozenset()
    under: str = ""
    tags: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        object.__setattr__(self, "readers", frozenset({EVERYONE, *named(self.readers)}))
        object.__setattr__(self, "tags", frozenset(named(self.tags)))

    def holds(self, document: Document) -> bool:
        """Whether the document is in the scope: the reference for the stores' filters."""
        return (
            not self.readers.isdisjoint(document.readers)
            and (not self.under or within(document.name, self.under))
            and self.tags.issubset(document.tags)
        )


def within(name: str, path: str) -> bool:
    """Whether a document's name is this path or below it."""
    return name == path.rstrip("/") or name.startswith(below(path))


def below(path: str) -> str:
    """The beginning of all names below a path."""
    return path.rstrip("/") + "/"


def named(names: Iterable[str]) -> list[str]:
    """The names of readers or tags, checked. Raises HalkaError for what cannot be a name, and for a single text."""
    if isinstance(names, str):
        raise HalkaError(f"{names!r} is one name: give a list of names")
    names = [*names]
    for name in names:
        if name != EVERYONE and (not isinstance(name, str) or not READER.fullmatch(name)):
            raise HalkaError(f"{name!r} cannot name a reader or a tag: use letters, digits and . @ : / + - _")
    return names


@dataclass(frozen=True)
class Document:
    """A document of a collection.

    name      its path, or the name that its text was put under
    digest    the hash of its bytes: a document with the same digest is not read again; behind `PUT` if it was put
              under a path, whose file it is not
    readers   who may read it: names, groups, or everyone
    passages  the number of passages that it was cut into
    """

    name: str
    digest: str
    readers: tuple[str, ...] = (EVERYONE,)
    tags: tuple[str, ...] = ()
    added: str = ""
    passages: int = 0

    @property
    def was_put(self) -> bool:
        """Whether it was put under a path: a path that was added above it does not set its readers, nor remove it."""
        return self.digest.startswith(PUT)


@dataclass(frozen=True)
class Found:
    """A passage with its vector (width,) and its score: a cosine or BM25."""

    passage: Passage
    score: float
    vector: np.ndarray = field(repr=False, compare=False)


@dataclass(frozen=True)
class Entry:
    """A document with its passages and their vectors (N, width), to put into a store."""

    document: Document
    passages: tuple[Passage, ...]
    vectors: np.ndarray

    def read_by(self, readers: tuple[str, ...], tags: tuple[str, ...]) -> Entry:
        """The entry with other readers and tags."""
        passages = tuple(replace(passage, readers=readers) for passage in self.passages)
        return replace(self, document=replace(self.document, readers=readers, tags=tags), passages=passages)


def last_of_each(entries: Iterable[Entry]) -> list[Entry]:
    """The last entry of each document."""
    return [*{entry.document.name: entry for entry in entries}.values()]


class VectorStore(Protocol):
    """Passages with their vectors and words. Every change happens whole or not at all, also in a crash.

    In Qdrant this holds for one document, not for several in one call (`stores/qdrant.py`). Stores of a server raise
    StoreAwayError where it does not answer.
    """

    def put(self, entries: Sequence[Entry]) -> None:
        """Add or replace documents by name, in one step; of two with one name, the last counts."""
        ...

    def set_access(self, names: Sequence[str], readers: tuple[str, ...], tags: tuple[str, ...]) -> None:
        """Change the readers and tags of documents, in one step."""
        ...

    def remove(self, names: Sequence[str]) -> int:
        """Remove documents with their passages; returns the number of passages."""
        ...

    def documents(self, scope: Scope | None = None) -> list[Document]:
        """The documents in the scope, sorted by name; without a scope all, which only the store's owner may see."""
        ...

    def nearest(self, vector: np.ndarray, count: int, scope: Scope) -> list[Found]:
        """The `count` passages with the highest cosine, best first."""
        ...

    def matching(self, words: str, count: int, scope: Scope) -> list[Found]:
        """The `count` passages with the highest BM25 for these words, best first; each has at least one of them."""
        ...

    def passages(self, document: str, numbers: Iterable[int], scope: Scope) -> list[Passage]:
        """The passages of these numbers of one document, in order."""
        ...

    def tidy(self) -> None:
        """Update the indexes, and free the space of removed passages."""
        ...

    def drop(self) -> None:
        """Remove everything; the store cannot be used afterwards."""
        ...
