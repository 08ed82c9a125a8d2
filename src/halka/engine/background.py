"""`AsyncEngine`: an engine for coroutines. A thread of its own makes the steps while some answer is not finished."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import Future
from contextlib import aclosing
from queue import Empty, SimpleQueue
from typing import TypeVar

from halka.engine.engine import READING, Engine
from halka.engine.listeners import Listeners
from halka.engine.pulse import FIRST, Pulse
from halka.engine.request import Answer, Request
from halka.engine.residents import Held
from halka.util.errors import HalkaError

LOG = logging.getLogger(__name__)
T = TypeVar("T")


class AsyncEngine:
    """Lets coroutines of any event loop wait for the engine's answers.

    async with AsyncEngine(engine) as running:
        async for piece in running.stream(Request(prompt, adapter="support")):
            print(piece, end="")

    Beginnings and ends are seen at once; in between, many answers are seen the less often, with several new tokens.
    """

    def __init__(self, engine: Engine):
        self.engine = engine
        self._listeners, self._lock, self._closed = Listeners(), threading.Lock(), False
        self._pulse = Pulse()
        self._reading: Future[None] | None = None  # of an adapter's files, whose end is a call
        self._waits = False  # whether no step has anything to do before a call
        self._calls = SimpleQueue[Callable[[], object] | None]()  # that the thread makes between steps; None: the last
        self._thread = threading.Thread(target=self._steps, name="halka-engine", daemon=True)
        self._thread.start()

    async def answers(self, request: Request, n: int = 1) -> list[Answer]:
        """The `n` answers to a request, when all are finished. Raises what made one fail."""
        answers = await self._submit(request, n)
        async with aclosing(self._progress(answers, pieces=False)) as progress:
            async for _ in progress:
                pass
        return answers

    async def follow(
        self, request: Request, n: int = 1, *, pieces: bool = True, written: Sequence[Sequence[int]] = ()
    ) -> AsyncGenerator[Answer]:
        """One of the `n` answers whenever it has become longer, and at its end. Raises what made one fail.

        written  the tokens that each answer has already, as `Engine.submit` takes them

        Whoever stops reading cancels those that are not finished. `Answer.finish` is the last that is set: a reader who
        sees it has the whole answer. Without `pieces` an answer comes with its first token and at its end alone.
        """
        answers = await self._submit(request, n, written)
        async with aclosing(self._progress(answers, pieces)) as progress:
            async for answer in progress:
                yield answer

    async def stream(self, request: Request) -> AsyncGenerator[str]:
        """The answer's text in pieces, as it is made. Whoever stops reading cancels it. Raises what made it fail."""
        shown = 0
        async with aclosing(self.follow(request)) as progress:
            async for answer in progress:
                text = answer.text
                if len(text) > shown:
                    yield text[shown:]
                    shown = len(text)

    async def call(self, function: Callable[[], T]) -> T:
        """What a function returns that the thread calls between two steps. Raises what it raises."""
        future = Future[T]()

        def call() -> None:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(function())
                except BaseException as error:
                    future.set_exception(error)

        if not self._call(call):
            raise HalkaError("the engine is closed")
        return await asyncio.wrap_future(future)

    async def load(self, name: str) -> None:
        """Load an adapter before a request wants it. Raises what is wrong with it."""
        await asyncio.wrap_future(await self.call(lambda: self.engine.adapters.load(name)))

    async def room(self, name: str | None) -> int | None:
        """Positions for a text with this adapter, which is loaded for it: its virtual tokens count; None: no end.

        Raises what is wrong with the adapter.
        """
        if name is not None:
            await self.load(name)
        return await self.call(lambda: self.engine.room(name))

    def held(self, name: str) -> Held:
        """What is in memory of an adapter, at a glance."""
        return self.engine.adapters.residents.held(name)

    @property
    def alive(self) -> bool:
        """Whether the thread runs, and takes requests."""
        return not self._closed and self._thread.is_alive()

    def stalls(self, timeout: float) -> bool:
        """Whether the thread has been in one step for longer than so many seconds, and than twice its longest so far.

        In the first step, for twice as long. A long prompt is many steps, and so are an adapter's files that are waited
        for.
        """
        return self._pulse.stalls(timeout * (1 if self.engine.steps else FIRST))

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

    async def _submit(self, request: Request, n: int, written: Sequence[Sequence[int]] = ()) -> list[Answer]:
        answers, matcher = list[Answer](), None
        if request.constraint is not None:  # in another thread: the engine's goes on with its steps
            matcher = await asyncio.to_thread(self.engine.constraints.matcher, request.constraint)
        try:
            await self.call(lambda: answers.extend(self.engine.submit(request, n, matcher, written)))
        except asyncio.CancelledError:  # perhaps the thread is about to submit: cancel afterwards
            self._call(lambda: [self.engine.cancel(answer) for answer in answers])
            raise
        return answers

    async def _progress(self, answers: list[Answer], pieces: bool) -> AsyncGenerator[Answer]:
        """One of the answers to a request, as `follow` says."""
        changed = self._listeners.add(answers, pieces)
        going = dict.fromkeys(answers, 0)  # tokens of each that were seen
        try:
            while going:
                for answer, seen in [*going.items()]:
                    if answer.finish is not None:
                        del going[answer]
                        if answer.error is not None:
                            raise answer.error
                        yield answer
                    elif (count := len(answer.tokens)) > seen and (pieces or not seen):
                        going[answer] = count
                        yield answer
                if going:
                    await changed.wait()
                    changed.clear()
        finally:
            self._leave(answers)

    def _call(self, call: Callable[[], object]) -> bool:
        """Let the thread make this call before its next step. Returns whether it can."""
        with self._lock:
            if not self._closed:
                self._calls.put(call)
            return not self._closed

    def _leave(self, answers: list[Answer]) -> None:
        for answer in answers:
            if answer.finish is None:
                self._call(lambda answer=answer: self.engine.cancel(answer))
        self._listeners.remove(answers)

    def _steps(self) -> None:
        try:
            while (call := self._next()) is not None:
                try:
                    with self._pulse.step():
                        call()
                        if call != self._step:
                            self._waits = False
                            if not self.engine.busy:
                                self.engine.advance()  # lets go of adapters that the call removed
                    self._listeners.notify()
                except Exception as error:  # it fails who waits; the next requests may do better
                    self._fail(error)
        finally:
            with self._lock:
                self._closed = True
            try:
                self.engine.close()
            finally:
                self._listeners.end(HalkaError("the engine is closed"))

    def _next(self) -> Callable[[], object] | None:
        try:
            if not self.engine.busy:
                return self._calls.get()
            return self._calls.get(self._waits, READING)
        except Empty:
            return self._step

    def _step(self) -> None:
        reading = self.engine.advance()
        self._waits = reading is not None
        if reading is not None and reading is not self._reading:
            reading.add_done_callback(lambda _: self._calls.put(_nothing))
            self._reading = reading

    def _fail(self, error: Exception) -> None:
        try:
            self.engine.fail(error)
        except Exception:
            LOG.exception("the engine cannot give its answers up")
        self._listeners.end(error)


def _nothing() -> None:
    """The call that is a step's occasion alone."""
