"""Who takes documents in, or waits for that, keeps nobody from searching."""

from __future__ import annotations

import asyncio
import threading

from embedder_for_tests import WordEmbedder
from halka.server.resources.library import Library


def test_searches_go_on_while_a_removal_waits_for_documents():
    library, begun, taken_in = Library(WordEmbedder()), threading.Event(), threading.Event()

    def take_in() -> None:
        begun.set()
        taken_in.wait(60)

    async def all_at_once() -> None:
        reading = asyncio.create_task(library.read(take_in))
        await asyncio.to_thread(begun.wait, 60)
        removal = asyncio.create_task(library.alone(lambda: None))
        try:
            while not library._reading.statistics().tasks_waiting:
                await asyncio.sleep(0.005)
            assert await asyncio.wait_for(library.search(lambda: "a passage"), 20) == "a passage"
            assert not removal.done()
        finally:
            taken_in.set()
        await asyncio.gather(reading, removal)

    asyncio.run(all_at_once())
