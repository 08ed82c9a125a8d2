"""A page of the list of a caller's adapters, or of those with certain words.

Only what the page shows is read whole. To find words, every adapter's Card is read.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from halka.server.errors import ApiError
from halka.server.guards.access import Caller
from halka.server.resources.adapter_views import view_of
from halka.server.service import Service
from halka.storage.adapter_store import AdapterStore, Stored
from halka.util.errors import HalkaError


def page_of(service: Service, caller: Caller, find: str, start: int, count: int | None) -> dict[str, Any]:
    """Views of `count` adapters, or all, from the numbered one on, in the order of their names.

    find   words, all of which must be in an adapter's name, method, task or #tags, however they are written
    Returns them as `data`, how many adapters match in all, and how many the caller has.
    """
    store = service.tenants.of(caller.tenant).store
    names = [name for name in store.names() if not (store.folder / name).is_symlink()]
    words = find.lower().split()
    matching = [name for name in names if not words or _has(store, name, words)]
    views = list[dict[str, Any]]()
    for name in matching[start : None if count is None else start + count]:
        with suppress(ApiError):  # removed meanwhile, or its version is a link
            view = view_of(service, caller, name)
            del view["curve"]  # each is long
            views.append(view)
    return {"start": start, "matching": len(matching), "total": len(names), "data": views}


def _has(store: AdapterStore, name: str, words: list[str]) -> bool:
    """Whether all words are in what an adapter says of itself; of one that is damaged, in its name."""
    text = name.lower()
    if not all(word in text for word in words):
        with suppress(HalkaError, OSError, AttributeError, KeyError, TypeError):  # a Card may hold anything
            text = _text(store.get(name)).lower()
    return all(word in text for word in words)


def _text(stored: Stored) -> str:
    fields = stored.card.method.get("fields", {}) if stored.card else {}
    sizes = [f"{field} {value}" for field, value in fields.items() if value is not None]
    return " ".join([stored.name, ", ".join([stored.method, *sizes]), stored.task, *(f"#{tag}" for tag in stored.tags)])
