"""`Channel`: how a gateway asks replicas. `ServeChannel`: by a handle of Ray Serve's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from halka.server.backends.replicas.placement import Order
from halka.server.backends.replicas.wire import Lost, State
from halka.util.ray_connection import last_line

TIMEOUT = 5.0  # seconds for the replicas to say what they hold


class Channel(Protocol):
    """Asks a replica, the first of an order that can be asked. What is said is JSON, as `wire.py` has it."""

    def put(self, files: Mapping[str, bytes]) -> Any:
        """Keep an adapter's files where replicas get them: what the other methods take as `files`. It may block."""
        ...

    def answer(self, order: Order, call: str, files: Sequence[Any]) -> AsyncGenerator[str]:
        """As `Replica.answer`. Raises Lost."""
        ...

    def states(self) -> Sequence[State | None]:
        """What every replica says of itself; None: it is there, and says nothing in time. It blocks.

        Raises Lost where none can be asked.
        """
        ...


class ServeChannel:
    """Asks from a process of the cluster. ray: the library, connected; handle: of the deployment."""

    def __init__(self, ray: Any, handle: Any):
        self._ray, self._handle = ray, handle
        self._streams = handle.options(stream=True)

    def put(self, files: Mapping[str, bytes]) -> Any:
        return self._ray.put({**files})

    async def answer(self, order: Order, call: str, files: Sequence[Any]) -> AsyncGenerator[str]:
        with losses():
            replies, ended = self._streams.answer.remote(call, files, order=order), False
            try:
                async for reply in replies:
                    yield reply
                ended = True
            finally:
                if not ended:
                    replies.cancel()

    def states(self) -> list[State | None]:
        from ray.exceptions import RayActorError
        from ray.serve.exceptions import DeploymentUnavailableError

        with losses():
            try:
                states = self._handle.broadcast("state").results(timeout_s=TIMEOUT, return_exceptions=True)
            except DeploymentUnavailableError:  # there is none
                return []
        there = [state for state in states if not isinstance(state, RayActorError)]
        return [State.of(state) if isinstance(state, str) else None for state in there]


@contextmanager
def losses() -> Iterator[None]:
    """Within the block errors of Ray and Serve are Lost. Our own code raises none there: its errors are replies."""
    from ray.exceptions import RayError
    from ray.serve.exceptions import RayServeException

    try:
        yield
    except (RayError, RayServeException, ConnectionError, TimeoutError) as error:
        raise Lost(f"{type(error).__name__}: {last_line(error)}") from None
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise Lost("the replica cancelled it") from None
