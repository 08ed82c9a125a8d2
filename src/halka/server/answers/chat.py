"""`/v1/chat/completions`: an answer to a conversation, at once or as it is made. One generator feeds both."""

from __future__ import annotations

import time
import uuid
from collections import defaultdict
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from anyio import to_thread
from fastapi import APIRouter
from starlette.responses import Response

from halka.engine import Answer, Request
from halka.server.answers.chat_request import ChatRequest
from halka.server.answers.formats import constraint_of
from halka.server.answers.generation import Delta, adapter_of, deltas, usage
from halka.server.answers.prompts import chat_tokens, template_options
from halka.server.answers.reply import respond
from halka.server.answers.retrieval import Grounding, fixed_answers, ground
from halka.server.answers.room import answer_room, prompt_room
from halka.server.answers.tools import Call, Toolbox, toolbox_of, with_calls
from halka.server.guards.access import Caller, CallerDep
from halka.server.service import Service, ServiceDep
from halka.server.wire import DONE, event

router = APIRouter()


@router.post("/v1/chat/completions")
async def chat_completions(body: ChatRequest, service: ServiceDep, caller: CallerDep) -> Response:
    """Answer a conversation."""
    chat = await Chat.of(body, service, caller)
    return await respond(chat, body.stream, caller)


@dataclass
class Chat:
    """A chat request as the engine has it, and what its responses say of themselves.

    adapter_id  the content that answers, which they have as their system_fingerprint; None: the base, or nobody yet
    """

    service: Service
    body: ChatRequest
    request: Request
    toolbox: Toolbox | None
    caller: Caller
    grounding: Grounding | None
    adapter_id: str | None = None
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    @classmethod
    async def of(cls, body: ChatRequest, service: Service, caller: Caller) -> Chat:
        """Raises ApiError and HalkaError for what cannot be answered."""
        adapter = await adapter_of(service, caller, body.model)
        several = body.parallel_tool_calls is not False
        toolbox = toolbox_of(service.tokenizer, body.messages, body.tools, body.tool_choice, several)
        options = template_options(service.tokenizer, body.chat_template_kwargs)
        new_tokens, grounding = body.max_completion_tokens or body.max_tokens, None
        turns = [message.for_template() for message in body.messages]
        if body.halka is not None:

            def count(turns: Sequence[dict[str, Any]]) -> int:
                return len(chat_tokens(service.tokenizer, turns, toolbox, options))

            budget = await prompt_room(service, adapter, new_tokens)
            grounding = await ground(service, caller, body.halka, turns, budget, count)
            turns = grounding.turns
        if grounding is not None and grounding.answer is not None:  # no model is asked
            prompt, tokens = list[int](), 1
        else:
            prompt = await to_thread.run_sync(chat_tokens, service.tokenizer, turns, toolbox, options)
            tokens = new_tokens or await answer_room(service, adapter, prompt)
        request = Request(
            prompt,
            adapter,
            sampling=body.sampling(service.settings.temperature),
            stopping=body.stopping(tokens),
            constraint=constraint_of(body.response_format) if toolbox is None else toolbox.constraint,
            tenant=caller.tenant,
            logprobs=body.alternatives,
            chat=True,
        )
        return cls(service, body, request, toolbox, caller, grounding)

    def deltas(self, *, pieces: bool) -> AsyncGenerator[Delta]:
        """What the answers get, as they get it, or without `pieces` at their ends."""
        if self.grounding is not None and self.grounding.answer is not None:
            return fixed_answers(self.request, self.grounding.answer, self.body.n or 1)
        generated = deltas(self.service, self.caller, self.request, self.body.n or 1, pieces=pieces)
        return generated if self.toolbox is None else with_calls(generated, self.toolbox)

    async def chunks(self) -> AsyncGenerator[bytes]:
        """The answers as events, the usage last where it is asked for."""
        answers: dict[int, Answer] = {}
        texts = defaultdict[int, list[str]](list)  # what was streamed of each answer: its text without calls

        def end() -> dict[str, Any]:
            return self.body.usage_so_far(partial(usage, [self.request], answers.values()))

        async with aclosing(self.deltas(pieces=True)) as deltas:
            async for delta in deltas:
                self.adapter_id = delta.answer.adapter_id
                if delta.index not in answers:
                    answers[delta.index] = delta.answer
                    yield event(self._chunk(delta.index, {"role": "assistant", "content": ""}) | end())
                texts[delta.index].append(delta.text)
                if self.grounding is not None and delta.finish is not None:
                    text = "".join(texts[delta.index])
                    annotated = self._chunk(delta.index, {"annotations": self.grounding.chat_annotations(text)})
                    yield event(annotated | {"halka": self.grounding.sources([text])} | end())
                yield event(self._chunk(delta.index, _delta(delta), self._logprobs(delta), delta.finish) | end())
        if self.body.usage_at_end:
            tokens = usage([self.request], answers.values())
            yield event(self._head("chat.completion.chunk") | {"choices": [], "usage": tokens})
        yield DONE

    async def whole(self) -> dict[str, Any]:
        """The answers as one object, when all are finished."""
        choices: dict[int, dict[str, Any]] = {}
        answers: dict[int, Answer] = {}
        async with aclosing(self.deltas(pieces=False)) as deltas:
            async for delta in deltas:
                self.adapter_id = delta.answer.adapter_id
                answers[delta.index] = delta.answer
                choice = choices.setdefault(delta.index, _empty(delta.index))
                _add(choice, delta, self._logprobs(delta))
        in_order = [choices[index] for index in sorted(choices)]
        for choice in in_order:
            message = choice["message"]
            message["content"] = message["content"] or ("" if "tool_calls" not in message else None)
        sources = {}
        if self.grounding is not None:
            texts = [choice["message"]["content"] or "" for choice in in_order]
            sources = {"halka": self.grounding.sources(texts)}
            for choice, text in zip(in_order, texts, strict=True):
                choice["message"]["annotations"] = self.grounding.chat_annotations(text)
        return self._head("chat.completion") | {
            "choices": in_order,
            "usage": usage([self.request], answers.values()),
            **sources,
        }

    def _head(self, kind: str) -> dict[str, Any]:
        head = {"id": self.id, "object": kind, "created": self.created, "model": self.body.model}
        return head | {"system_fingerprint": self.adapter_id}

    def _chunk(
        self, index: int, delta: dict[str, Any], logprobs: dict[str, Any] | None = None, finish: str | None = None
    ) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        return self._head("chat.completion.chunk") | {"choices": [choice]}

    def _logprobs(self, delta: Delta) -> dict[str, Any] | None:
        if self.body.alternatives is None or delta.finish is not None:
            return None
        return {"content": self.service.token_texts.for_chat(delta.logprobs), "refusal": None}


def _empty(index: int) -> dict[str, Any]:
    message = {"role": "assistant", "content": "", "refusal": None, "annotations": []}
    return {"index": index, "message": message, "logprobs": None, "finish_reason": None}


def _add(choice: dict[str, Any], delta: Delta, logprobs: dict[str, Any] | None) -> None:
    """Let a whole answer's choice have what came."""
    choice["message"]["content"] += delta.text
    if delta.call is not None:
        choice["message"].setdefault("tool_calls", []).append(_call(delta.call))
    if logprobs is not None:
        before = choice["logprobs"] or {"content": [], "refusal": None}
        choice["logprobs"] = {**before, "content": before["content"] + logprobs["content"]}
    choice["finish_reason"] = delta.finish


def _delta(delta: Delta) -> dict[str, Any]:
    if delta.finish is not None:
        return {}
    if delta.call is not None:
        return {"tool_calls": [{"index": delta.call.number, **_call(delta.call)}]}
    return {"content": delta.text}


def _call(call: Call) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
