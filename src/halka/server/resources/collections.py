"""`/v1/collections`: the caller's documents, uploaded, searched and deleted.

A document is called what its file was called; who may read it are roles (`user`, `manager`, `admin`), the ids of keys,
the tenant, or by default everyone of the tenant.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any

from anyio import from_thread
from fastapi import APIRouter, Form, Request, UploadFile
from pydantic import Field
from starlette.responses import Response

from halka.rag.retrieve import Mode, Retriever
from halka.rag.store import Document
from halka.rag.texts import is_readable
from halka.server.errors import ApiError, api_error, public, refusal
from halka.server.guards.access import Caller, CallerDep, ManagerDep
from halka.server.requests import Body, Labels, Name
from halka.server.resources.collection_access import (
    QUERY,
    collection_names,
    find_document,
    new_collection,
    open_collection,
    public_names,
    remove_collection,
    scope_of,
    threads_of,
)
from halka.server.resources.document_reader import read_apart
from halka.server.resources.uploads import UploadRoute, file_names, save, staging
from halka.server.service import Service, ServiceDep
from halka.server.wire import Json
from halka.util.errors import HalkaError

MOST = 1000  # collections of a tenant
EMPTY = 16384  # bytes of one without documents

router = APIRouter(tags=["collections"], route_class=UploadRoute)


class NewCollection(Body):
    name: Name


class Search(Body):
    """`tags`: only documents with all of these; `document`: only this one."""

    query: Annotated[str, Field(min_length=1, max_length=QUERY)]
    count: Annotated[int, Field(ge=1, le=100)] | None = None
    mode: Mode | None = None
    tags: Labels | None = None
    document: str | None = None


@router.get("/v1/collections")
async def list_collections(service: ServiceDep, caller: CallerDep) -> Response:
    """List the caller's collections."""

    entries = list[dict[str, Any] | None]()
    for name in await service.threads.near.search(collection_names, service, caller.tenant):
        threads = await threads_of(service, caller.tenant, name)
        entries.append(await threads.search(_listed, service, caller, name))  # others' searches go in between
    return Json({"object": "list", "data": [entry for entry in entries if entry is not None]})


@router.post("/v1/collections")
async def create_collection(body: NewCollection, service: ServiceDep, caller: ManagerDep) -> Response:
    """Create an empty collection."""

    def create() -> dict[str, Any]:
        if len(collection_names(service, caller.tenant)) >= MOST:
            raise ApiError(409, f"there are {MOST} collections: delete some", code="too_many")
        new_collection(service, caller.tenant, body.name)
        return _describe(service, caller, body.name)

    await service.guards.quota.reserve(caller, EMPTY)
    return Json(await service.threads.near.ingest(create), 201)


@router.get("/v1/collections/{collection}")
async def get_collection(collection: str, service: ServiceDep, caller: CallerDep) -> Response:
    """A collection: how many documents and passages it has."""
    threads = await threads_of(service, caller.tenant, collection)
    return Json(await threads.search(_describe, service, caller, collection))


@router.delete("/v1/collections/{collection}")
async def delete_collection(collection: str, service: ServiceDep, caller: ManagerDep) -> Response:
    """Remove a collection with all its documents."""
    threads = await threads_of(service, caller.tenant, collection)
    await threads.exclusive(remove_collection, service, caller.tenant, collection)
    return Json({"id": collection, "object": "collection", "deleted": True})


@router.get("/v1/collections/{collection}/documents")
async def list_documents(collection: str, service: ServiceDep, caller: CallerDep) -> Response:
    """List the documents that the caller may read."""

    def documents() -> list[dict[str, Any]]:
        opened = open_collection(service, caller.tenant, collection)
        documents = opened.documents(scope_of(caller))
        names = public_names(opened, (document.name for document in documents))
        return [_document(document, names[document.name]) for document in documents]

    threads = await threads_of(service, caller.tenant, collection)
    return Json({"object": "list", "data": await threads.search(documents)})


