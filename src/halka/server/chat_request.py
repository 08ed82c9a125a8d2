"""The body of a chat request: messages, and how the answer is to be."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from halka.server.requests import ANY, NEUTRAL, Body, Role, Sampled


class TextPart(Body):
    type: Literal["text"]
    text: str


class ChatMessage(Body):
    neutral: ClassVar[dict[str, Any]] = {
        "audio": (),
        "function_call": (),
        "annotations": ANY,
        "refusal": ANY,
        "reasoning_content": ANY,
    }
    role: Role
    content: str | list[TextPart] | None = None
    name: str | None = None

    @property
    def text(self) -> str:
        """Its content as one text."""
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content)
        return self.content or ""


class ChatRequest(Sampled):
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
    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None

    def plain_messages(self) -> list[dict[str, Any]]:
        """The messages as chat templates read them."""
        return [
            {"role": "system" if message.role == "developer" else message.role, "content": message.text}
            for message in self.messages
        ]
