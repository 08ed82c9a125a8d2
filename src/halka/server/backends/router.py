"""`Backend`: whoever makes answers, as the engine does. `Router`: each request to the first backend that takes it.

A backend declines what the engine would answer otherwise than it does; a `Holder` comes last and declines nothing.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, aclosing, suppress
from typing import Protocol

from halka.engine import Answer, Request
from halka.engine.residents import Held


class Backend(Protocol):
    """What the server asks of whoever makes answers."""

    def follow(self, request: Request, n: int = 1, *, pieces: bool = True) -> AsyncGenerator[Answer]:
        """One of the `n` answers whenever it has become longer, and at its end, as `AsyncEngine.follow`.

        Raises Declined, before the first answer, for a request that the next backend is to answer.
        """
        ...

    async def load(self, name: str) -> None:
        """Load an adapter before a request wants it. Raises Declined for one that the next backend is to answer."""
        ...

    async def aclose(self) -> None:
        """Give everything back."""
        ...


class Holder(Backend, Protocol):
    """A backend that answers for every adapter: `AsyncEngine`, or replicas of its engine."""

    async def room(self, name: str | None) -> int | None:
        """Positions for a text with this adapter, which is loaded for it; None: no end. Raises what is wrong."""
        ...

    def held(self, name: str) -> Held:
        """What is in memory of an adapter; it may block."""
        ...

    @property
    def alive(self) -> bool:
        """Whether it takes requests."""
        ...


class Declined(Exception):
    """A backend leaves a request to the next, for the reason that this says."""


class Router:
    """The backend of a server that has several."""

    def __init__(self, others: Sequence[Backend], last: Holder):
        self.others, self.last = others, last

    async def follow(self, request: Request, n: int = 1, *, pieces: bool = True) -> AsyncGenerator[Answer]:
        for backend in (*self.others, self.last):
            with suppress(Declined):
                async with aclosing(backend.follow(request, n, pieces=pieces)) as answers:
                    async for answer in answers:
                        yield answer
                return

    async def load(self, name: str) -> None:
        """Load it where it is answered."""
        for backend in (*self.others, self.last):
            with suppress(Declined):
                return await backend.load(name)

    async def aclose(self) -> None:
        async with AsyncExitStack() as closing:  # one that fails to close keeps no other from it
            for backend in (*self.others, self.last):
                closing.push_async_callback(backend.aclose)
