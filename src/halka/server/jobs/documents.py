"""A collection's documents as a file of a job's: it retrieves from them as they are when it is queued."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from halka.rag.collection import Collection
from halka.rag.passages import joined
from halka.rag.store import Document, Scope
from halka.server.errors import ApiError
from halka.server.resources.collection_access import open_collection, public_names
from halka.server.service import Service
from halka.server.settings import MB
from halka.server.wire import dumps

AT_ONCE = 1000  # passages that are read at a time


def write_documents(service: Service, tenant: str, name: str, path: Path) -> int:
    """Write the texts of a collection's documents as rows that `halka advise --documents` reads; returns the bytes.

    They are those that every manager of the tenant may read, as every manager sees what comes of the job. Raises
    ApiError where there are none, and where they are more than an upload may be.
    """
    most, size = int(service.settings.upload_size * MB), 0
    collection, scope = open_collection(service, tenant, name), Scope(frozenset({tenant, "manager"}))
    with path.open("xb") as file:
        for row in _rows(collection, scope):
            size += file.write(dumps(row) + b"\n")
            if size > most:
                raise ApiError(413, f"the documents of {name!r} have more than {most} bytes", param="collection")
    if not size:
        raise ApiError(400, f"{name!r} has no documents that managers may read: add some", param="collection")
    return size


def _rows(collection: Collection, scope: Scope) -> Iterator[dict[str, Any]]:
    documents, names = collection.documents(scope), set[str]()
    public = public_names(collection, (document.name for document in documents))
    for document in documents:
        name = public[document.name]
        while name in names:  # of another folder of that name
            name += "'"
        names.add(name)
        yield {"name": name, "text": _text(collection, document, scope)}


def _text(collection: Collection, document: Document, scope: Scope) -> str:
    """A document's text; it may be replaced meanwhile."""
    parts = (range(start, start + AT_ONCE) for start in range(0, document.passages, AT_ONCE))
    return joined(passage for part in parts for passage in collection.store.passages(document.name, part, scope))
