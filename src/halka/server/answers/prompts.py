"""Conversations and texts to the tokens that the base reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from halka.data.chat import TEMPLATE_ERRORS, settable
from halka.data.examples import Example, Message
from halka.data.tokens import encode_prompt
from halka.server.answers.tools import Toolbox
from halka.server.errors import ApiError
from halka.util.errors import DataError
from halka.util.text import one_line


def template_options(tokenizer: Any, asked: Mapping[str, Any] | None) -> dict[str, Any]:
    """What a request sets of the base's chat template, by name, such as Qwen3's `enable_thinking`.

    Raises ApiError for a name that the template does not read, and for one that the template or the server itself sets.
    """
    options = dict(asked or {})
    for name in options.keys() - settable(tokenizer) if options else ():
        message = f"chat_template_kwargs: {one_line(name[:80])!r} is nothing that this base's chat template takes"
        raise ApiError(400, message, param="chat_template_kwargs", code="unsupported_parameter")
    return options


def chat_tokens(
    tokenizer: Any,
    turns: Sequence[dict[str, Any]],
    toolbox: Toolbox | None = None,
    options: Mapping[str, Any] | None = None,
) -> list[int]:
    """A conversation, as templates read it, in the base's chat template, with the beginning of its answer.

    `options` are the template's own (`template_options`). Without a template it is one message of the user's.

    Raises DataError for what the template refuses.
    """
    if tokenizer.chat_template is None:
        plain = tuple(Message(turn["role"], turn["content"]) for turn in turns)
        return encode_prompt(Example(plain, where="messages"), tokenizer)
    tools = None if toolbox is None else toolbox.for_template
    try:
        text = tokenizer.apply_chat_template(
            [*turns], tools=tools, tokenize=False, add_generation_prompt=True, **options or {}
        )
    except TEMPLATE_ERRORS as error:
        raise DataError(f"the base's chat template refuses the messages: {error}") from None
    return text_tokens(tokenizer, text + (toolbox.opening if toolbox else ""), special=False)


def text_tokens(tokenizer: Any, text: str, special: bool = True) -> list[int]:
    """A text's tokens; with `special`, those that the tokenizer begins every text with."""
    return tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"]
