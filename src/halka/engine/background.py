"""`AsyncEngine`: an engine for coroutines. A thread of its own makes the steps while some answer is not finished."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from dataclasses import replace

from halka.engine.engine import Engine
from halka.engine.request import Answer, Request


class AsyncEngine:
    """Lets coroutines of any event loop wait for the engine's answers.

    async with AsyncEngine(engine) as running:
        async for piece in running.stream(Request(prompt, adapter="support")):
            print(piece, end="")
    """

    def __init__(self, engine: Engine):
        self.engine = engine
        self._listeners: dict[Answer, tuple[asyncio.AbstractEventLoop, asyncio.Event]] = {}
        self._lock = threading.Lock()
        self._work, self._closed = threading.Event(), False
        self._thread = threading.Thread(target=self._steps, name="halka-engine", daemon=True)
        self._thread.start()

    async def answers(self, request: Request, n: int = 1) -> list[Answer]:
        """The `n` answers to a request, when all are finished. Raises what made one fail."""
        answers = await self._submit(request, n)
        try:
            for answer in answers:
                async for _ in self._progress(answer):
                    pass
        finally:
            self._leave(answers)
        return answers

    async def stream(self, request: Request) -> AsyncIterator[str]:
        """The answer's text in pieces, as it is made. Whoever stops reading cancels it. Raises what made it fail."""
        answers = await self._submit(request, 1)
        shown = 0
        try:
            async for answer in self._progress(answers[0]):
                text = answer.text
                if len(text) > shown:
                    yield text[shown:]
                    shown = len(text)
        finally:
            self._leave(answers)

    async def aclose(self) -> None:
        """End the thread and close the engine; answers that are not finished are cancelled."""
        self._closed = True
        self._work.set()
        await asyncio.to_thread(self._thread.join)
        self.engine.close()
        self._notify()

    async def __aenter__(self) -> AsyncEngine:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def _submit(self, request: Request, n: int) -> list[Answer]:
        answers = await asyncio.to_thread(self.engine.submit, replace(request), n)  # it waits for the step under way
        loop = asyncio.get_running_loop()
        with self._lock:
            self._listeners |= {answer: (loop, asyncio.Event()) for answer in answers}
        self._work.set()
        return answers

    async def _progress(self, answer: Answer) -> AsyncIterator[Answer]:
        """The answer, whenever it has become longer, and at its end."""
        _, event = self._listeners[answer]
        while answer.finish is None:
            await event.wait()
            event.clear()
            yield answer
        if answer.error is not None:
            raise answer.error
        yield answer

    def _leave(self, answers: list[Answer]) -> None:
        for answer in answers:
            if answer.finish is None:
                self.engine.cancel(answer)
        with self._lock:
            for answer in answers:
                self._listeners.pop(answer, None)

    def _steps(self) -> None:
        while not self._closed:
            self._work.wait()
            self._work.clear()
            while self.engine.busy and not self._closed:
                try:
                    self.engine.step()
                except (
                    Exception
                ) as error:  # a step that failed fails who waited for it; the next requests may do better
                    self.engine.fail(error)
                self._notify()

    def _notify(self) -> None:
        with self._lock:
            listeners = [*self._listeners.values()]
        for loop, event in listeners:
            if not loop.is_closed():
                loop.call_soon_threadsafe(event.set)
