"""From a request to its answers: the adapter of its model's name, and what comes of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Collection, Iterator, Sequence
from contextlib import aclosing, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from anyio import CancelScope, to_thread

from halka.engine import Answer, Request
from halka.engine.logprobs import TokenLogprob
from halka.server.errors import ApiError, unknown_model
from halka.server.guards.access import Caller
from halka.server.guards.usage import cached_tokens
from halka.server.service import Service
from halka.util.errors import UnknownAdapterError

if TYPE_CHECKING:
    from halka.server.answers.tools import Call


@dataclass(frozen=True)
class Delta:
    """What one of a request's answers has got more: text, a call, tokens. The last has its `finish` alone."""

    answer: Answer
    text: str = ""
    call: Call | None = None
    logprobs: Sequence[TokenLogprob] = ()
    finish: str | None = None

    @property
    def index(self) -> int:
        return self.answer.number


async def adapter_of(service: Service, caller: Caller, model: str) -> str | None:
    """What the engine calls the model that the caller names; None: the base. Raises ApiError for an unknown one."""
    if model == service.name:
        return None
    name = service.tenants.of(caller.tenant).engine_name(model)
    try:
        await to_thread.run_sync(service.tenants.get, name)
    except UnknownAdapterError:
        raise unknown_model(model) from None
    return name


async def deltas(
    service: Service,
    caller: Caller,
    request: Request,
    n: int = 1,
    *,
    pieces: bool = True,
    begun: set[Answer] | None = None,
) -> AsyncGenerator[Delta]:
    """What the request's `n` answers get, as they get it. Whoever stops reading cancels them. Raises what fails.

    Several tokens may come at once, if whoever reads is slower than the engine; without `pieces` all do, at the end.
    Whoever holds room for the answers already (`within_limits`) gives `begun`, to which those are added that begin.
    """
    answers: dict[Answer, tuple[int, int]] = {}  # letters and log probabilities passed on of each that has begun
    caller.answers.append(answers)
    limits = within_limits(caller, [request], n, answers) if begun is None else nullcontext()
    track = service.guards.metrics.track(request, n, answers, caller.since)
    with limits, track as tracked:
        async with aclosing(service.backend.follow(request, n, pieces=pieces)) as progress:
            async for answer in progress:
                letters, logprobs = answers.setdefault(answer, (0, 0))
                if begun is not None:
                    begun.add(answer)
                tracked.see(answer)
                finish, text, count = answer.finish, answer.text, len(answer.logprobs)
                if finish == "cancelled":
                    raise ApiError(503, "the server is closing", headers={"retry-after": "10"})
                if len(text) > letters or count > logprobs:
                    new = answer.logprobs[logprobs:count]
                    yield Delta(answer, text[letters:], logprobs=new)
                    answers[answer] = len(text), count
                if finish is not None:
                    yield Delta(answer, finish=finish)


@contextmanager
def within_limits(caller: Caller, requests: Sequence[Request], n: int, answers: Collection[Answer]) -> Iterator[None]:
    """Within the block the caller's key has room for `n` answers to each; what was read and made is spent at its end.

    Raises ApiError where the key's limits have no room for all of them.
    """
    lease, prompt = caller.lease, sum(len(request.prompt) for request in requests)
    lease.reserve(n * len(requests), prompt + sum(n * request.stopping.max_new_tokens for request in requests))
    try:
        yield
    except Exception:
        prompt = prompt if answers else 0  # what was refused was not read
        raise
    finally:
        lease.spend(prompt + sum(len(answer.tokens) for answer in answers))


async def merged(parts: Sequence[AsyncGenerator[Delta]]) -> AsyncGenerator[tuple[int, Delta]]:
    """What these generators yield, as it comes, each with its generator's number. All are closed at the end."""
    queue = asyncio.Queue[tuple[int, Delta | Exception | None]](len(parts))

    async def follow(number: int, part: AsyncGenerator[Delta]) -> None:
        end = None
        try:
            async with aclosing(part):
                async for delta in part:
                    await queue.put((number, delta))
        except Exception as error:
            end = error
        await queue.put((number, end))

    tasks = [asyncio.create_task(follow(number, part)) for number, part in enumerate(parts)]
    going = len(tasks)
    try:
        while going:
            number, item = await queue.get()
            if isinstance(item, Exception):
                raise item
            if item is None:
                going -= 1
            else:
                yield number, item
    finally:
        for task in tasks:
            task.cancel()
        with CancelScope(shield=True):  # a second cancellation would end them while they close
            await asyncio.gather(*tasks, return_exceptions=True)


def usage(requests: Sequence[Request], answers: Collection[Answer]) -> dict[str, Any]:
    """How many tokens were read and written; a prompt counts once, however many answers it has."""
    read = sum(len(request.prompt) for request in requests)
    written = sum(len(answer.tokens) for answer in answers)
    return {
        "prompt_tokens": read,
        "completion_tokens": written,
        "total_tokens": read + written,
        "prompt_tokens_details": {"cached_tokens": cached_tokens(answers)},
    }