@router.post("/v1/collections/{collection}/documents")
async def upload_documents(
    collection: str,
    request: Request,
    service: ServiceDep,
    caller: ManagerDep,
    files: list[UploadFile],
    readers: Annotated[Labels | None, Form()] = None,
    tags: Annotated[Labels | None, Form()] = None,
) -> Response:
    """Add documents as files; each replaces one of the same name.

    `readers` may read them; by default those who could read that older one, else everyone.
    """
    names = file_names(files)
    if unread := next((name for name in names if not is_readable(Path(name))), None):
        raise ApiError(400, f"{unread}: files of this kind are not read: convert it to text", param="files")
    threads = await threads_of(service, caller.tenant, collection)
    await threads.search(open_collection, service, caller.tenant, collection)
    async with staging(service) as folder:
        paths = [
            await save(service, upload, folder / f"{number}{Path(name).suffix.lower()}")
            for number, (name, upload) in enumerate(zip(names, files, strict=True))
        ]
        works = request.state.works

        def check() -> None:
            from_thread.check_cancelled()  # whether the request has ended
            works()

        def put(name: str, path: Path) -> list[dict[str, Any]]:
            opened = open_collection(service, caller.tenant, collection)
            names = public_names(opened, (document.name for document in opened.documents()))
            if any(called == name and own != name for own, called in names.items()):  # of a folder of the operator's
                raise ApiError(409, f"another document is called {name!r}: send it under another name", param="files")
            access = {"readers": readers or None, "tags": tags or ()}
            read = partial(read_apart, characters=service.settings.document_characters, check=check)
            events = opened.put_files([(name, path)], **access, read=read, check=check)
            return [
                {"id": event.document, "object": "document", "status": event.what, "passages": event.passages}
                | ({"reason": public(event.reason)} if event.reason else {})
                for event in events
            ]

        events = list[dict[str, Any]]()
        for name, path in zip(names, paths, strict=True):  # a call each: others go in between, and it may move
            threads = await threads_of(service, caller.tenant, collection)
            events += await threads.ingest(put, name, path)
    if all(event["status"] == "skipped" for event in events):
        raise ApiError(400, events[0]["reason"], param="files", code="unreadable_document")
    return Json({"object": "list", "data": events}, 201)


@router.delete("/v1/collections/{collection}/documents/{document:path}")
async def delete_document(collection: str, document: str, service: ServiceDep, caller: ManagerDep) -> Response:
    """Remove a document at once, with all its passages."""

    def remove() -> None:
        opened = open_collection(service, caller.tenant, collection)
        opened.remove([find_document(opened, document, None)])

    threads = await threads_of(service, caller.tenant, collection)
    await threads.ingest(remove)
    return Json({"id": document, "object": "document", "deleted": True})


@router.post("/v1/collections/{collection}/search")
async def search_collection(collection: str, body: Search, service: ServiceDep, caller: CallerDep) -> Response:
    """Find the passages that best fit a query."""

    def search() -> list[dict[str, Any]]:
        opened = open_collection(service, caller.tenant, collection)
        under = "" if body.document is None else find_document(opened, body.document, scope_of(caller))
        scope = scope_of(caller, body.tags or (), under)
        try:
            hits = Retriever(opened, body.mode or "hybrid").search(body.query, body.count or 8, scope)
        except HalkaError as error:
            raise refusal(error, caller=caller, param="query") from None
        names = public_names(opened, (hit.passage.document for hit in hits))
        return [
            {
                "object": "passage",
                "document": names[hit.passage.document],
                "page": hit.passage.page,
                "start": hit.passage.start,
                "end": hit.passage.end,
                "heading": hit.passage.heading,
                "text": hit.passage.text,
                "score": hit.score,
                "cosine": hit.cosine,
                "bm25": hit.bm25,
            }
            for hit in hits
        ]

    threads = await threads_of(service, caller.tenant, collection)
    return Json({"object": "list", "data": await threads.search(search)})


# ── inside ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _describe(service: Service, caller: Caller, name: str) -> dict[str, Any]:
    documents = open_collection(service, caller.tenant, name).documents(scope_of(caller))
    return {
        "id": name,
        "object": "collection",
        "documents": len(documents),
        "passages": sum(document.passages for document in documents),
    }


def _listed(service: Service, caller: Caller, name: str) -> dict[str, Any] | None:
    """A collection; one that cannot be opened has the reason as its `error`. None: it was removed meanwhile."""
    try:
        return _describe(service, caller, name)
    except ApiError:
        return None
    except Exception as error:
        nothing = {"id": name, "object": "collection", "documents": None, "passages": None}
        return nothing | {"error": api_error(error, caller).message}


def _document(document: Document, name: str) -> dict[str, Any]:
    return {
        "id": name,
        "object": "document",
        "passages": document.passages,
        "readers": document.readers,
        "tags": document.tags,
        "added": document.added,
    }
