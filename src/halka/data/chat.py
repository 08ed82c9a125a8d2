"""Render conversations with the base's chat template: the text that training and inference read.

A template is given a conversation's tools apart from its messages, and the arguments of a call as an object, or as text
where it takes them to be that.
"""

import inspect
import json
import re
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime
from functools import lru_cache
from typing import Any, Literal, cast

from jinja2 import TemplateError, meta
from jinja2.sandbox import SandboxedEnvironment
from transformers import AddedToken, PreTrainedTokenizerBase

from halka.data.messages import Message
from halka.data.tools import ToolCall
from halka.util.errors import DataError

CLOCK = re.compile(r"""strftime_now\(\s*(['"])(.*?)\1\s*\)""")  # how templates write the present time
GENERATION = re.compile(r"\{%[-+]?\s*(?:end)?generation\s*[-+]?%\}")  # a tag of transformers' own, around answers
TEMPLATE_ERRORS = (TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError)
"""What a chat template may raise for messages, or values of a request's, that it refuses."""
OWN_TEMPLATE = "give the base a chat template of your own (`halka base template`, docs/data.md)"
NO_TOOLS = f"the base's chat template has no place for tools: take a base that calls tools, or {OWN_TEMPLATE}"
NO_CALLS = f"the base's chat template drops calls of tools: take a base that calls tools, or {OWN_TEMPLATE}"
PROBE_CALL = ToolCall("probe", '{"zq": [7, true]}', "abcdefg12")  # Mistral's ids have nine letters and digits

_time = ContextVar[datetime | None]("time", default=None)  # that templates write; None: the present one


