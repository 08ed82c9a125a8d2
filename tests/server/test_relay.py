"""The relay by which a gateway outside the cluster asks replicas. Ray, and the replicas, are not there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
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


class Promised:
    """What an actor's call returns: the call goes on, whoever leaves."""

    def __init__(self, call: Coroutine[Any, Any, Any]):
        self._task = asyncio.ensure_future(call)

    def __await__(self) -> Generator[Any, Any, Any]:
        return asyncio.shield(self._task).__await__()


class Actor:
    """A relay in this process, called as an actor is: a call waits for results of others among its arguments.

    broken  what its calls raise, by name
    held    set where calls begin later
    """

    def __init__(self, relay: Relay):
        self.relay, self.broken, self.held = relay, dict[str, Exception](), None

    def __getattr__(self, name: str) -> Any:
        async def call(*arguments: Any) -> Any:
            if name == "begin" and self.held:
                await self.held.wait()
            results = [await one if isinstance(one, Promised) else one for one in arguments]
            return await getattr(self.relay, name)(*results)

        def remote(*arguments: Any) -> Promised:
            if name in self.broken:
                raise self.broken[name]
            return Promised(call(*arguments))

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


def test_who_leaves_before_the_call_has_begun_ends_it():
    """Calls of an actor overtake each other: that which ends it waits for what the first one returns."""

    async def go(channel: RelayChannel, actor: Actor, replicas: Replicas) -> None:
        actor.held = asyncio.Event()
        answer = asyncio.create_task(read(channel, "a waits"))
        await asyncio.sleep(0)
        answer.cancel()
        with pytest.raises(asyncio.CancelledError):
            await answer
        actor.held.set()
        while not replicas.left:
            await asyncio.sleep(0)
        assert not actor.relay._calls

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
