"""A collection's documents as a file of a job's: it retrieves from them as they are when it is queued."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from anyio import from_thread

from halka.rag.collection import Collection
from halka.rag.passages import joined
from halka.rag.store import Document, Scope
from halka.server.errors import ApiError
from halka.server.resources.collection_access import open_collection, public_names
from halka.server.service import Service
from halka.server.wire import dumps

AT_ONCE = 1000  # passages that are read at a time


def document_lines(service: Service, tenant: str, name: str) -> Iterator[bytes]:
    """A collection's documents as the lines of a file that `halka advise --documents` reads.

    They are those that every manager of the tenant may read, as every manager sees what comes of the job. Call it in
    a thread of the collection's `ingest` (`threads_of`), which keeps it. Raises ApiError where there are no documents.
    """
    collection, scope = open_collection(service, tenant, name), Scope(frozenset({tenant, "manager"}))
    documents, names = collection.documents(scope), set[str]()
    if not documents:
        raise ApiError(400, f"{name!r} has no documents that managers may read: add some", param="collection")
    public = public_names(collection, (document.name for document in documents))
    for document in documents:
        from_thread.check_cancelled()  # whether the request has ended
        name = public[document.name]
        while name in names:  # of another folder of that name
            name += "'"
        names.add(name)
        yield dumps({"name": name, "text": _text(collection, document, scope)}) + b"\n"


def write_lines(lines: Iterable[bytes], path: Path, most: int) -> Path:
    """Write lines to a new file. Raises ApiError for more bytes than there is room for."""
    with path.open("xb") as file:
        for line in lines:
            if (most := most - file.write(line)) < 0:
                raise ApiError(409, "the collection changed meanwhile: try again", param="collection")
    return path


def _text(collection: Collection, document: Document, scope: Scope) -> str:
    """A document's text; it may be replaced meanwhile."""
    parts = (range(start, start + AT_ONCE) for start in range(0, document.passages, AT_ONCE))
    return joined(passage for part in parts for passage in collection.store.passages(document.name, part, scope))
