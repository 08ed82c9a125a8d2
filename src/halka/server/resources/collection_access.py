"""A tenant's collections as its callers see them: which there are, who may read what, what documents are called."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path, PurePath

from anyio import to_thread

from halka.rag.collection import Collection
from halka.rag.collection_folder import CollectionFolder
from halka.rag.collection_folder import collection_names as names_in
from halka.rag.roots import Root
from halka.rag.store import Scope, within
from halka.server.errors import ApiError
from halka.server.guards.access import Caller
from halka.server.service import Service
from halka.server.threads import CollectionThreads
from halka.util.errors import DamagedFolderError, HalkaError
from halka.util.files import is_portable_name
from halka.util.spelling import check_new_name, is_spelled

QUERY = 10_000  # characters of a query or a question: its search has the only thread for these


def collection_names(service: Service, tenant: str) -> list[str]:
    """The names of a tenant's collections; those of others, reached by links, are none."""
    folder = _folder(service, tenant)
    return [name for name in names_in(folder) if not (folder / name).is_symlink()]


def open_collection(service: Service, tenant: str, name: str) -> Collection:
    """The tenant's collection of that name. Raises ApiError if there is none."""
    folder = CollectionFolder(_folder(service, tenant) / name)
    if not (is_portable_name(name) and folder.exists and is_spelled(folder.path)) or folder.path.is_symlink():
        raise ApiError(
            404,
            f"there is no collection {name[:100]!r}: GET /v1/collections lists those there are",
            param="collection",
            code="collection_not_found",
        )
    return Collection(folder.path, load=service.embedders.get)


async def threads_of(service: Service, tenant: str, name: str) -> CollectionThreads:
    """The threads in which the tenant's collection of that name, or what says that there is none, is opened."""
    afar = await to_thread.run_sync(_is_afar, service, tenant, name)
    return service.threads.afar if afar else service.threads.near


def _is_afar(service: Service, tenant: str, name: str) -> bool:
    """Whether its passages are at a place of their own; not where there is no such collection, or it is damaged."""
    try:
        return is_portable_name(name) and "at" in CollectionFolder(_folder(service, tenant) / name).settings()
    except (OSError, HalkaError):
        return False


def new_collection(service: Service, tenant: str, name: str) -> Collection:
    """A new collection.

    Raises ApiError if there is one of that name, and HalkaError if there is one that differs in capitals alone.
    """
    names = collection_names(service, tenant)
    if name in names:
        raise ApiError(409, f"there is a collection {name!r} already", param="name", code="collection_exists")
    check_new_name(name, names)
    return Collection(_folder(service, tenant) / name, service.embedders.get())


def remove_collection(service: Service, tenant: str, name: str) -> None:
    """Remove a collection, also one that is damaged. Raises ApiError if there is none."""
    try:
        return open_collection(service, tenant, name).delete()
    except ApiError:
        raise
    except Exception:
        folder = CollectionFolder(_folder(service, tenant) / name)
        with suppress(DamagedFolderError):
            settings = folder.settings()
            if not settings or "at" in settings:  # it is gone, or its passages would stay there
                raise
    folder.end()


def scope_of(caller: Caller, tags: Iterable[str] = (), under: str = "") -> Scope:
    """What the caller may read: what everyone may, and what its tenant, its role or its key may."""
    readers = {caller.tenant, caller.role, *([caller.key.id] if caller.key is not None else [])}
    return Scope(frozenset(readers), under, frozenset(tags))


def public_names(collection: Collection, documents: Iterable[str]) -> dict[str, str]:
    """What clients call documents, by their names: the files of a folder are called as it is, without what is above.

    Documents that came over HTTP, or as texts, have no paths and are called what they are.
    """
    roots = collection.roots
    return {name: _public(name, roots) for name in documents}


def find_document(collection: Collection, public: str, scope: Scope | None) -> str:
    """The document in the scope that clients call so. Raises ApiError if there is none, or several."""
    names = public_names(collection, (document.name for document in collection.documents(scope)))
    matching = [name for name, called in names.items() if called == public]
    if len(matching) != 1:
        quantity = "are several documents" if matching else "is no document"
        message = f"there {quantity} called {public[:200]!r} in this collection"
        raise ApiError(409 if matching else 404, message, param="document")
    return matching[0]


def _folder(service: Service, tenant: str) -> Path:
    return service.tenants.of(tenant).collections


def _public(name: str, roots: Iterable[Root]) -> str:
    if not PurePath(name).is_absolute():
        return name
    above = [root.path for root in roots if within(name, root.path)]
    if not above:
        return PurePath(name).name
    return PurePath(name).relative_to(PurePath(max(above, key=len)).parent).as_posix()
