"""From a request to the engine's answers: the adapter of its model's name, its prompt's tokens, its room."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any

from anyio import to_thread

from halka.data import chat
from halka.data.examples import Example, Message
from halka.data.tokens import encode_prompt
from halka.engine import Answer, Request
from halka.server.access import Caller
from halka.server.errors import unknown_model
from halka.server.service import Service
from halka.util.errors import DataError, UnknownAdapterError


@dataclass(frozen=True)
class Delta:
    """What one of a request's answers has got more. `finish` is set in its last, and only there."""

    index: int
    text: str
    answer: Answer
    finish: str | None = None


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


async def chat_prompt(service: Service, messages: Sequence[dict[str, Any]]) -> list[int]:
    """The tokens of a conversation in the base's chat template, with the beginning of its answer."""
    return await to_thread.run_sync(_chat_prompt, service.tokenizer, messages)


def _chat_prompt(tokenizer: Any, messages: Sequence[dict[str, Any]]) -> list[int]:
    turns = tuple(Message(message["role"], message["content"]) for message in messages)
    if tokenizer.chat_template is None:
        return encode_prompt(Example(turns, where="messages"), tokenizer)
    text = chat.write([turns], tokenizer, generation_prompt=True)[0]
    if isinstance(text, DataError):
        raise text
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


def new_tokens(service: Service, prompt: Sequence[int], asked: int | None) -> int:
    """How many tokens an answer may have: as asked, else as set, in what the prompt leaves."""
    if asked is not None or service.context is None:
        return asked or service.settings.new_tokens
    return max(1, min(service.settings.new_tokens, service.context - len(prompt)))


async def deltas(service: Service, request: Request, n: int) -> AsyncGenerator[Delta]:
    """What the request's `n` answers get, as they get it. Whoever stops reading cancels them. Raises what fails."""
    for index, answer in enumerate(await service.engine.answers(request, n)):
        yield Delta(index, answer.text, answer)
        yield Delta(index, "", answer, answer.finish)
