"""`/v1/responses`, without a memory: the whole history is the input. Its events say what comes, the last all of it."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from fastapi import APIRouter
from fastapi.exceptions import RequestValidationError
from starlette.responses import Response

from halka.engine import Answer
from halka.server.answers.chat import Chat
from halka.server.answers.generation import Delta, usage
from halka.server.answers.reply import respond
from halka.server.answers.responses_request import ResponsesRequest
from halka.server.answers.tools import Call
from halka.server.errors import ApiError, api_error
from halka.server.guards.access import CallerDep
from halka.server.service import ServiceDep
from halka.server.wire import event

router = APIRouter()

Item = dict[str, Any]
Event = dict[str, Any]

FIELDS = {"messages": "input", "max_tokens": "max_output_tokens", "response_format": "text.format"}
"""What chat's fields are called here, where an error names one."""


@router.post("/v1/responses")
async def responses(body: ResponsesRequest, service: ServiceDep, caller: CallerDep) -> Response:
    """Answer an input, which holds the whole history."""
    try:
        chat = await Chat.of(body.as_chat(), service, caller)
    except (ApiError, RequestValidationError) as error:
        raise _with_names_here(api_error(error)) from None
    writer = ResponseWriter(chat, body)
    return await respond(writer, body.stream, caller, writer.failed)


def _with_names_here(error: ApiError) -> ApiError:
    if (param := error.param) in FIELDS:
        error.param, error.message = FIELDS[param], error.message.replace(param, FIELDS[param])
    return error


