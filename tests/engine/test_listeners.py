"""Who waits for an answer is woken when there is something to see, and the less often the more answers are written."""

from __future__ import annotations

import asyncio

from halka.engine.listeners import PIECES, Listeners
from halka.engine.request import Answer, Request


def test_those_that_wait_for_a_row_are_not_woken_and_slow_nobody_down():
    async def wait():
        now = [1000.0]
        listeners = Listeners(lambda: now[0])
        written, waiting = ([Answer(Request([5]), number) for number in range(count)] for count in (4, 256))
        woken = {answer: listeners.add([answer], pieces=True) for answer in (*written, *waiting)}

        async def step(tokens: int = 1) -> list[Answer]:
            for answer in written:
                answer.tokens += [7] * tokens
            for event in woken.values():
                event.clear()
            listeners.notify()
            await asyncio.sleep(0)  # the loop sets what it was asked to set
            return [answer for answer, event in woken.items() if event.is_set()]

        assert await step() == written
        assert await step() == []
        now[0] += 0.9 * len(written) / PIECES
        assert await step() == []
        now[0] += 0.2 * len(written) / PIECES
        assert await step() == written
        waiting[0].finish = "cancelled"
        assert await step() == [waiting[0]]
        listeners.remove([*written, *waiting[:-1]])
        listeners.end(RuntimeError("no such kernel"))
        assert waiting[-1].finish == "error"
        assert len(listeners) == 1

    asyncio.run(wait())