def writes_time(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the chat template writes the present time into its texts, as Llama 3's do the day."""
    return any(CLOCK.search(text) for text in _templates(tokenizer))


def settable(tokenizer: PreTrainedTokenizerBase) -> Set[str]:
    """The names that the chat template reads and may be given, such as Qwen3's `enable_thinking`.

    Those are not among them that it sets itself, and that whoever renders a conversation sets: messages, tools, special
    tokens. Raises DataError for a template that is no Jinja.
    """
    rendering = inspect.signature(tokenizer.apply_chat_template).parameters
    return set[str]().union(*map(_read_by, _templates(tokenizer))) - {
        *("messages", "raise_exception", "strftime_now"),
        *tokenizer.special_tokens_map,
        *rendering,
    }


@lru_cache(maxsize=8)
def _read_by(template: str) -> frozenset[str]:
    environment = SandboxedEnvironment(extensions=["jinja2.ext.loopcontrols"])
    try:
        return frozenset(meta.find_undeclared_variables(environment.parse(GENERATION.sub("", template))))
    except TemplateError as error:
        raise DataError(f"the chat template cannot be read: {error}") from None


def with_values(template: str, values: Mapping[str, str | int | bool]) -> str:
    """The template with these values, by name, as it would have them of who renders it."""
    written = {name: repr(value).lower() if isinstance(value, bool) else repr(value) for name, value in values.items()}
    return "".join(f"{{% set {name} = {value} %}}\n" for name, value in written.items()) + template


def _templates(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    own: Any = tokenizer.chat_template or ""  # or several by name, such as "tool_use"
    return [*own.values()] if isinstance(own, dict) else [own]


@contextmanager
def written_at(time: datetime) -> Iterator[None]:
    """Chat templates write this time where they write the present one."""
    token = _time.set(time)
    try:
        yield
    finally:
        _time.reset(token)


def write(
    conversations: Sequence[Sequence[Message]], tokenizer: PreTrainedTokenizerBase, generation_prompt: bool
) -> list[str | DataError]:
    """Each conversation's text, or the error that says why the template refuses it, or drops its tools or calls."""
    calling = any(message.calls for messages in conversations for message in messages)
    form = _form_of_calls(tokenizer) if calling else "object"
    by_tools: dict[str, list[int]] = {}  # a call of the template has one list of tools for all its conversations
    for index, messages in enumerate(conversations):
        by_tools.setdefault(_tools(messages), []).append(index)
    texts: dict[int, str | DataError] = {}
    for tools, indices in by_tools.items():
        functions = json.loads(tools) if tools else None
        dicts = [[_turn(m, form) for m in conversations[index] if m.role != "tools"] for index in indices]
        written = _apply(dicts, functions, tokenizer, generation_prompt)
        if functions and written[:1] == _apply(dicts[:1], None, tokenizer, generation_prompt):
            written = [DataError(NO_TOOLS) for _ in indices]
        texts |= zip(indices, written, strict=True)
    if form == "none":
        texts |= {i: DataError(NO_CALLS) for i, messages in enumerate(conversations) if any(m.calls for m in messages)}
    return [texts[index] for index in range(len(conversations))]


def _apply(
    conversations: list[list[dict[str, Any]]],
    tools: list[Any] | None,
    tokenizer: PreTrainedTokenizerBase,
    generation_prompt: bool,
) -> list[str | DataError]:
    template, time = None, _time.get()
    if time is not None and writes_time(tokenizer):
        template = CLOCK.sub(lambda call: repr(time.strftime(call[2])), tokenizer.get_chat_template(tools=tools))
    options = {"chat_template": template, "tokenize": False, "add_generation_prompt": generation_prompt}
    try:
        return cast("list[str | DataError]", tokenizer.apply_chat_template(conversations, tools=tools, **options))
    except TEMPLATE_ERRORS as error:
        if len(conversations) > 1:  # find out which one
            return [_apply([turns], tools, tokenizer, generation_prompt)[0] for turns in conversations]
        way_out = _way_out(conversations[0], tools)
        return [DataError(f"the base's chat template refuses the conversation: {error}.{way_out}")]


def _way_out(turns: Sequence[Mapping[str, Any]], tools: object) -> str:
    if tools or any(turn["role"] == "tool" or "tool_calls" in turn for turn in turns):
        return f" It has tools, calls or results: take a base that calls tools so, or {OWN_TEMPLATE}."
    has_system = any(turn["role"] == "system" for turn in turns)
    return " Put the system text into the user's first message." if has_system else ""


def _form_of_calls(tokenizer: PreTrainedTokenizerBase) -> Literal["object", "text", "none"]:
    """Whether the template expects a call's arguments as an object or as JSON text; found by rendering a probe call.

    "none" is that of a template that drops calls.
    """

    def written(answer: dict[str, Any]) -> str | DataError:
        return _apply([[{"role": "user", "content": "Who?"}, answer]], None, tokenizer, generation_prompt=False)[0]

    message = Message("assistant", "", calls=(PROBE_CALL,))
    as_object = written(_turn(message, "object"))
    if isinstance(as_object, DataError):
        return "text" if isinstance(written(_turn(message, "text")), str) else "object"
    if as_object == written({"role": "assistant", "content": ""}):
        return "none"
    return "text" if str(json.loads(PROBE_CALL.arguments)) in as_object else "object"


def _tools(messages: Sequence[Message]) -> str:
    """The conversation's tools as JSON; empty: it has none."""
    return next((message.content for message in messages if message.role == "tools"), "")


def _turn(message: Message, form: str) -> dict[str, Any]:
    """A message as chat templates read it; by `form` arguments are JSON text."""
    calls = [
        call.plain
        if form == "text"
        else {**call.plain, "function": {"name": call.name, "arguments": json.loads(call.arguments)}}
        for call in message.calls
    ]
    own = {"tool_calls": calls, "name": message.name, "tool_call_id": message.call_id}
    return {"role": message.role, "content": message.content, **{key: value for key, value in own.items() if value}}


def added_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[int, AddedToken]:
    """The tokens that were added to the vocabulary, without blank ones: special ones, and what closes an answer."""
    return {number: token for number, token in tokenizer.added_tokens_decoder.items() if token.content.strip()}
