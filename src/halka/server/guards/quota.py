"""How much a tenant may store: what it has, and what is on its way, within the limit of the key that adds."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import anyio

from halka.server.errors import ApiError
from halka.server.guards.access import Caller
from halka.server.storage import Reservation, StorageFullError
from halka.server.threads import Threads

if TYPE_CHECKING:
    from halka.server.tenants import Tenants


@dataclass(frozen=True)
class Quota:
    """Holds room for what requests bring. One request of a tenant at a time looks for room: others have the threads."""

    tenants: Tenants
    threads: Threads
    _turns: defaultdict[str, anyio.Lock] = field(default_factory=lambda: defaultdict(anyio.Lock))

    async def reserve(self, caller: Caller, least: int, most: int = 0) -> int:
        """Hold room for `least` bytes until the request ends, and for up to `most` where there is as much.

        Returns how many. Raises ApiError where the tenant would have too many.
        """
        lease = caller.lease
        async with self._turns[caller.tenant]:
            if lease.room is None:
                lease.room = Reservation(self.tenants.of(caller.tenant).storage)
            try:
                return await self.threads.manage(lease.room.grow, least, lease.limits.storage, most)
            except StorageFullError as error:
                raise ApiError(413, str(error), code="storage_full") from None