@dataclass
class ResponseWriter:
    """A response as it is written: its items so far, and the events that say so."""

    chat: Chat
    body: ResponsesRequest
    items: list[Item] = field(default_factory=list[Item])
    id: str = field(default_factory=lambda: _id("resp"))
    created: int = field(default_factory=lambda: int(time.time()))
    _open: bool = False  # the last item is a message that goes on
    _logprobs: list[Any] = field(default_factory=list[Any])  # of tokens before a message, which have no text of it yet
    _numbers: Iterator[int] = field(default_factory=count)

    async def whole(self) -> Event:
        """The response when it is finished."""
        async with aclosing(self.events(pieces=False)) as events:
            every = [event async for event in events]
        return every[-1]["response"]

    async def chunks(self) -> AsyncGenerator[bytes]:
        """The events as they are sent, numbered."""
        async with aclosing(self.events(pieces=True)) as events:
            async for event in events:
                yield self._numbered(event)

    def failed(self, error: dict[str, Any]) -> bytes:
        """The event of an error's body."""
        return self._numbered({**error["error"], "type": "error"})

    async def events(self, *, pieces: bool) -> AsyncGenerator[Event]:
        """What happens, in the order and with the names that OpenAI's clients know."""
        begun = False
        async with aclosing(self.chat.deltas(pieces=pieces)) as deltas:
            async for delta in deltas:
                if not begun:
                    begun = True
                    for kind in ("created", "in_progress"):
                        yield {"type": f"response.{kind}", "response": self._response("in_progress")}
                for event in self._events_of(delta):
                    yield event

    def _events_of(self, delta: Delta) -> Iterator[Event]:
        if delta.call is not None:
            self._logprobs.clear()  # its own, which no item has
            yield from self._close_message()
            yield from self._add_call(delta.call)
        elif delta.finish is None:
            if self.chat.body.alternatives is not None:
                self._logprobs += self.chat.service.token_texts.for_chat(delta.logprobs)
            if delta.text or self._open:
                yield from self._add_text(delta.text)
        else:
            if not self.items:
                yield from self._add_text("") if self._logprobs else self._open_message()
            status = "incomplete" if delta.finish == "length" else "completed"
            yield from self._close_message(status)
            yield {"type": f"response.{status}", "response": self._response(status, delta.answer)}

    def _add_text(self, text: str) -> Iterator[Event]:
        """The message goes on, with the log probabilities of all tokens since."""
        if not self._open:
            yield from self._open_message()
        part = self.items[-1]["content"][0]
        logprobs, self._logprobs = self._logprobs, []
        part["text"] += text
        part["logprobs"] += logprobs
        yield self._at("response.output_text.delta", content_index=0, delta=text, logprobs=logprobs)

    def _open_message(self) -> Iterator[Event]:
        """A message begins."""
        part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        item = {"id": _id("msg"), "type": "message", "status": "in_progress", "role": "assistant", "content": [part]}
        self.items.append(item)
        self._open = True
        yield self._at("response.output_item.added", item={**item, "content": []})
        yield self._at("response.content_part.added", content_index=0, part={**part, "logprobs": []})

    def _close_message(self, status: str = "completed") -> Iterator[Event]:
        """The message that is open, if one is, ends."""
        if self._open:
            item, self._open = self.items[-1], False
            item["status"] = status
            (part,) = item["content"]
            text, logprobs = part["text"], part["logprobs"]
            if self.chat.grounding is not None:
                part["annotations"] = self.chat.grounding.response_annotations(text)
            for index, annotation in enumerate(part["annotations"]):
                yield self._at(
                    "response.output_text.annotation.added",
                    content_index=0,
                    annotation_index=index,
                    annotation=annotation,
                )
            yield self._at("response.output_text.done", content_index=0, text=text, logprobs=logprobs)
            yield self._at("response.content_part.done", content_index=0, part=part)
            yield self._at("response.output_item.done", item=item)

    def _add_call(self, call: Call) -> Iterator[Event]:
        item = {
            "id": _id("fc"),
            "type": "function_call",
            "status": "completed",
            "call_id": call.id,
            "name": call.name,
            "arguments": call.arguments,
        }
        self.items.append(item)
        yield self._at("response.output_item.added", item={**item, "status": "in_progress", "arguments": ""})
        yield self._at("response.function_call_arguments.delta", delta=call.arguments)
        yield self._at("response.function_call_arguments.done", name=call.name, arguments=call.arguments)
        yield self._at("response.output_item.done", item=item)

    def _numbered(self, content: Event) -> bytes:
        return event(content | {"sequence_number": next(self._numbers)}, content["type"])

    def _at(self, kind: str, **more: Any) -> Event:
        """An event of the last item."""
        place = {"output_index": len(self.items) - 1}
        return {"type": kind, **({} if "item" in more else {"item_id": self.items[-1]["id"]}), **place, **more}

    def _response(self, status: str, answer: Answer | None = None) -> Event:
        body = self.body.model_dump(by_alias=True)
        form = (body["text"] or {}).get("format") or {"type": "text"}
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "status": status,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "instructions": self.body.instructions,
            "max_output_tokens": self.body.max_output_tokens,
            "metadata": {},
            "model": self.body.model,
            "output": [*self.items],
            "parallel_tool_calls": self.body.parallel_tool_calls is not False,
            "previous_response_id": None,
            "store": False,
            "temperature": self.body.temperature,
            "text": {"format": form},
            "tool_choice": body["tool_choice"] or "auto",
            "tools": body["tools"] or [],
            "system_fingerprint": answer and answer.adapter_id,
            "top_p": self.body.top_p,
            "truncation": "disabled",
            "usage": None if answer is None else _usage(usage([self.chat.request], [answer])),
            **self._sources(),
        }

    def _sources(self) -> dict[str, Any]:
        """The field that the response to a question about a collection has beside OpenAI's."""
        if self.chat.grounding is None:
            return {}
        texts = [part["text"] for item in self.items for part in item.get("content", ())]
        return {"halka": self.chat.grounding.sources(["".join(texts)])}


def _usage(of_chat: dict[str, Any]) -> dict[str, Any]:
    return {
        "input_tokens": of_chat["prompt_tokens"],
        "input_tokens_details": of_chat["prompt_tokens_details"],
        "output_tokens": of_chat["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": of_chat["total_tokens"],
    }


def _id(kind: str) -> str:
    return f"{kind}_{uuid.uuid4().hex}"
