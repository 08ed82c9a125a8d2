"""The body of a chat request: messages, tools, and how the answer is to be."""

from __future__ import annotations

import json
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from halka.server.answers.formats import JsonObject, JsonSchema, Text
from halka.server.answers.generation_request import NEUTRAL, GenerationRequest
from halka.server.requests import ANY, ITEMS, Body, Count, Labels, unsupported

FunctionName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]


class TextPart(Body):
    type: Literal["text", "input_text", "output_text"]
    text: str
    annotations: list[Any] | None = None
    logprobs: list[Any] | None = None


Parts = Annotated[list[TextPart], Field(max_length=ITEMS, fail_fast=True)]


class FunctionCall(Body):
    name: FunctionName
    arguments: str


class CalledTool(Body):
    id: str
    type: Literal["function"] = "function"
    function: FunctionCall


class ChatMessage(Body):
    neutral: ClassVar[dict[str, Any]] = {
        "audio": (),
        "function_call": (),
        "name": ANY,
        "annotations": ANY,
        "refusal": ANY,
        "reasoning_content": ANY,
    }
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Parts | None = None
    tool_calls: Annotated[list[CalledTool], Field(max_length=ITEMS, fail_fast=True)] | None = None
    tool_call_id: str | None = None

    def for_template(self) -> dict[str, Any]:
        """The message as chat templates read it."""
        parts = self.content if isinstance(self.content, list) else []
        text = "".join(part.text for part in parts) or (self.content if isinstance(self.content, str) else "")
        message: dict[str, Any] = {"role": "system" if self.role == "developer" else self.role, "content": text}
        if self.tool_calls:
            message["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.function.name, "arguments": _arguments(call.function.arguments)},
                }
                for call in self.tool_calls
            ]
        if self.tool_call_id:
            message["tool_call_id"] = self.tool_call_id
        return message


class Function(Body):
    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Body):
    type: Literal["function"]
    function: Function


class NamedFunction(Body):
    name: str


class NamedTool(Body):
    type: Literal["function"]
    function: NamedFunction


Tools = Annotated[list[Tool], Field(max_length=128, fail_fast=True)]
ToolChoice = Literal["none", "auto", "required"] | NamedTool


class Retrieval(Body):
    """Where the answer is to come from.

    passages  at most so many
    floor     the score that the best must reach; below it the model is not asked
    tags      only documents with all of these
    """

    collection: str
    passages: Annotated[int, Field(ge=1, le=50)] | None = None
    floor: float | None = None
    mode: Literal["hybrid", "vectors", "words"] | None = None
    tags: Labels | None = None


class ChatRequest(GenerationRequest):
    neutral: ClassVar[dict[str, Any]] = {
        **NEUTRAL,
        "store": (False,),
        "modalities": (["text"],),
        "audio": (),
        "prediction": (),
        "web_search_options": (),
        "functions": ([],),
        "function_call": ("none",),
        "reasoning_effort": ("none",),
        "verbosity": ("medium",),
    }
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=ITEMS, fail_fast=True)]
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: Annotated[Text | JsonObject | JsonSchema, Field(discriminator="type")] | None = None
    tools: Tools | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    halka: Retrieval | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> ChatRequest:
        if self.top_logprobs and not self.logprobs:
            raise unsupported("top_logprobs", "set logprobs to true with it")
        if self.tool_choice not in (None, "none", "auto") and not self.tools:
            raise unsupported("tool_choice", "there are no tools to choose from")
        formed = self.response_format is not None and self.response_format.type != "text"
        if self.tools and self.tool_choice != "none" and formed:
            raise unsupported("response_format", "with tools an answer may be any text")
        if self.halka is not None and (formed or self.tool_choice not in (None, "none", "auto")):
            field = "response_format" if formed else "tool_choice"
            raise unsupported(field, "an answer from documents may be that they do not say")
        return self

    @property
    def alternatives(self) -> int | None:
        """How many tokens the engine is to tell with each token of an answer; None: nothing."""
        return (self.top_logprobs or 0) if self.logprobs else None


def _arguments(text: str) -> Any:
    """A call's arguments as templates want them: an object, if they are one that can be written."""
    try:
        value = json.loads(text or "{}")
        json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair is no character
    except (ValueError, RecursionError):
        return text
    return value
