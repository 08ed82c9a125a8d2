"""Render conversations with the base's chat template: the text that training and inference read.

A template is given a conversation's tools apart from its messages, and the arguments of a call as an object, or as text
where it takes them to be that.
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime
from functools import partial
from typing import Any, cast

from jinja2 import TemplateError
from transformers import AddedToken, PreTrainedTokenizerBase

from halka.data.examples import Message
from halka.util.errors import DataError

CLOCK = re.compile(r"""strftime_now\(\s*(['"])(.*?)\1\s*\)""")  # how templates write the present time
TEMPLATE_ERRORS = (TemplateError, TypeError, ValueError, LookupError, AttributeError)
"""What a chat template may raise for messages that it refuses."""
OWN_TEMPLATE = "save the base with a chat_template of your own (docs/data.md)"
NO_TOOLS = f"the base's chat template has no place for tools: take a base that calls tools, or {OWN_TEMPLATE}"


_time = ContextVar[datetime | None]("time", default=None)  # that templates write; None: the present one


def writes_time(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the chat template writes the present time into its texts, as Llama 3's do the day."""
    return bool(tokenizer.chat_template) and CLOCK.search(tokenizer.get_chat_template()) is not None


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
    """Each conversation's text, or the error that says why the template refuses it."""
    template, time = None, _time.get()
    if time is not None and writes_time(tokenizer):
        template = CLOCK.sub(lambda call: repr(time.strftime(call[2])), tokenizer.get_chat_template())
    options = {"chat_template": template, "tokenize": False, "add_generation_prompt": generation_prompt}
    apply: Callable[..., Any] = partial(tokenizer.apply_chat_template, **options)
    by_tools: dict[str, list[int]] = {}  # a call of the template has one list of tools for all its conversations
    for index, messages in enumerate(conversations):
        by_tools.setdefault(_tools(messages), []).append(index)
    texts: dict[int, str | DataError] = {}
    for tools, indices in by_tools.items():
        own = [conversations[index] for index in indices]
        if tools and _apply(own[:1], apply, tools) == _apply(own[:1], apply, ""):
            texts |= dict.fromkeys(indices, DataError(NO_TOOLS))
        else:
            texts |= zip(indices, _apply(own, apply, tools), strict=True)
    return [texts[index] for index in range(len(conversations))]


def _apply(
    conversations: Sequence[Sequence[Message]], apply: Callable[..., Any], tools: str, parsed: bool = True
) -> list[str | DataError]:
    """The texts of conversations with the same tools; `parsed`: the arguments of calls are no text to the template."""
    calls = [call for messages in conversations for message in messages for call in message.calls]
    try:
        dicts = [[_turn(m, parsed) for m in messages if m.role != "tools"] for messages in conversations]
        texts = apply(dicts, tools=json.loads(tools) if tools else None)
        if not (calls and parsed and any(map(_has_python, conversations, texts))):
            return cast("list[str | DataError]", texts)
    except TEMPLATE_ERRORS as error:
        if len(conversations) == 1 and not (calls and parsed):
            has_system = any(message.role == "system" for message in conversations[0])
            way_out = " Put the system text into the user's first message." if has_system else ""
            return [DataError(f"the base's chat template refuses the conversation: {error}.{way_out}")]
    if len(conversations) > 1:  # find out which one
        return [_apply([messages], apply, tools, parsed)[0] for messages in conversations]
    return _apply(conversations, apply, tools, parsed=False)


def _tools(messages: Sequence[Message]) -> str:
    """The conversation's tools as JSON; empty: it has none."""
    return next((message.content for message in messages if message.role == "tools"), "")


def _turn(message: Message, parsed: bool) -> dict[str, Any]:
    """A message as chat templates read it. Most write the arguments of a call as JSON, some take them to be it."""
    calls = [
        {
            **({"id": call.id} if call.id else {}),
            "type": "function",
            "function": {"name": call.name, "arguments": json.loads(call.arguments) if parsed else call.arguments},
        }
        for call in message.calls
    ]
    own = {"tool_calls": calls, "name": message.name, "tool_call_id": message.call_id}
    return {"role": message.role, "content": message.content, **{key: value for key, value in own.items() if value}}


def _has_python(messages: Sequence[Message], text: str) -> bool:
    """Whether a template that takes arguments to be text wrote those of a call as Python shows them."""
    arguments = [json.loads(call.arguments) for message in messages for call in message.calls]
    return any(str(own) in text for own in arguments if own)


def added_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[int, AddedToken]:
    """The tokens that were added to the vocabulary, without blank ones: special ones, and what closes an answer."""
    return {number: token for number, token in tokenizer.added_tokens_decoder.items() if token.content.strip()}
