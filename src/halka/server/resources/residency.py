"""Which adapters are in memory: loaded and unloaded, pinned and unpinned, within a tenant's share of it.

What a tenant pins, nobody else's adapters get: all tenants together pin no more than leaves the others room.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from fastapi import APIRouter
from starlette.responses import Response

from halka.server.errors import ApiError, refusal
from halka.server.guards.access import Caller, ManagerDep
from halka.server.resources.adapter_files import stored_inside
from halka.server.resources.adapter_views import missing_is_404, view_of
from halka.server.service import Service, ServiceDep
from halka.server.settings import GB
from halka.server.tenants import MAIN, Tenant
from halka.server.wire import Json
from halka.storage.adapter_store import name_and_version
from halka.util.errors import HalkaError, UnknownAdapterError

router = APIRouter(tags=["adapters"])

TOGETHER = 0.5
"""The share of the memory, and of the adapters in it, that the pinned ones of all tenants may take, where one tenant's
share is no larger."""


@router.post("/v1/adapters/{name}/load")
async def load_adapter(name: str, service: ServiceDep, caller: ManagerDep) -> Response:
    """Load an adapter now, so that the next request need not wait for it."""
    return await _change(service, caller, name, load=True)


@router.post("/v1/adapters/{name}/pin")
async def pin_adapter(name: str, service: ServiceDep, caller: ManagerDep) -> Response:
    """Load an adapter, and never evict it, within the tenant's share of the memory."""
    return await _change(service, caller, name, partial(_pin, service, caller), load=True)


@router.post("/v1/adapters/{name}/unpin")
async def unpin_adapter(name: str, service: ServiceDep, caller: ManagerDep) -> Response:
    """Let an adapter be evicted by use again."""
    return await _change(service, caller, name, service.adapters.unpin)


@router.post("/v1/adapters/{name}/unload")
async def unload_adapter(name: str, service: ServiceDep, caller: ManagerDep) -> Response:
    """Evict an adapter that no request uses; it is loaded again when one does."""
    return await _change(service, caller, name, service.adapters.unload)


async def evict_removed(service: Service, tenant: Tenant, name: str) -> None:
    """Evict the versions of an adapter that its store has no more, unless requests have them: then by use."""
    await service.engine.call(partial(service.adapters.evict_removed, tenant.engine_name(name)))


def check_successor(service: Service, caller: Caller, name: str, bytes: int) -> None:
    """Raises ApiError where the next version of a pinned adapter, of so many bytes, is over the share."""
    versions = service.adapters.residents.versions
    if any(version.pinned for version in versions if version.name == name):
        _check_share(service, caller, name, bytes)


# ── inside ──────────────────────────────────────────────────────────────────────────────────────────────────────────


async def _change(
    service: Service,
    caller: Caller,
    name: str,
    change: Callable[[str], None] | None = None,
    *,
    load: bool = False,
) -> Response:
    """Change what the engine has of an adapter, or of NAME@VERSION, on its thread; the response describes it."""
    tenant, (adapter, version) = service.tenants.of(caller.tenant), name_and_version(name)
    await evict_removed(service, tenant, adapter)  # it may be pinned still
    with missing_is_404(name):
        await service.threads.manage(stored_inside, tenant.store, adapter, version)
    engine_name = tenant.engine_name(name)
    try:
        if change is not None and service.settings.on is not None:
            raise HalkaError("replicas load adapters for requests and evict by use: nothing is pinned there")
        if load:
            await (service.backend if change is None else service.engine).load(engine_name)
        if change is not None:
            await service.engine.call(partial(change, engine_name))
    except UnknownAdapterError:
        raise
    except HalkaError as error:
        raise refusal(error, 409, caller=caller, code="wrong_status") from None
    return Json(await service.threads.manage(view_of, service, caller, name))


def _pin(service: Service, caller: Caller, name: str) -> None:
    """Never evict an adapter that is loaded. Raises ApiError where it is over the share."""
    version = service.adapters.version(name)
    if not version.here:
        raise ApiError(409, "the adapter was evicted at once: try again", code="wrong_status")
    _check_share(service, caller, name, version.bytes)
    service.adapters.pin(name, lambda version: _over_share(service, caller, name, version.bytes) is None)


def _check_share(service: Service, caller: Caller, name: str, bytes: int) -> None:
    if (reason := _over_share(service, caller, name, bytes)) is not None:
        raise ApiError(400, reason, param="name", code="pinned_full")


def _over_share(service: Service, caller: Caller, name: str, bytes: int) -> str | None:
    """Why this caller may not pin an adapter that takes so many bytes; None where it may."""
    if caller.tenant == MAIN and caller.may("admin"):
        return None
    settings, tenant = service.settings, f"{caller.tenant}/"
    others = [v for v in service.adapters.residents.versions if v.pinned and v.name != name]
    own = [v for v in others if (v.name or "").startswith(tenant)]
    memory, places = settings.adapter_memory * GB, settings.adapters_in_memory
    most, together = int(memory * settings.pinned), int(memory * max(settings.pinned, TOGETHER))
    over = _over(sum(v.bytes for v in own), sum(v.bytes for v in others), bytes, most, together, "bytes")
    if over is not None or places is None:
        return over
    most, together = max(1, int(places * settings.pinned)), int(places * max(settings.pinned, TOGETHER))
    return _over(len(own), len(others), 1, most, together, f"of the {places:,} places in memory")


def _over(own: int, others: int, more: int, most: int, together: int, unit: str) -> str | None:
    """Why the pinned of a tenant, or of all, may not take so much more; None where they may."""
    if own + more > most:
        return f"a tenant's pinned adapters may take {most:,} {unit}, and yours would take {own + more:,}: unpin some"
    if others + more > together:
        left = max(0, together - others)
        return f"all tenants' pinned adapters may take {together:,} {unit}, and {left:,} are left: unpin some, or wait"
    return None
