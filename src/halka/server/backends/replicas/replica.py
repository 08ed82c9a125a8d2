"""`Replica`: an engine that answers the gateway's calls with the adapters that come with them."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import AsyncGenerator, Awaitable, Sequence
from contextlib import ExitStack, aclosing

from halka.engine import Answer, AsyncEngine
from halka.server.backends.growing import Piece
from halka.server.backends.replicas.beating import beating
from halka.server.backends.replicas.contents import Contents, Files
from halka.server.backends.replicas.plan import ReplicaPlan
from halka.server.backends.replicas.wire import Call, FilesLost, Reply, State
from halka.util.errors import HalkaError, OutOfMemoryError
from halka.util.ray_node import task_folder

BEAT = 5.0  # seconds without a reply after which a call's replica says that it is there
STALL = 0.4  # of the seconds after which a request ends: one step of the engine that takes longer stalls, so that
LEAST = 60.0  # another replica has the rest of them; at least so many seconds, in which kernels are compiled
HOPELESS = 2.0  # times as long, until another is to take its place
FAILURES = 3  # times that an engine fails, without an answer that ends, before another is to take its place
log = logging.getLogger("halka.server")


class Replica:
    """One replica. Every text that it takes or gives is JSON.

    plan      a `ReplicaPlan`'s JSON
    name      how the gateway knows it
    timeout   seconds that a step of the engine may take before it stalls
    beat      seconds without a reply after which each call gets one that has nothing

    Raises HalkaError for another base, or another version of Halka, than the gateway's.
    """

    def __init__(self, plan: str, name: str):
        self._folder = ExitStack()
        self.name, parsed = name, ReplicaPlan(**json.loads(plan))
        self.timeout, self.beat = max(LEAST, STALL * parsed.others["timeout"]), BEAT
        self.contents = Contents(self._folder.enter_context(task_folder()) / "adapters")
        self.engine = AsyncEngine(parsed.engine(self.contents))
        residents = self.engine.engine.adapters.residents
        self.contents.loaded = lambda id: residents.held(id).loaded
        self._failures, self._failure = 0, None

    async def answer(self, call: str, files: Sequence[Awaitable[Files]] = ()) -> AsyncGenerator[str]:
        """Replies to a `Call`, as its answers are made, and beats. Whoever stops reading cancels them.

        files  the adapter's, in a list: Serve would wait for them before the call if they stood alone
        """
        async with aclosing(beating(self._replies(call, files), self.beat)) as replies:
            async for reply in replies:
                yield (Reply(stalled=self.stalled) if reply is None else reply).json

    async def state(self) -> str:
        """Its `State`."""
        engine = self.engine.engine
        residents, running = engine.adapters.residents, len(engine.schedule.running)
        holds = [version.name or "" for version in [*residents.versions]]
        numbers = running, engine.waiting, residents.loads, residents.evictions
        return State(self.name, os.getpid(), holds, *numbers, self.stalled).json

    @property
    def stalled(self) -> bool:
        """Whether the engine makes no step any more, as far as one can see."""
        return self.engine.stalls(self.timeout)

    def remove_folder(self) -> None:
        """Remove the folder of adapters: no call may come then."""
        self._folder.close()

    def check_health(self) -> None:
        """Raises RuntimeError where the engine has stopped, stalls or only fails: Serve starts another replica then."""
        if not self.engine.alive:
            raise RuntimeError("the engine has stopped")
        if self.engine.stalls(HOPELESS * self.timeout):
            raise RuntimeError(f"the engine has been in one step for more than {HOPELESS * self.timeout:g} s")
        if self._failures >= FAILURES:
            raise RuntimeError(f"the engine failed {self._failures} times, and made no answer meanwhile")

    # ── inside ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def _replies(self, call: str, files: Sequence[Awaitable[Files]]) -> AsyncGenerator[Reply]:
        try:
            request = (parsed := Call.of(call)).request
            if not parsed.n:
                yield Reply(self.name, stalled=self.stalled)
                assert request.adapter is not None
                async with self.contents.using(request.adapter, next(iter(files), None)):
                    yield Reply(room=await self.engine.room(request.adapter))
                return
            held = request.adapter is None or self.contents.loaded(request.adapter)
            yield Reply(self.name, held=held, stalled=self.stalled)
            sent = dict(enumerate(map(len, parsed.written)))  # tokens of each answer that the gateway has
            async with (
                self.contents.using(request.adapter, next(iter(files), None)),
                aclosing(
                    self.engine.follow(request, parsed.n, pieces=parsed.pieces, written=parsed.written)
                ) as answers,
            ):
                async for answer in answers:
                    before = len(parsed.written[answer.number]) if parsed.written else 0
                    piece = _piece(answer, sent.get(answer.number, 0), before)
                    sent[answer.number] = sent.get(answer.number, 0) + len(piece.tokens)
                    if piece.tokens or piece.finish is not None:
                        yield Reply(piece=piece, cached=answer.cached)
            self._failures, self._failure = 0, None
        except Exception as error:
            yield self._failed(error)

    def _failed(self, error: Exception) -> Reply:
        """The reply to a call that this happened to. A step that fails under several calls counts once."""
        if not self.engine.alive:
            return Reply.failed(RuntimeError(f"the engine has stopped ({error})"))
        if isinstance(error, OutOfMemoryError) or not isinstance(error, HalkaError | FilesLost):
            log.error("the engine failed", exc_info=error)
            self._failures, self._failure = self._failures + (error is not self._failure), error
        return Reply.failed(error)


def _piece(answer: Answer, sent: int, before: int) -> Piece:
    """What an answer has more than `sent` tokens; the first `before`, another engine's, have no log probabilities.

    The engine goes on with the answer meanwhile, and sets its end last.
    """
    finish, logprobs = answer.finish, answer.logprobs[sent - before :]
    tokens = answer.tokens[sent:] if answer.request.logprobs is None else answer.tokens[sent : sent + len(logprobs)]
    return Piece(answer.number, tokens, logprobs, finish)
