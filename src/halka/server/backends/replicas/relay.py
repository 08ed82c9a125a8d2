"""`RelayChannel`: asks replicas from outside the cluster (ray://), by an actor on the head node that asks them.

Ray's client has no streams: the actor keeps what the replicas say until the gateway takes it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing, suppress
from itertools import count
from typing import Any, Literal, cast

from halka.server.backends.replicas.channel import TIMEOUT, Channel, ServeChannel, losses
from halka.server.backends.replicas.placement import Order
from halka.server.backends.replicas.wire import Lost, State

log = logging.getLogger("halka.server")
Kind = Literal["reply", "end", "lost"]
Letter = tuple[int, Kind, str]
"""What happened to the call of this number: a reply came, it ended, or it was lost."""


class Relay:
    """The actor. app: the gateway's application."""

    def __init__(self, app: str, channel: Channel | None = None):
        self._channel = _serve_channel(app) if channel is None else channel
        self._letters, self._filled = list[Letter](), asyncio.Event()
        self._calls = dict[int, asyncio.Task[None]]()

    async def begin(self, number: int, order: Order, call: str, files: Sequence[Any]) -> None:
        """Make a call; `take` has what comes of it."""
        self._calls[number] = asyncio.create_task(self._follow(number, order, call, files))

    async def cancel(self, number: int, begun: None = None) -> None:
        """Nobody waits for this call's answers any more. begun: what `begin` returns, else this could overtake it."""
        if (call := self._calls.pop(number, None)) is not None:
            call.cancel()

    async def take(self) -> list[Letter]:
        """All that came since the last time; waits for the first."""
        await self._filled.wait()
        self._filled.clear()
        letters, self._letters = self._letters, []
        return letters

    async def states(self) -> tuple[Kind, list[str | None] | str]:
        try:
            return "reply", [state and state.json for state in await asyncio.to_thread(self._channel.states)]
        except Lost as error:
            return "lost", str(error)

    async def _follow(self, number: int, order: Order, call: str, files: Sequence[Any]) -> None:
        try:
            async with aclosing(self._channel.answer(order, call, files)) as replies:
                async for reply in replies:
                    self._post(number, "reply", reply)
            self._post(number, "end", "")
        except Lost as error:
            self._post(number, "lost", str(error))
        except Exception as error:
            log.error("a call failed in the relay", exc_info=error)
            self._post(number, "lost", f"{type(error).__name__}: {error}")
        finally:
            self._calls.pop(number, None)

    def _post(self, number: int, kind: Kind, text: str) -> None:
        self._letters.append((number, kind, text))
        self._filled.set()


class RelayChannel:
    """Implements `Channel`. ray: the library, connected; app: the gateway's application."""

    def __init__(self, ray: Any, app: str):
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        head = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        options = {"num_cpus": 0, "max_restarts": -1, "scheduling_strategy": head}
        self._ray, self._relay = ray, ray.remote(Relay).options(**options).remote(app)
        self._numbers, self._waiting = count(), dict[int, asyncio.Queue[tuple[Kind, str]]]()
        self._reader: asyncio.Task[None] | None = None

    def put(self, files: Mapping[str, bytes]) -> Any:
        return self._ray.put({**files})

    async def answer(self, order: Order, call: str, files: Sequence[Any]) -> AsyncGenerator[str]:
        number = next(self._numbers)
        queue = self._waiting[number] = asyncio.Queue()
        if self._reader is None:
            self._reader = asyncio.get_running_loop().create_task(self._read())
        kind, begun = cast(Kind, "reply"), None
        try:
            with losses():
                begun = self._relay.begin.remote(number, order, call, [*files])
                await begun
            while True:
                kind, text = await queue.get()
                if kind == "end":
                    return
                if kind == "lost":
                    raise Lost(text)
                yield text
        finally:
            del self._waiting[number]
            if kind != "end":
                with suppress(Lost), losses():  # what is wrong is raised already
                    self._relay.cancel.remote(number, begun)

    def states(self) -> list[State | None]:
        with losses():
            kind, states = self._ray.get(self._relay.states.remote(), timeout=2 * TIMEOUT)
        if kind == "lost":
            raise Lost(states)
        return [state and State.of(state) for state in states]

    async def _read(self) -> None:
        """Hand out what the relay has, while somebody waits for it; whoever waits at its end learns why."""
        reason = "the relay is read no more"
        try:
            while self._waiting:
                with losses():
                    letters = await self._relay.take.remote()
                for number, kind, text in letters:
                    if (queue := self._waiting.get(number)) is not None:
                        queue.put_nowait((kind, text))
        except Exception as error:
            reason = str(error)
            if not isinstance(error, Lost):
                log.error("the relay cannot be read", exc_info=error)
        finally:
            self._reader = None
            for queue in self._waiting.values():
                queue.put_nowait(("lost", reason))


def _serve_channel(app: str) -> Channel:
    import ray
    from ray import serve

    return ServeChannel(ray, serve.get_app_handle(app))
