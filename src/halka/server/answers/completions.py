"""`/v1/completions`: texts that go on, one or many prompts at a time, whole or as they are made."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

from anyio import to_thread
from fastapi import APIRouter
from pydantic import Field
from starlette.responses import Response

from halka.engine import Answer, Request
from halka.server.answers.generation import Delta, adapter_of, deltas, merged, usage, within_limits
from halka.server.answers.generation_request import NEUTRAL, GenerationRequest
from halka.server.answers.prompts import text_tokens
from halka.server.answers.reply import respond
from halka.server.guards.access import Caller, CallerDep
from halka.server.requests import Count
from halka.server.service import Service, ServiceDep
from halka.server.wire import DONE, event

USUAL = 16  # new tokens where a request does not say, as OpenAI has it

Tokens = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1, fail_fast=True)]
Prompts = (
    str
    | Tokens
    | Annotated[list[str], Field(min_length=1, max_length=128, fail_fast=True)]
    | Annotated[list[Tokens], Field(min_length=1, max_length=128, fail_fast=True)]
)

router = APIRouter()


class CompletionRequest(GenerationRequest):
    neutral: ClassVar[dict[str, Any]] = {**NEUTRAL, "suffix": ("",), "echo": (False,), "best_of": (1,)}
    prompt: Prompts
    max_tokens: Count | None = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None


@router.post("/v1/completions")
async def completions(body: CompletionRequest, service: ServiceDep, caller: CallerDep) -> Response:
    """Go on with a text, or with several."""
    completion = await Completion.of(body, service, caller)
    return await respond(completion, body.stream, caller)


@dataclass
class Completion:
    """A request for completions as the engine has it, one of its own for each prompt."""

    service: Service
    body: CompletionRequest
    requests: list[Request]
    caller: Caller
    answers: dict[int, Answer] = field(default_factory=dict[int, Answer])
    id: str = field(default_factory=lambda: f"cmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    @classmethod
    async def of(cls, body: CompletionRequest, service: Service, caller: Caller) -> Completion:
        """Raises ApiError and HalkaError for what cannot be completed."""
        adapter = await adapter_of(service, caller, body.model)
        prompts = await to_thread.run_sync(_prompts, service.tokenizer, body.prompt)
        requests = [
            Request(
                prompt,
                adapter,
                sampling=body.sampling(service.settings.temperature),
                stopping=body.stopping(body.max_tokens or USUAL),
                tenant=caller.tenant,
                logprobs=body.logprobs,
            )
            for prompt in prompts
        ]
        return cls(service, body, requests, caller)

    async def deltas(self, *, pieces: bool) -> AsyncGenerator[tuple[int, Delta]]:
        """What the answers get, as they get it, or without `pieces` at their ends, each with its choice's number."""
        n, begun = self.body.n or 1, set[Answer]()
        with within_limits(self.caller, self.requests, n, begun):  # all or none
            options = {"pieces": pieces, "begun": begun}
            parts = [deltas(self.service, self.caller, request, n, **options) for request in self.requests]
            async with aclosing(merged(parts)) as numbered:
                async for number, delta in numbered:
                    index = number * n + delta.index
                    self.answers[index] = delta.answer
                    yield index, delta

    async def chunks(self) -> AsyncGenerator[bytes]:
        """The answers as events, the usage last where it is asked for."""
        lengths: dict[int, int] = {}
        async with aclosing(self.deltas(pieces=True)) as deltas:
            async for index, delta in deltas:
                choice = _choice(index, delta.text, self._logprobs(delta, lengths.get(index, 0)), delta.finish)
                lengths[index] = lengths.get(index, 0) + _length(choice)
                yield event(self._head() | {"choices": [choice]} | self.body.usage_so_far(self._usage))
        if self.body.usage_at_end:
            yield event(self._head() | {"choices": [], "usage": self._usage()})
        yield DONE

    async def whole(self) -> dict[str, Any]:
        """The answers as one object, when all are finished."""
        choices: dict[int, dict[str, Any]] = {}
        async with aclosing(self.deltas(pieces=False)) as deltas:
            async for index, delta in deltas:
                before = choices.setdefault(index, _choice(index, "", None, None))
                before["text"] += delta.text
                before["finish_reason"] = delta.finish
        for index, choice in choices.items():
            answer = self.answers[index]
            choice["logprobs"] = self._logprobs(Delta(answer, logprobs=answer.logprobs), 0)
        return self._head() | {"choices": [choices[index] for index in sorted(choices)], "usage": self._usage()}

    def _head(self) -> dict[str, Any]:
        head = {"id": self.id, "object": "text_completion", "created": self.created, "model": self.body.model}
        first = next(iter(self.answers.values()), None)
        return head | {"system_fingerprint": first and first.adapter_id}

    def _usage(self) -> dict[str, Any]:
        return usage(self.requests, [answer for _, answer in sorted(self.answers.items())])

    def _logprobs(self, delta: Delta, offset: int) -> dict[str, Any] | None:
        if self.body.logprobs is None or delta.finish is not None:
            return None
        return self.service.token_texts.for_completion(delta.logprobs, offset)


def _choice(index: int, text: str, logprobs: dict[str, Any] | None, finish: str | None) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}


def _length(choice: dict[str, Any]) -> int:
    """Characters of a choice's tokens, from which the offsets of the next ones count."""
    return sum(map(len, choice["logprobs"]["tokens"])) if choice["logprobs"] else 0


def _prompts(tokenizer: Any, prompt: Any) -> list[list[int]]:
    """Each prompt's tokens; a prompt may be token ids already."""
    if isinstance(prompt, str):
        return [text_tokens(tokenizer, prompt)]
    if isinstance(prompt[0], int):
        return [prompt]
    return [text_tokens(tokenizer, text) if isinstance(text, str) else text for text in prompt]
