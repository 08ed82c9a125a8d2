"""The relay by which a gateway outside the cluster asks replicas. Ray, and the replicas, are not there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from types import SimpleNamespace
from typing import Any

import pytest

from halka.server.backends.replicas.relay import Relay, RelayChannel
from halka.server.backends.replicas.wire import Lost, State

pytest.importorskip("ray", reason="Ray is not installed: pip install 'halka[ray]'")
pytestmark = pytest.mark.filterwarnings("ignore")  # of Serve's own, when it is imported


class Replicas:
    """Implements `Channel`: says what a call asks for, then ends as it says; left: calls that nobody waits for."""

    def __init__(self) -> None:
        self.left = list[str]()

    async def answer(self, order: list[Any], call: str, files: list[Any]) -> AsyncGenerator[str]:
        text, _, end = call.partition(" ")
        try:
            for letter in text:
                await asyncio.sleep(0)
                yield letter
            await {"lost": self._lost, "fails": self._fail, "waits": asyncio.Event().wait}.get(end, self._end)()
        except asyncio.CancelledError:
            self.left.append(call)
            raise

    def states(self) -> list[State | None]:
        return [State("a", 7), None]

    async def _end(self) -> None:
        pass

    async def _lost(self) -> None:
        raise Lost("it died")

    async def _fail(self) -> None:
        raise ValueError("no")


class Actor:
    """A relay in this process, called as an actor is. broken: what its calls raise, by name."""

    def __init__(self, relay: Relay):
        self.relay, self.broken = relay, dict[str, Exception]()

    def __getattr__(self, name: str) -> Any:
        async def call(*arguments: Any) -> Any:
            return await getattr(self.relay, name)(*arguments)

        def remote(*arguments: Any) -> asyncio.Future[Any]:
            if name in self.broken:
                raise self.broken[name]
            return asyncio.ensure_future(call(*arguments))

        return SimpleNamespace(remote=remote)


def relayed(test: Callable[[RelayChannel, Actor, Replicas], Any]) -> None:
    replicas = Replicas()
    actor = Actor(Relay("app", replicas))  # type: ignore[arg-type]
    options = SimpleNamespace(options=lambda **_: SimpleNamespace(remote=lambda app: actor))
    node = SimpleNamespace(get_node_id=lambda: "0" * 56)
    ray = SimpleNamespace(get_runtime_context=lambda: node, remote=lambda cls: options)
    asyncio.run(asyncio.wait_for(test(RelayChannel(ray, "app"), actor, replicas), 20))


async def read(channel: RelayChannel, call: str) -> str:
    return "".join([text async for text in channel.answer([], call, [])])


def test_each_call_gets_its_own_replies_and_how_it_ended():
    async def go(channel: RelayChannel, actor: Actor, replicas: Replicas) -> None:
        calls = "abc", "defg", "hi lost", "jk fails"
        results = await asyncio.gather(*(read(channel, call) for call in calls), return_exceptions=True)
        assert results[:2] == ["abc", "defg"]
        assert [str(error) for error in results[2:]] == ["it died", "ValueError: no"]
        assert all(isinstance(error, Lost) for error in results[2:])
        assert await actor.relay.states() == ("reply", [State("a", 7).json, None])
        assert not replicas.left
        assert not actor.relay._calls

    relayed(go)


def test_who_leaves_ends_the_call():
    async def go(channel: RelayChannel, actor: Actor, replicas: Replicas) -> None:
        answers = channel.answer([], "a waits", [])
        assert await anext(answers) == "a"
        await answers.aclose()
        while not replicas.left:
            await asyncio.sleep(0)

    relayed(go)


@pytest.mark.parametrize("error", [ConnectionError("gone"), ValueError("garbage")])
def test_where_the_relay_cannot_be_read_nobody_waits_for_ever(error):
    async def go(channel: RelayChannel, actor: Actor, replicas: Replicas) -> None:
        first = channel.answer([], "a waits", [])
        assert await anext(first) == "a"
        actor.broken["take"] = error
        second = asyncio.create_task(read(channel, "b waits"))
        waiting = asyncio.create_task(anext(first))
        for task in (second, waiting):
            with pytest.raises(Lost, match=str(error)):
                await task
        del actor.broken["take"]
        while len(replicas.left) < 2:
            await asyncio.sleep(0)
        assert await read(channel, "cd") == "cd"

    relayed(go)


def test_a_relay_that_is_gone_is_lost_by_its_own_reason():
    async def go(channel: RelayChannel, actor: Actor, replicas: Replicas) -> None:
        actor.broken |= {"begin": ConnectionError("gone"), "cancel": TimeoutError("no answer")}
        with pytest.raises(Lost, match="ConnectionError: gone"):
            await read(channel, "a")

    relayed(go)
