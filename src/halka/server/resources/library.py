"""`Library`: opens collections with embedders that are loaded once, and says what documents are called.

Searches run one at a time, and so does taking documents in, beside each other: the engine has the processor's cores.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path, PurePath
from typing import TypeVar

from anyio import CapacityLimiter, to_thread

from halka.rag.collection import Collection
from halka.rag.collection_folder import CollectionFolder, collection_names
from halka.rag.embed import DEFAULT, Embedder, SentenceEmbedder
from halka.rag.roots import Root
from halka.rag.store import within
from halka.server.errors import ApiError
from halka.util.files import is_portable_name

T = TypeVar("T")


class Library:
    """The embedders of a server, and the collections that they open.

    embedder  of new collections; loaded when it is first needed if not given
    """

    def __init__(self, embedder: Embedder | None = None):
        self._embedders = {} if embedder is None else {embedder.name: embedder}
        self.name = DEFAULT if embedder is None else embedder.name
        self._loading = threading.Lock()
        self._searching, self._reading = CapacityLimiter(1), CapacityLimiter(1)

    async def search(self, function: Callable[[], T]) -> T:
        """What a function returns that embeds little, in its turn."""
        return await to_thread.run_sync(function, limiter=self._searching)

    async def read(self, function: Callable[[], T]) -> T:
        """What a function returns that takes documents in, in its turn."""
        return await to_thread.run_sync(function, limiter=self._reading)

    async def alone(self, function: Callable[[], T]) -> T:
        """What a function returns that removes a collection, when nobody reads one or takes documents in.

        Searches go on while documents are waited for.
        """
        async with self._reading, self._searching:
            return await to_thread.run_sync(function)

    @property
    def available(self) -> bool:
        """Whether what embeds texts is installed: the extra `rag`."""
        return bool(self._embedders) or find_spec("sentence_transformers") is not None

    def embedder(self, name: str | None = None) -> Embedder:
        """The embedder of that name, by default that of new collections."""
        name = self.name if name is None else name
        with self._loading:
            if name not in self._embedders:
                self._embedders[name] = SentenceEmbedder(name)
            return self._embedders[name]

    def open(self, collections: Path, name: str) -> Collection:
        """The collection of that name in a tenant's folder of them. Raises ApiError if there is none."""
        folder = CollectionFolder(collections / name)
        if not is_portable_name(name) or folder.path.is_symlink() or not folder.exists:
            raise ApiError(
                404,
                f"there is no collection {name[:100]!r}: GET /v1/collections lists those there are",
                param="collection",
                code="collection_not_found",
            )
        return Collection(folder.path, self.embedder(folder.settings()["embedder"]))

    def create(self, collections: Path, name: str) -> Collection:
        """A new collection. Raises ApiError if there is one of that name."""
        if name in names_of(collections):
            raise ApiError(409, f"there is a collection {name!r} already", param="name", code="collection_exists")
        return Collection(collections / name, self.embedder())


def names_of(collections: Path) -> list[str]:
    """The names of the collections in a tenant's folder; those of others, reached by links, are none."""
    return [name for name in collection_names(collections) if not (collections / name).is_symlink()]


def public_names(collection: Collection, documents: Iterable[str]) -> dict[str, str]:
    """What clients call documents, by their names: the files of a folder are called as it is, without what is above.

    Documents that came over HTTP, or as texts, have no paths and are called what they are.
    """
    roots = collection.roots
    return {name: _public(name, roots) for name in documents}


def _public(name: str, roots: Iterable[Root]) -> str:
    if not PurePath(name).is_absolute():
        return name
    above = [root.path for root in roots if within(name, root.path)]
    if not above:
        return PurePath(name).name
    return PurePath(name).relative_to(PurePath(max(above, key=len)).parent).as_posix()
