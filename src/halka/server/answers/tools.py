"""Tools: which of them a base may call, how its template tells it of them, and its calls within its text.

A base knows tools if its chat template does and writes calls in the form of Hermes and Qwen, one or more of
`<tool_call>{"name": …, "arguments": {…}}</tool_call>`. Where a call is demanded, the form is enforced.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any

from halka.data.tools import CLOSING, OPENING
from halka.engine import Constraint
from halka.engine.json_schema import NAMED
from halka.server.answers.chat_request import ChatMessage, NamedTool, Tool, ToolChoice
from halka.server.answers.formats import keeping_to
from halka.server.answers.generation import Delta
from halka.server.errors import ApiError
from halka.util.text import not_unicode

ESCAPED = re.compile(r"\\.", re.DOTALL)  # in a text of JSON


@dataclass(frozen=True)
class Call:
    """A function that the base calls; `arguments` are JSON, `number` counts an answer's calls from 0."""

    name: str
    arguments: str
    number: int = 0
    id: str = field(default_factory=lambda: f"call_{uuid.uuid4().hex[:24]}")


@dataclass(frozen=True)
class Toolbox:
    """The tools of a request.

    demanded  the names of those of which one must be called; none: the base may call any, or answer
    several   whether it may call more than one
    """

    tools: Sequence[Tool]
    demanded: tuple[str, ...] = ()
    several: bool = True

    @property
    def for_template(self) -> list[dict[str, Any]]:
        return [tool.model_dump(exclude_none=True) for tool in self.tools]

    @property
    def opening(self) -> str:
        """What the answer begins with, whatever the base would say."""
        return f"{OPENING}\n" if self.demanded else ""

    @property
    def constraint(self) -> Constraint | None:
        """What must follow the opening: one call of a demanded tool. Raises ApiError for schemas that are too large."""
        if not self.demanded:
            return None
        functions = [tool.function for tool in self.tools if tool.function.name in self.demanded]
        calls = [
            {
                "type": "object",
                "properties": {
                    "name": {"const": function.name},
                    "arguments": _moved(
                        function.parameters or {"type": "object"},
                        f"#{'' if len(functions) == 1 else f'/anyOf/{index}'}/properties/arguments",
                    ),
                },
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
            for index, function in enumerate(functions)
        ]
        return keeping_to(calls[0] if len(calls) == 1 else {"anyOf": calls}, "tools")


def _moved(schema: Any, place: str) -> Any:
    """The schema to stand at a place, a JSON pointer, within another: its references to itself name that."""
    if isinstance(schema, list):
        return [_moved(item, place) for item in schema]
    if not isinstance(schema, dict):
        return schema
    moved: dict[str, Any] = {}
    for key, value in schema.items():
        if key == "$ref" and isinstance(value, str) and value.startswith("#"):
            moved[key] = place + value[1:]
        elif key in NAMED and isinstance(value, dict):
            moved[key] = {name: _moved(inner, place) for name, inner in value.items()}
        else:
            moved[key] = value if key in ("const", "enum") else _moved(value, place)
    return moved


def toolbox_of(
    tokenizer: Any,
    messages: Sequence[ChatMessage],
    tools: Sequence[Tool] | None,
    choice: ToolChoice | None,
    several: bool,
) -> Toolbox | None:
    """The tools that the base may call; None: none. Raises ApiError where the base knows no tools, or not that one."""
    with_calls_or_results = any(message.role == "tool" or message.tool_calls for message in messages)
    offered = tools if tools and choice != "none" else []
    if not offered and not with_calls_or_results:
        return None
    if why := knows_no_tools(tokenizer):
        raise ApiError(400, why, param="tools" if offered else "messages", code="unsupported_parameter")
    if not offered:
        return None
    names = tuple(tool.function.name for tool in offered)
    if isinstance(choice, NamedTool):
        if choice.function.name not in names:
            message = f"tool_choice is {choice.function.name!r}, and the tools are {', '.join(names)}"
            raise ApiError(400, message, param="tool_choice")
        return Toolbox(offered, (choice.function.name,), several=False)
    return Toolbox(offered, names if choice == "required" else (), several and choice != "required")


def knows_no_tools(tokenizer: Any) -> str:
    """Why a base with this tokenizer cannot call tools; empty: it can."""
    template = tokenizer.chat_template
    if not isinstance(template, str) or not re.search(r"\btools\b", template):
        return "this base's chat template has no place for tools: leave `tools` and their messages out"
    special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    if OPENING not in template or OPENING in special:
        return f"this base's chat template takes tools, but not in the form that is known here, {OPENING}"
    return ""


async def with_calls(deltas: AsyncGenerator[Delta], toolbox: Toolbox) -> AsyncGenerator[Delta]:
    """The deltas, with calls of tools read out of their text."""
    readers: dict[int, CallReader] = {}
    async with aclosing(deltas):
        async for delta in deltas:
            reader = readers.setdefault(delta.index, CallReader(toolbox))
            pieces = [*(reader.push(delta.text) if delta.finish is None else reader.end())]
            for number, piece in enumerate(pieces or [""]):
                part = replace(delta, text="", finish=None, logprobs=() if number else delta.logprobs)
                if isinstance(piece, Call):
                    yield replace(part, call=piece)
                elif piece or part.logprobs:
                    yield replace(part, text=piece)
            if delta.finish is not None:
                called = reader.calls and delta.finish == "stop"
                yield replace(delta, finish="tool_calls" if called else delta.finish)


class CallReader:
    """Reads the calls out of a text that comes in pieces; what is none of them stays text."""

    def __init__(self, toolbox: Toolbox):
        self._several = toolbox.several
        self._text, self._inside = toolbox.opening, False
        self.calls = 0

    def push(self, piece: str) -> Iterator[str | Call]:
        """What is certain after this piece."""
        self._text += piece
        while True:
            mark = CLOSING if self._inside else OPENING
            at = _closes_at(self._text) if self._inside else self._text.find(OPENING)
            if at < 0:
                break
            before, after = self._text[:at], self._text[at + len(mark) :]
            yield from self._inner(before, CLOSING) if self._inside else self._outer(before.rstrip())
            self._text, self._inside = after, not self._inside
        if not self._inside:
            partial = next((n for n in range(len(OPENING) - 1, 0, -1) if self._text.endswith(OPENING[:n])), 0)
            certain = self._text[: len(self._text) - partial].rstrip()  # white space before a call is dropped
            text, self._text = certain, self._text[len(certain) :]
            yield from self._outer(text)

    def end(self) -> Iterator[str | Call]:
        """What is left at the end of the text: a call without its closing, or text."""
        text, self._text = self._text, ""
        if self._inside and CLOSING in text and _call_of(text, self.calls) is None:  # what stood in a text closed it
            before, _, text = text.partition(CLOSING)
            self._inside = False
            yield from self._inner(before, CLOSING)
            yield from self.push(text)
            text, self._text = self._text, ""
        yield from self._inner(text, "") if self._inside else self._outer(text)

    def _outer(self, text: str) -> Iterator[str]:
        if text and not (self.calls and not text.strip()):
            yield text

    def _inner(self, text: str, closing: str) -> Iterator[str | Call]:
        call = _call_of(text, self.calls)
        if call is None:
            yield f"{OPENING}{text}{closing}"
        elif self._several or not self.calls:
            self.calls += 1
            yield call


def _closes_at(text: str) -> int:
    """Where the mark stands that closes a call; -1: not yet. One within a text of its JSON is none, if the next is."""
    first = text.find(CLOSING)
    if first < 0 or ESCAPED.sub("", text[:first]).count('"') % 2 == 0:
        return first
    second = text.find(CLOSING, first + 1)
    return second if second < 0 or _call_of(text[:second], 0) is not None else first


def _call_of(text: str, number: int) -> Call | None:
    try:
        call = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        return None
    arguments = call.get("arguments", call.get("parameters", {}))
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    if not_unicode(call["name"] + text):  # an escape of half a character, which no client can send back
        return None
    return Call(call["name"], text, number)
