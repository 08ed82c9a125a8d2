"""`ServeReplica`: a `Replica` as Ray Serve starts it: it sets OpenMP's variables in its process, then loads torch.

Ray's `runtime_env` could set them, too, but starts such a process by `bash -c`, which ends Python's path at a space.
"""

from __future__ import annotations

import json
import os
from collections.abc import AsyncGenerator, Awaitable, Mapping, Sequence
from contextlib import ExitStack, aclosing

from halka.util.openmp import environment


class ServeReplica:
    """Hands Serve's calls to a `Replica`. Importing this module loads no torch, which reads the variables at once.

    plan   a `ReplicaPlan`'s JSON

    Raises HalkaError as `Replica`.
    """

    def __init__(self, plan: str):
        self._ending = ExitStack()
        os.environ.update(environment(json.loads(plan)["threads"]))
        from halka.server.backends.replicas.replica import Replica

        self._replica = Replica(plan, _serves_name())
        self._ending.callback(self._replica.remove_folder)

    async def answer(
        self, call: str, files: Sequence[Awaitable[Mapping[str, bytes]]] = (), order: Sequence[str | None] = ()
    ) -> AsyncGenerator[str]:
        """As `Replica.answer`; `order` is for Serve's router."""
        async with aclosing(self._replica.answer(call, files)) as replies:
            async for reply in replies:
                yield reply

    async def state(self) -> str:
        """As `Replica.state`."""
        return await self._replica.state()

    def check_health(self) -> None:
        """As `Replica.check_health`; Serve calls it."""
        self._replica.check_health()

    def __del__(self) -> None:
        """Remove the replica's folder, if it has one; Serve calls it when the replica is to go."""
        self._ending.close()


def _serves_name() -> str:
    from ray import serve

    return serve.get_replica_context().replica_id.unique_id
