"""Replicas in this process behind a server: the engines are real, Ray is not there, and each may be lost on purpose."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

from halka.server import create_app
from halka.server.backends.replicas.backend import Replicas
from halka.server.backends.replicas.channel import Lost
from halka.server.backends.replicas.placement import Order, Placement
from halka.server.backends.replicas.plan import Plan
from halka.server.backends.replicas.replica import Replica
from halka.server.backends.replicas.wire import Reply, State
from serving_for_tests import InProcess, open_service


class Parcel:
    """Files that come when they are waited for."""

    def __init__(self, files: Mapping[str, bytes]):
        self.files = files

    def __await__(self) -> Any:
        return asyncio.sleep(0, self.files).__await__()


class Here:
    """Implements `Channel`.

    left   tokens that a replica says before it is lost, by its name; next: those of the next that is asked
    calls  how many each has had; fetched: the files that were put
    """

    def __init__(self, plan: Plan, names: Sequence[str]):
        self.replicas = {name: Replica(plan.json, name) for name in names}
        self.left, self.calls, self.fetched = dict[str, int](), Counter[str](), list[Mapping[str, bytes]]()
        self.next: int | None = None

    def put(self, files: Mapping[str, bytes]) -> Parcel:
        self.fetched.append(files)
        return Parcel(files)

    async def answer(self, order: Order, call: str, files: Sequence[Any]) -> AsyncGenerator[str]:
        replica = self._first(order)
        if self.next is not None:
            self.left[replica.name], self.next = self.next, None
        async for text in replica.answer(call, files, order):
            yield text
            if (piece := Reply.of(text).piece) is not None and replica.name in self.left:
                self.left[replica.name] -= len(piece.tokens)
            if self.left.get(replica.name, 1) <= 0:
                raise Lost("it died")

    async def room(self, order: Order, adapter: str, files: Sequence[Any]) -> str:
        return await self._first(order).room(adapter, files, order)

    def states(self) -> list[State]:
        return [State.of(asyncio.run(replica.state())) for replica in self.replicas.values()]

    def close(self) -> None:
        for replica in self.replicas.values():
            asyncio.run(replica.aclose())

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
    channel = Here(Plan.of(settings, service.model, threads=1), names)
    placement = Placement(settings.rows, settings.adapters_in_memory)
    replicas = Replicas(service.engine, service.tenants, channel, placement, channel.close)
    replicas.pause, service.guards.metrics.backends = 0.001, replicas.states
    service = replace(service, settings=replace(settings, on="ray"), holder=replicas, backend=replicas)
    app = create_app(service)
    with TestClient(app, base_url="http://127.0.0.1:8000", client=("127.0.0.1", 50000)) as client:
        yield InProcess(service, client), channel
