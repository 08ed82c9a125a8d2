"""Replicas in this process behind a server: the engines are real, Ray is not there, and each may be lost on purpose."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

from halka.server.app import create_app
from halka.server.backends.replicas.backend import Replicas
from halka.server.backends.replicas.placement import Order, Placement
from halka.server.backends.replicas.plan import ReplicaPlan
from halka.server.backends.replicas.replica import Replica
from halka.server.backends.replicas.wire import Call, Lost, Reply, State
from serving_for_tests import InProcess, open_service


class Parcel:
    """Files that come when they are waited for."""

    def __init__(self, files: Mapping[str, bytes], lost: bool = False):
        self.files, self.lost = files, lost

    def __await__(self) -> Any:
        if self.lost:
            raise ConnectionError("they are gone")
        return asyncio.sleep(0, self.files).__await__()


class Here:
    """Implements `Channel`.

    left   tokens that a replica says before it is lost, by its name; next: those of the next that is asked
    hangs_then   it is not lost then, but hangs
    lose_files   replicas do not get the files that are put next; unreachable: no replica says what it holds
    hanging  replicas that say nothing from now on, neither what they hold nor to calls that they have
    most   calls with which a replica does not say what it holds, since Serve lets the question wait; open: those it has
    calls  how many each has had; fetched: the files that were put; sent: what each call was
    """

    def __init__(self, plan: ReplicaPlan, names: Sequence[str]):
        self.replicas = {name: Replica(plan.json, name) for name in names}
        self.left, self.calls, self.fetched = dict[str, int](), Counter[str](), list[Mapping[str, bytes]]()
        self.next: int | None = None
        self.sent, self.lose_files, self.unreachable = list[Call](), False, False
        self.hanging, self.most, self.open = set[str](), 10**9, Counter(dict.fromkeys(names, 0))
        self.hangs_then = False

    def put(self, files: Mapping[str, bytes]) -> Parcel:
        self.fetched.append(files)
        lost, self.lose_files = self.lose_files, False
        return Parcel(files, lost)

    async def answer(self, order: Order, call: str, files: Sequence[Any]) -> AsyncGenerator[str]:
        replica = self._first(order)
        self.sent.append(Call.of(call))
        if self.next is not None:
            self.left[replica.name], self.next = self.next, None
        self.open[replica.name] += 1
        try:
            async with aclosing(replica.answer(call, files)) as texts:
                async for text in texts:
                    if replica.name in self.hanging:
                        await asyncio.Event().wait()
                    reply, left = Reply.of(text), self.left.get(replica.name)
                    if left is not None and (piece := reply.piece) is not None:
                        self.left[replica.name] = max(0, left - len(piece.tokens))
                        if not self.left[replica.name]:
                            piece = replace(
                                piece, tokens=piece.tokens[:left], logprobs=piece.logprobs[:left], finish=None
                            )
                            text = replace(reply, piece=piece).json
                    yield text
                    if left is not None and not self.left[replica.name]:
                        if not self.hangs_then:
                            raise Lost("it died")
                        self.hanging.add(replica.name)
                        await asyncio.Event().wait()
        finally:
            self.open[replica.name] -= 1

    def states(self) -> list[State | None]:
        if self.unreachable:
            raise Lost("nobody can be asked")
        silent = self.hanging | {name for name, calls in self.open.items() if calls >= self.most}
        present = self.replicas.items()
        return [None if name in silent else State.of(asyncio.run(one.state())) for name, one in present]

    def close(self) -> None:
        for replica in self.replicas.values():
            asyncio.run(replica.engine.aclose())
            replica.remove_folder()

    def _first(self, order: Order) -> Replica:
        names = [name for name in self.replicas if self.left.get(name, 1) > 0]
        unnamed = [name for name in names if name not in order]
        ranked = [other for name in (*order, None) for other in ([name] if name in names else unnamed * (name is None))]
        if not ranked:
            raise Lost("there is none")
        self.calls[ranked[0]] += 1
        return self.replicas[ranked[0]]


@contextmanager
def gateway(base: Path, store: Path, data: Path, names: Sequence[str] = ("a", "b"), **more: Any) -> Iterator[Any]:
    """A server in this process whose answers replicas make, and their channel. more: settings."""
    service = open_service(base, store, data, **more)
    settings = service.settings
    channel = Here(ReplicaPlan.of(settings, service.model, threads=1), names)
    placement = Placement(settings.rows, settings.adapters_in_memory)
    replicas = Replicas(service.engine, service.tenants, channel, placement, channel.close)
    replicas.pause, service.guards.metrics.backends = 0.001, replicas.states
    service = replace(service, settings=replace(settings, on="ray"), holder=replicas, backend=replicas)
    app = create_app(service)
    with TestClient(app, base_url="http://127.0.0.1:8000", client=("127.0.0.1", 50000)) as client:
        yield InProcess(service, client), channel
