"""`Vllm`: the backend that lets vLLM processes answer for LoRAs, and for the bare base.

It declines whatever vLLM does not answer as the engine does: other families, schemas, what is longer than it reads,
what it refuses. A process that is away is left out; where all are, requests fail: the engine does not stand in.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
import secrets
import time
from collections import Counter
from collections.abc import AsyncGenerator, Iterable, Iterator, Sequence
from contextlib import aclosing, contextmanager

from halka.engine import Answer, AsyncEngine, Request
from halka.server.backends.growing import Growing, ended_before, fail, grown
from halka.server.backends.router import Declined
from halka.server.backends.vllm.completions import body_of, pieces_of, unlike_engine
from halka.server.backends.vllm.loras import Loras, lora_of
from halka.server.backends.vllm.process import Forgotten, LoraRefused, Process, Refused, Unavailable
from halka.server.errors import ApiError
from halka.server.guards.metrics import BackendState

LOOK = 60.0  # seconds
log = logging.getLogger("halka.server")


class Vllm:
    """Answers by vLLM processes, each request by the one with the fewest under way.

    base  whether they answer for the bare base, too
    look  seconds between looks for adapters that were removed, or that nobody asks for
    """

    def __init__(self, engine: AsyncEngine, loras: Loras, processes: Sequence[Process], base: bool):
        self.engine, self.loras, self.processes, self.base = engine, loras, processes, base
        self._key, self._cleaned, self.look = secrets.token_bytes(), -math.inf, LOOK
        self._tasks = set[asyncio.Task[None]]()
        self._needed = Counter[str | None]()  # LoRAs whose answers are under way

    async def follow(self, request: Request, n: int = 1, *, pieces: bool = True) -> AsyncGenerator[Answer]:
        """As `Backend.follow`. A process that fails before the first token is changed for another."""
        self.engine.engine.check(request, n)
        request = self.engine.engine.completed(request)
        if (reason := unlike_engine(request, n)) is not None:
            raise Declined(reason)
        id = await self._id(request.adapter)
        lora = None if id is None else lora_of(id)
        answers = [Growing(request, number, id, self.engine.engine) for number in range(n)]
        failed = list[Process]()
        with self._needing(lora):
            for _ in range(2 * len(self.processes)):  # each may have been started again
                process, body = await self._ready(request, n, lora, failed)
                try:
                    async with process.using(lora, self.loras.folder), aclosing(process.events(body)) as events:
                        async for event in events:
                            new = pieces_of(event, request.logprobs)
                            for answer in grown(answers, new, process.url, event.cached):
                                if pieces or answer.at_edge:
                                    yield answer.answer
                            if ended_before(answers):
                                break
                    if any(growing.answer.finish is None for growing in answers):
                        raise Unavailable("its answer has no end")
                    return
                except Refused as error:
                    raise self._left_to_the_engine(id, error) from None
                except Forgotten:
                    process.forget(lora)
                except Unavailable as error:
                    failed.append(process)
                    if all(growing.answer.finish is not None for growing in answers):
                        return  # only what follows an answer is missing
                    if fail(answers, error):
                        raise unavailable() from None
        raise unavailable()

    async def load(self, name: str) -> None:
        """Let every process that can be asked have the newest version of an adapter."""
        id = await self.loras.id_of(name)
        with self._needing(lora_of(id)):
            for process in self.processes:
                try:
                    await process.ready()
                    async with process.using(lora_of(id), self.loras.folder):
                        pass
                except Unavailable:
                    continue
                except Refused as error:
                    raise self._left_to_the_engine(id, error) from None

    def states(self) -> Iterable[BackendState]:
        """What the metrics say of each process."""
        for process in self.processes:
            yield BackendState(process.url, process.served is not None, len(process.loaded))

    async def aclose(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for process in self.processes:
            await process.aclose()

    @contextmanager
    def _needing(self, lora: str | None) -> Iterator[None]:
        """Within the block the LoRA's folder stays; afterwards perhaps nothing needs it."""
        self._needed[lora] += 1
        try:
            yield
        finally:
            self._needed[lora] -= 1
            if not self._needed[lora]:
                del self._needed[lora]
            self._clean()

    # ── inside ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def _id(self, adapter: str | None) -> str | None:
        """The id of the content that answers; None: the bare base. Raises Declined for what the engine is to answer."""
        if adapter is None and self.base:
            return None
        if adapter is None:
            raise Declined("the engine answers for the bare base")
        try:
            return await self.loras.id_of(adapter)
        except Declined:
            self._clean()  # perhaps it was a LoRA before
            raise

    async def _ready(
        self, request: Request, n: int, lora: str | None, failed: Sequence[Process]
    ) -> tuple[Process, dict[str, object]]:
        """A process to ask, and what. Raises ApiError where none can be asked, Declined for what is too long."""
        for process in self.processes:
            process.look()  # who is away comes back meanwhile
        for process in sorted(self.processes, key=lambda process: process.turn(lora)):
            if process in failed:
                continue
            try:
                served = await process.ready()
            except Unavailable:
                continue
            if len(request.prompt) + request.stopping.max_new_tokens > served.longest:
                raise Declined(f"vLLM reads at most {served.longest} tokens")
            salt = hashlib.blake2b(request.tenant.encode(), key=self._key).hexdigest()
            engine = self.engine.engine
            return process, body_of(request, n, lora or served.base, engine.ends, salt, engine.opening)
        raise unavailable()

    def _left_to_the_engine(self, id: str | None, error: Refused) -> Declined:
        """What vLLM refuses the engine answers; for a LoRA that it does not take, from now on."""
        fields = {"adapter": id} if (quotes := type(error) is Refused) else {"adapter": id, "reason": str(error)}
        message = "vLLM refuses what the engine answers"
        log.warning(message, exc_info=error if quotes else None, extra={"fields": fields})
        if id is not None and isinstance(error, LoraRefused):
            self.loras.decline(id, str(error))
        return Declined(str(error))

    def _clean(self) -> None:
        """Unload what no name means any more, or has no room, as soon as no answer needs it; at times look for adapters
        that were removed, or that nobody asks for.
        """
        due, full = time.monotonic() > self._cleaned + self.look, self.loras.can_trim(self._needed)
        if due or full or any(process.unwanted(self.loras.wanted) for process in self.processes):
            self._cleaned = time.monotonic() if due else self._cleaned
            task = asyncio.get_running_loop().create_task(self._unload(due))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _unload(self, due: bool) -> None:
        if due:
            await self.loras.forget()
        await self.loras.trim(self._needed)
        for process in self.processes:
            await process.unload(self.loras.wanted)
        await self.loras.remove_folders({lora for process in self.processes for lora in process.needed})


def unavailable() -> ApiError:
    """What clients get while no process can be asked; the log has the reason of each."""
    message = "vLLM, which answers for this model, cannot be asked now: try again later"
    return ApiError(503, message, code="backend_unavailable", headers={"retry-after": "10"})
