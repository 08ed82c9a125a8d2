"""How much a tenant may store: what it has, and what is on its way, within the limit of the key that adds."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from itertools import chain
from pathlib import Path

from halka.server.guards.access import Caller
from halka.server.service import Service


async def reserve_storage(service: Service, caller: Caller, more: int) -> None:
    """Hold room for so many bytes until the request ends. Raises ApiError where the tenant would have too many."""
    tenant = service.tenants.of(caller.tenant)
    stored = await service.threads.manage(_bytes_below, (tenant.store.folder, tenant.collections, tenant.jobs))
    caller.lease.reserve_storage(caller.tenant, stored, more)


def _bytes_below(folders: Iterable[Path]) -> int:
    """The bytes of all files below these folders; links are not followed."""
    total = 0
    for path, _, files in chain.from_iterable(map(os.walk, folders)):
        for file in files:
            with suppress(FileNotFoundError):  # it was removed meanwhile
                total += os.lstat(os.path.join(path, file)).st_size
    return total
