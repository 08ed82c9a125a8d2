"""`Threads`: what blocks runs in threads, so many at a time for each kind of work.

Managers' files and locks, searches, and documents that are taken in have threads of their own, so that no number of
uploads keeps anybody from an answer, and the engine has the processor's cores.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from anyio import CapacityLimiter, to_thread

T = TypeVar("T")

READERS, MANAGERS = 4, 8


class Workers:
    """So many threads for one kind of work; more calls wait for their turn."""

    def __init__(self, threads: int):
        self.limiter = CapacityLimiter(threads)

    async def __call__(self, function: Callable[..., T], *arguments: object) -> T:
        """What a function returns that blocks."""
        return await to_thread.run_sync(function, *arguments, limiter=self.limiter)


class CollectionThreads:
    """The threads in which collections of one kind are opened.

    search  what embeds little
    ingest  what takes documents in, or reads all of a collection
    """

    def __init__(self) -> None:
        self.search, self.ingest = Workers(1), Workers(1)

    async def exclusive(self, function: Callable[..., T], *arguments: object) -> T:
        """What a function returns that removes a collection, while nobody searches one or takes documents in.

        Searches go on while it waits for documents; not while it removes.
        """
        async with self.ingest.limiter, self.search.limiter:
            return await to_thread.run_sync(function, *arguments)


class Threads:
    """The threads of a server, but for those that texts become tokens in.

    read    what users may look at: adapters, comparisons, usage
    manage  stores, uploads and jobs
    near    collections whose passages are in their own folder
    afar    those whose passages are at a place of their own, mostly a server of this machine or another, which may not
            answer for long: only these wait for it
    """

    def __init__(self) -> None:
        self.read, self.manage = Workers(READERS), Workers(MANAGERS)
        self.near, self.afar = CollectionThreads(), CollectionThreads()
