"""Conversations and texts to the tokens that the base reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from halka.data.chat import TEMPLATE_ERRORS
from halka.data.examples import Example, Message
from halka.data.tokens import encode_prompt
from halka.server.answers.tools import Toolbox
from halka.util.errors import DataError


def chat_tokens(tokenizer: Any, turns: Sequence[dict[str, Any]], toolbox: Toolbox | None = None) -> list[int]:
    """A conversation, as templates read it, in the base's chat template, with the beginning of its answer.

    Without a template it is one message of the user's. Raises DataError for what the template refuses.
    """
    if tokenizer.chat_template is None:
        plain = tuple(Message(turn["role"], turn["content"]) for turn in turns)
        return encode_prompt(Example(plain, where="messages"), tokenizer)
    tools = None if toolbox is None else toolbox.for_template
    try:
        text = tokenizer.apply_chat_template([*turns], tools=tools, tokenize=False, add_generation_prompt=True)
    except TEMPLATE_ERRORS as error:
        raise DataError(f"the base's chat template refuses the messages: {error}") from None
    return text_tokens(tokenizer, text + (toolbox.opening if toolbox else ""), special=False)


def count_tokens(tokenizer: Any, toolbox: Toolbox | None, turns: Sequence[dict[str, Any]]) -> int:
    """How many tokens a conversation has in the base's chat template."""
    return len(chat_tokens(tokenizer, turns, toolbox))


def text_tokens(tokenizer: Any, text: str, special: bool = True) -> list[int]:
    """A text's tokens; with `special`, those that the tokenizer begins every text with."""
    return tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"]
