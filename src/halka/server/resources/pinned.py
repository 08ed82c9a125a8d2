"""How much of the adapters' memory a tenant may pin: what is pinned there, nobody else's adapters get."""

from __future__ import annotations

from halka.server.errors import ApiError
from halka.server.guards.access import Caller
from halka.server.service import Service
from halka.server.settings import GB
from halka.server.tenants import MAIN


def pin(service: Service, caller: Caller, name: str) -> None:
    """Never evict an adapter that is loaded, on the engine's thread. Raises ApiError where it is over the share."""
    adapters = service.engine.engine.adapters
    loaded = [version.bytes for version in adapters.residents.versions if version.name == name]
    if not loaded:
        raise ApiError(409, "the adapter was evicted at once: try again", code="wrong_status")
    _check_share(service, caller, name, max(loaded))
    adapters.pin(name)


def check_successor(service: Service, caller: Caller, name: str, bytes: int) -> None:
    """Raises ApiError where the next version of a pinned adapter, of so many bytes, is over the share."""
    versions = service.engine.engine.adapters.residents.versions
    if any(version.pinned for version in versions if version.name == name):
        _check_share(service, caller, name, bytes)


def _check_share(service: Service, caller: Caller, name: str, bytes: int) -> None:
    if caller.tenant == MAIN and caller.may("admin"):
        return
    tenant, versions = f"{caller.tenant}/", service.engine.engine.adapters.residents.versions
    others = [v.bytes for v in versions if v.pinned and v.name != name and (v.name or "").startswith(tenant)]
    most, wanted = int(service.settings.adapter_memory * GB * service.settings.pinned), sum(others) + bytes
    if wanted > most:
        message = f"a tenant's pinned adapters may take {most:,} bytes, and yours would take {wanted:,}: unpin some"
        raise ApiError(400, message, param="name", code="pinned_full")
