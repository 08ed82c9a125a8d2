"""An adapter as clients see it, without any path."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from math import ceil
from statistics import fmean
from typing import Any

from halka.server.errors import ApiError, api_error
from halka.server.guards.access import Caller
from halka.server.resources.adapter_files import folder_inside
from halka.server.service import Service
from halka.storage.adapter_store import name_and_version
from halka.storage.card import Card
from halka.util.errors import DamagedFolderError, UnknownAdapterError

DRAWN = 24  # losses of an adapter, for a small picture of its training
HIGHEST = 1e300  # of losses whose sum is a number, too


def view_of(service: Service, caller: Caller, name: str, version: int | None = None) -> dict[str, Any]:
    """A version of an adapter, by default the newest. One that is damaged has the reason as its `error`.

    The name may be NAME@VERSION, which has a place of its own in memory.
    """
    tenant, stored, damage = service.tenants.of(caller.tenant), None, {}
    engine_name = tenant.engine_name(name)
    with missing_is_404(name, version):
        if version is None:
            name, version = name_and_version(name)
        folder = folder_inside(tenant.store, name, version)
        files = {path.name: path.stat().st_size for path in sorted(folder.iterdir()) if path.is_file()}
        versions, created = tenant.store.versions(name), int(folder.stat().st_mtime)
        try:
            stored = tenant.store.get(name, int(folder.name))
        except FileNotFoundError:
            raise
        except (DamagedFolderError, OSError) as error:
            damage = {"error": api_error(error, caller).message}
    card = stored and stored.card
    return {
        "id": name,
        "object": "adapter",
        "version": int(folder.name),
        "versions": versions,
        "created_at": created,
        "method": None if card is None else card.method,
        "task": stored.task if stored else "",
        "tags": stored.tags if stored else (),
        "parameters": None if card is None else card.parameters,
        "measurements": None if card is None else card.measurements,
        **_from_card(card, caller),
        "files": files,
        "bytes": sum(files.values()),
        **vars(service.holder.held(engine_name)),
        **damage,
    }


def points_of(curve: Any) -> list[dict[str, Any]]:
    """The points of a curve. A Card may hold anything as its curve."""
    return [point for point in curve if isinstance(point, dict)] if isinstance(curve, list) else []


def losses_of(curve: Any) -> list[float]:
    """A curve's training losses, at most `DRAWN`: means of neighbours."""
    losses = [point.get("loss") for point in points_of(curve)]
    losses = [loss for loss in losses if isinstance(loss, int | float) and abs(loss) < HIGHEST]
    size = ceil(len(losses) / DRAWN) or 1
    return [round(fmean(losses[at : at + size]), 4) for at in range(0, len(losses), size)]


def _from_card(card: Card | None, caller: Caller) -> dict[str, Any]:
    """What else a Card says; nothing of it names a folder of the server's."""
    if card is None:
        names = ("base", "kind", "chat_template", "training", "curve", "losses", "versions_used", "trained_at")
        return dict.fromkeys(names)
    training = {**card.training}
    curve = training.pop("curve", None)
    return {
        "curve": None if curve is None else points_of(curve),
        "losses": losses_of(curve),
        "base": caller.folders.hidden_in(card.base.get("name")),
        "kind": card.kind,
        "chat_template": card.chat_template,
        "training": caller.folders.hidden_in(training),
        "versions_used": card.versions,
        "trained_at": card.created or None,
    }


@contextmanager
def missing_is_404(name: str, version: int | None = None) -> Iterator[None]:
    """Raises ApiError in the place of errors that say that an adapter is not there, or is removed meanwhile."""
    try:
        yield
    except (UnknownAdapterError, FileNotFoundError):
        wanted = f"{name[:100]!r}" if version is None else f"version {version} of {name[:100]!r}"
        raise ApiError(404, f"there is no adapter {wanted}: GET /v1/adapters lists those there are") from None
