"""`AsyncEngine`: an engine for coroutines. A thread of its own makes the steps while some answer is not finished."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from contextlib import suppress
from queue import Empty, SimpleQueue

from halka.engine.engine import Engine
from halka.engine.request import Answer, Request
from halka.util.errors import HalkaError


class AsyncEngine:
    """Lets coroutines of any event loop wait for the engine's answers.

    async with AsyncEngine(engine) as running:
        async for piece in running.stream(Request(prompt, adapter="support")):
            print(piece, end="")
    """

    def __init__(self, engine: Engine):
        self.engine = engine
        self._listeners: dict[Answer, tuple[asyncio.AbstractEventLoop, asyncio.Event]] = {}
        self._lock, self._closed = threading.Lock(), False
        self._calls = SimpleQueue[Callable[[], object] | None]()  # that the thread makes between steps; None: the last
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
        with self._lock:
            if not self._closed:
                self._calls.put(None)
            self._closed = True
        await asyncio.to_thread(self._thread.join)

    async def __aenter__(self) -> AsyncEngine:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def _submit(self, request: Request, n: int) -> list[Answer]:
        submitted = Future[list[Answer]]()

        def submit() -> None:
            if submitted.set_running_or_notify_cancel():
                try:
                    submitted.set_result(self.engine.submit(request, n))
                except Exception as error:
                    submitted.set_exception(error)

        if not self._call(submit):
            raise HalkaError("the engine is closed")
        try:
            answers = await asyncio.wrap_future(submitted)
        except asyncio.CancelledError:
            submitted.add_done_callback(self._abandon)
            raise
        loop = asyncio.get_running_loop()
        with self._lock:
            self._listeners |= {answer: (loop, asyncio.Event()) for answer in answers}
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

    def _call(self, call: Callable[[], object]) -> bool:
        """Let the thread make this call before its next step. Returns whether it can."""
        with self._lock:
            if not self._closed:
                self._calls.put(call)
            return not self._closed

    def _abandon(self, submitted: Future[list[Answer]]) -> None:
        """Nobody waits for these answers any more."""
        if not submitted.cancelled() and submitted.exception() is None:
            self._leave(submitted.result())

    def _leave(self, answers: list[Answer]) -> None:
        for answer in answers:
            if answer.finish is None:
                self._call(lambda answer=answer: self.engine.cancel(answer))
        with self._lock:
            for answer in answers:
                self._listeners.pop(answer, None)

    def _steps(self) -> None:
        while True:
            try:
                call = self._calls.get(block=not self.engine.busy)
            except Empty:
                call = self._step
            if call is None:
                break
            call()
        self.engine.close()
        self._notify()

    def _step(self) -> None:
        try:
            self.engine.step()
        except Exception as error:  # a step that failed fails who waited for it; the next requests may do better
            self.engine.fail(error)
        self._notify()

    def _notify(self) -> None:
        with self._lock:
            listeners = [*self._listeners.values()]
        for loop, event in listeners:
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(event.set)
