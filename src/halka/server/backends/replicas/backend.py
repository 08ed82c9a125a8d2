"""`Replicas`: the backend that lets replicas of the engine answer. The gateway's own engine answers nothing then.

A name means a content at its request, and replicas know contents alone: a replaced adapter answers with its new version
at once. What a replica has begun and does not end, another goes on with, token for token as after a preemption.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from anyio import to_thread

from halka.core import AdaptedModel
from halka.engine import Answer, AsyncEngine, Engine, Request
from halka.engine.adapters import Source
from halka.engine.residents import Held
from halka.engine.sampling import new_seed
from halka.server.backends.growing import Growing, fail, grown
from halka.server.backends.replicas.channel import Channel
from halka.server.backends.replicas.deployment import Deployment
from halka.server.backends.replicas.placement import Placed, Placement
from halka.server.backends.replicas.watch import Watch
from halka.server.backends.replicas.wire import UNSAID, Call, EngineFailed, FilesLost, Hangs, Lost, Reply, State
from halka.server.errors import ApiError
from halka.server.guards.metrics import BackendState
from halka.server.resources.adapter_files import ALLOWED, close, content_id, opened_files
from halka.server.settings import ServerSettings
from halka.storage.save_load import README
from halka.util.errors import HalkaError, UnknownAdapterError

TRIES = 6  # replicas that may be lost under one answer
FAILURES = 2  # of these, whose engine may fail: perhaps it is the request
REPEATS = 3  # times that an adapter may be replaced while its files are read
PAUSE = 0.1  # seconds before the first of these is changed for another; twice as long before each next
SENT = 64  # adapters whose files are kept for replicas
log = logging.getLogger("halka.server")


class Replicas:
    """Answers by replicas.

    engine   the gateway's own, which checks requests and ends texts
    store    where adapters are, by name
    channel  asks the replicas
    close    ends them
    """

    def __init__(
        self, engine: AsyncEngine, store: Source, channel: Channel, placement: Placement, close: Callable[[], None]
    ):
        self.engine, self.store, self.channel, self.placement, self.close = engine, store, channel, placement, close
        self.watch, self.pause = Watch(channel, placement), PAUSE
        self._files, self._lock = OrderedDict[str, Any](), threading.Lock()

    async def follow(self, request: Request, n: int = 1, *, pieces: bool = True) -> AsyncGenerator[Answer]:
        """As `AsyncEngine.follow`."""
        self.engine.engine.check(request, n)
        id, files = await self._content(request.adapter)
        sent, owner = _of_content(request, id), _owner(request.adapter)
        answers = [Growing(request, number, id, self.engine.engine) for number in range(n)]
        lost, failures = Lost("no replica was asked"), 0
        for attempt in range(TRIES):
            await self._before(attempt)
            if isinstance(lost, FilesLost):
                id, files = await self._content(request.adapter, id)
            try:
                written = [growing.answer.tokens for growing in answers]
                call = Call(sent, n, pieces, written if any(written) else ())
                with self.placement.place(id, n, owner) as placed:
                    async with aclosing(self._replies(placed, call, files, _names(request, id))) as replies:
                        async for reply in replies:
                            new = () if reply.piece is None else (reply.piece,)
                            for piece in new:
                                if not written[piece.index]:
                                    answers[piece.index].answer.cached = reply.cached
                            for growing in grown(answers, new, placed.label):
                                if pieces or growing.at_edge:
                                    yield growing.answer
                if all(growing.answer.finish is not None for growing in answers):
                    return
                raise Lost("its answer has no end")
            except Lost as error:
                lost, failures = error, failures + isinstance(error, EngineFailed)
                self._lose(placed, error)
                if all(growing.answer.finish is not None for growing in answers):
                    return  # only what follows an answer is missing
                if failures == FAILURES:
                    break
        fail(answers, lost)
        raise unavailable()

    async def load(self, name: str) -> None:
        """Let a replica have an adapter."""
        await self.room(name)

    async def room(self, name: str | None) -> int | None:
        """As `Holder.room`, of a replica, which has loaded the adapter."""
        if name is None:
            return await self.engine.room(None)
        id, files = await self._content(name)
        assert id is not None
        call, room, failures = Call(Request([0], id), n=0), UNSAID, 0
        for attempt in range(TRIES):
            await self._before(attempt)
            with self.placement.place(id, 1, _owner(name)) as placed:
                try:
                    async with aclosing(self._replies(placed, call, files, {id: name})) as replies:
                        async for reply in replies:
                            room = reply.room if room == UNSAID else room
                    if room == UNSAID:
                        raise Lost("it did not answer")
                except Lost as error:
                    self._lose(placed, error)
                    failures += isinstance(error, EngineFailed)
                    if failures == FAILURES:
                        break
                    if isinstance(error, FilesLost):
                        _, files = await self._content(name, id)
                else:
                    return room
        raise unavailable()

    def held(self, name: str) -> Held:
        """What is in the replicas' memory of an adapter."""
        self.watch.refresh()
        if not self.placement.holds_of(_owner(name)):
            return Held()  # without a look at its files, which a list has thousands of
        try:
            id = content_id(self.store.get(name).folder)
        except (HalkaError, OSError):  # damaged, or removed: no replica answers with it any more
            return Held()
        loaded, answers = self.placement.held(id, _owner(name))
        return Held(loaded, False, answers)

    @property
    def alive(self) -> bool:
        """Whether it takes requests: a replica could be asked at the last look. A new one begins at times."""
        self.watch.look_at_times()
        return self.engine.alive and self.watch.reached

    def states(self) -> Iterable[BackendState]:
        """What the metrics say of each replica; it blocks."""
        self.watch.refresh(after=0.0)
        for slot, (seen, counts) in self.placement.by_slot().items():
            state = State("") if seen is None else seen.state
            numbers = {"running": state.running, "waiting": state.waiting, "met": counts["met"]}
            numbers |= {"missed": counts["missed"], "loads": state.loads, "evictions": state.evictions}
            up = seen is not None and not seen.hangs
            yield BackendState(f"replica-{slot}", up, len(state.holds), numbers)

    async def aclose(self) -> None:
        try:
            await self.watch.aclose()
            await self.engine.aclose()
        finally:
            await to_thread.run_sync(self.close)

    # ── inside ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def _before(self, attempt: int) -> None:
        """Wait for a moment before a request is sent again."""
        if attempt:
            await asyncio.sleep(self.pause * 2 ** (attempt - 1))

    async def _replies(
        self, placed: Placed, call: Call, files: Sequence[Any], names: dict[str, str]
    ) -> AsyncGenerator[Reply]:
        """A replica's replies to a call. Raises Lost, and what is wrong with the request."""
        async with aclosing(self.channel.answer(placed.order, call.json, files)) as texts:
            while True:
                async with self.watch.waiting(placed):
                    text = await anext(texts, None)
                if text is None:
                    return
                reply = Reply.of(text)
                reply.raise_error(names)
                if reply.replica is not None:
                    placed.at(reply.replica, reply.held)
                placed.heard(reply.stalled)
                if reply.piece is not None and reply.piece.finish not in (None, "stop", "length"):
                    raise Lost(f"it ended the answer: {reply.piece.finish}")
                yield reply

    def _lose(self, placed: Placed, error: Lost) -> None:
        """Ask another than this replica, for now."""
        log.warning("a replica was lost", extra={"fields": {"replica": placed.label, "reason": str(error)}})
        if isinstance(error, EngineFailed):
            self.placement.avoid(placed.replica)
        elif not isinstance(error, FilesLost | Hangs):
            self.placement.lose(placed.replica)

    async def _content(self, adapter: str | None, lost: str | None = None) -> tuple[str | None, Sequence[Any]]:
        """The id of what an adapter's name means now, and its files as replicas get them, in a list.

        lost  the id whose files replicas do not get any more: they are put anew

        Raises HalkaError where `lost` is not what the name means now.
        """
        if adapter is None:
            return None, ()
        with self._lock:
            self._files.pop(lost or "", None)
        id, files = await to_thread.run_sync(self._kept_files, adapter)
        if lost is not None and id != lost:
            raise HalkaError(f"adapter {adapter!r} was replaced meanwhile: send the request again")
        return id, [files]

    def _kept_files(self, adapter: str) -> tuple[str, Any]:
        for _ in range(REPEATS):
            folder = self.store.get(adapter).folder
            try:
                id = content_id(folder)
                with self._lock:
                    kept = self._files.get(id)
                if kept is not None:
                    break
                opened = opened_files(folder, {*ALLOWED} - {README})
                try:
                    files = {name: file.read() for name, file in opened.items()}
                finally:
                    close(opened)
                if content_id(folder) == id:
                    kept = self.channel.put(files)
                    break
            except FileNotFoundError:
                raise UnknownAdapterError(f"adapter {adapter!r} was removed meanwhile") from None
        else:
            raise HalkaError(f"adapter {adapter!r} is replaced again and again: send the request again")
        with self._lock:
            self._files[id] = kept
            self._files.move_to_end(id)
            while len(self._files) > SENT:
                self._files.popitem(last=False)
        return id, kept


