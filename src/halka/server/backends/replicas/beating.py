"""`beating`: what comes, and a beat whenever nothing came for a while: who waits knows that somebody is there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TypeVar

T = TypeVar("T")


async def beating(items: AsyncGenerator[T], seconds: float) -> AsyncGenerator[T | None]:
    """The items as they come, and None whenever none has come for so many seconds. Raises what they raise.

    Whoever stops reading ends them.
    """
    queue = asyncio.Queue[tuple[T] | None]()  # None: they have ended

    async def fill() -> None:
        try:
            async with aclosing(items):
                async for item in items:
                    queue.put_nowait((item,))
        finally:
            queue.put_nowait(None)

    filling = asyncio.create_task(fill())
    try:
        while True:
            try:
                async with asyncio.timeout(seconds):
                    entry = await queue.get()
            except TimeoutError:
                yield None
                continue
            if entry is None:
                break
            yield entry[0]
        await filling
    finally:
        filling.cancel()
        await asyncio.gather(filling, return_exceptions=True)
