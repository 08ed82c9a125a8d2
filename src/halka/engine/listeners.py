"""`Listeners`: the coroutines that wait for an engine's answers, and when each of them is woken."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass

from halka.engine.request import Answer

PIECES = 250  # of all answers a second: each wakes a coroutine, on the processor that the engine needs


@dataclass(frozen=True)
class _Listener:
    """Whom an answer wakes: at every piece of it, or at its first token and its end alone."""

    loop: asyncio.AbstractEventLoop
    event: asyncio.Event
    pieces: bool


class Listeners:
    """Who waits for which answer, in any event loop.

    Beginnings and ends are seen at once; in between, the more answers are written the less often they are seen. One
    that waits for its first token takes no part in this.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._of: dict[Answer, _Listener] = {}
        self._lock, self._clock, self._notified = threading.Lock(), clock, 0.0

    def add(self, answers: Iterable[Answer], pieces: bool) -> asyncio.Event:
        """What is set in the running loop whenever there is something to see of these answers, until `remove`.

        pieces  whether that is every piece, or the first token and the end alone
        """
        listener = _Listener(asyncio.get_running_loop(), asyncio.Event(), pieces)
        with self._lock:
            self._of |= dict.fromkeys(answers, listener)
        return listener.event

    def remove(self, answers: Iterable[Answer]) -> None:
        """Nobody waits for these any longer."""
        with self._lock:
            for answer in answers:
                self._of.pop(answer, None)

    def __len__(self) -> int:
        """For how many answers somebody waits."""
        return len(self._of)

    def end(self, error: Exception) -> None:
        """Nobody waits any longer: what is not finished ends with this error."""
        with self._lock:
            for answer in self._of:
                if answer.finish is None:
                    answer.error, answer.finish = error, "error"
        self.notify()

    def notify(self) -> None:
        """Wake those who have something to see."""
        events = dict[asyncio.AbstractEventLoop, set[asyncio.Event]]()
        with self._lock:
            now = self._clock()
            streams = sum(listener.pieces and len(answer.tokens) > 0 for answer, listener in self._of.items())
            if everybody := now >= self._notified + streams / PIECES:
                self._notified = now
            for answer, listener in self._of.items():
                piece = everybody and listener.pieces and answer.tokens
                if piece or answer.finish is not None or len(answer.tokens) == 1:
                    events.setdefault(listener.loop, set()).add(listener.event)
        for loop, waited_for in events.items():
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(_set, waited_for)


def _set(events: Iterable[asyncio.Event]) -> None:
    for event in events:
        event.set()
