"""The body of `/v1/responses`, which is a chat in other words: `as_chat` says them."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from fastapi.exceptions import RequestValidationError
from pydantic import Discriminator, Field, Tag, ValidationError

from halka.server.answers.chat_request import (
    CalledTool,
    ChatMessage,
    ChatRequest,
    Function,
    FunctionCall,
    FunctionName,
    NamedFunction,
    NamedTool,
    Parts,
    Retrieval,
    Tool,
)
from halka.server.answers.formats import JsonObject, JsonSchema, Schema, Text
from halka.server.answers.generation_request import NEUTRAL, Share, StreamOptions, Temperature
from halka.server.requests import ANY, ITEMS, Body, Count

LOGPROBS = "message.output_text.logprobs"


class Item(Body):
    neutral: ClassVar[dict[str, Any]] = {"id": ANY, "status": ANY, "phase": ANY}


class InputMessage(Item):
    type: Literal["message"] | None = None
    role: Literal["system", "developer", "user", "assistant"]
    content: str | Parts


class InputCall(Item):
    neutral: ClassVar[dict[str, Any]] = {**Item.neutral, "namespace": (), "caller": ()}
    type: Literal["function_call"]
    call_id: str
    name: FunctionName
    arguments: str


class InputResult(Item):
    neutral: ClassVar[dict[str, Any]] = {**Item.neutral, "caller": ()}
    type: Literal["function_call_output"]
    call_id: str
    output: str | Parts


def _type_of(item: Any) -> str:
    return str((item.get("type") if isinstance(item, dict) else getattr(item, "type", None)) or "message")


InputItem = Annotated[
    Annotated[InputMessage, Tag("message")]
    | Annotated[InputCall, Tag("function_call")]
    | Annotated[InputResult, Tag("function_call_output")],
    Discriminator(_type_of),
]


class FlatTool(Function):
    type: Literal["function"]


class FlatNamedTool(NamedFunction):
    type: Literal["function"]


class FlatJsonSchema(Schema):
    """As `/v1/responses` has it."""

    type: Literal["json_schema"]


class TextOptions(Body):
    neutral: ClassVar[dict[str, Any]] = {"verbosity": ("medium",)}
    format: Annotated[Text | JsonObject | FlatJsonSchema, Field(discriminator="type")] | None = None


class ResponsesRequest(Body):
    neutral: ClassVar[dict[str, Any]] = {
        **NEUTRAL,
        "background": (False,),
        "conversation": (),
        "max_tool_calls": (),
        "previous_response_id": (),
        "prompt": (),
        "reasoning": ({}, {"effort": None}, {"effort": "none"}, {"effort": None, "summary": None}),
        "truncation": ("disabled",),
    }
    model: str
    input: str | Annotated[list[InputItem], Field(min_length=1, max_length=ITEMS, fail_fast=True)]
    store: Literal[False] = Field(description="nothing is kept here: false, and the whole history as the input")
    instructions: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_output_tokens: Count | None = None
    temperature: Temperature | None = None
    top_p: Share | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    include: (
        Annotated[list[Literal["message.output_text.logprobs", "reasoning.encrypted_content"]], Field(fail_fast=True)]
        | None
    ) = None
    text: TextOptions | None = None
    tools: Annotated[list[FlatTool], Field(max_length=128, fail_fast=True)] | None = None
    tool_choice: Literal["none", "auto", "required"] | FlatNamedTool | None = None
    parallel_tool_calls: bool | None = None
    halka: Retrieval | None = None

    def as_chat(self) -> ChatRequest:
        """The chat request that asks the same. Raises RequestValidationError for what does not fit together."""
        named = self.tool_choice
        try:
            return ChatRequest(
                model=self.model,
                messages=self._messages(),
                max_completion_tokens=self.max_output_tokens,
                temperature=self.temperature,
                top_p=self.top_p,
                logprobs=LOGPROBS in (self.include or ()) or bool(self.top_logprobs),
                top_logprobs=self.top_logprobs,
                response_format=self._format(),
                tools=[
                    Tool(type="function", function=Function(**tool.model_dump(exclude={"type"})))
                    for tool in self.tools or ()
                ],
                tool_choice=NamedTool(type="function", function=NamedFunction(name=named.name))
                if isinstance(named, FlatNamedTool)
                else named,
                parallel_tool_calls=self.parallel_tool_calls,
                halka=self.halka,
            )
        except ValidationError as error:
            raise RequestValidationError(error.errors()) from None

    def _messages(self) -> list[ChatMessage]:
        """The instructions and the input as messages; calls that follow each other are one message."""
        items = [InputMessage(role="user", content=self.input)] if isinstance(self.input, str) else self.input
        messages = [] if self.instructions is None else [ChatMessage(role="system", content=self.instructions)]
        for item in items:
            if isinstance(item, InputMessage):
                messages.append(ChatMessage(role=item.role, content=item.content))
            elif isinstance(item, InputResult):
                messages.append(ChatMessage(role="tool", content=item.output, tool_call_id=item.call_id))
            else:
                call = FunctionCall(name=item.name, arguments=item.arguments)
                if not messages or messages[-1].role != "assistant":
                    messages.append(ChatMessage(role="assistant"))
                calls = messages[-1].tool_calls or []
                messages[-1].tool_calls = [*calls, CalledTool(id=item.call_id, function=call)]
        return messages

    def _format(self) -> Text | JsonObject | JsonSchema | None:
        form = self.text.format if self.text else None
        if not isinstance(form, FlatJsonSchema):
            return form
        schema = Schema(name=form.name, schema=form.schema_, description=form.description, strict=form.strict)
        return JsonSchema(type="json_schema", json_schema=schema)