def open_replicas(settings: ServerSettings, model: AdaptedModel, engine: Engine, store: Source) -> Replicas:
    """The replicas that the settings name, when they run. Raises HalkaError as `Deployment`."""
    deployment = Deployment(settings, model)
    placement = Placement(settings.rows, settings.adapters_in_memory)
    return Replicas(AsyncEngine(engine), store, deployment.channel, placement, deployment.close)


def _of_content(request: Request, id: str | None) -> Request:
    """The request as a replica gets it: the adapter by its id, and a seed, which another replica goes on with."""
    sampling = request.sampling
    if not sampling.greedy and sampling.seed is None:
        sampling = replace(sampling, seed=new_seed())
    return replace(request, adapter=id, sampling=sampling)


def _owner(adapter: str | None) -> str:
    """The tenant whose adapter it is, of its "tenant/name"."""
    return (adapter or "").partition("/")[0]


def _names(request: Request, id: str | None) -> dict[str, str]:
    return {} if id is None or request.adapter is None else {id: request.adapter}


def unavailable() -> ApiError:
    """What clients get where replica after replica is lost; the log has the reason of each."""
    message = "the replicas, which answer, cannot be asked now: try again later"
    return ApiError(503, message, code="backend_unavailable", headers={"retry-after": "10"})
