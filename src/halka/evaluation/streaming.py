"""A model with an adapter as `rag.answer.Answerer` asks it: answers in pieces, and the tokens of a prompt.

A prompt is plain text, whatever it quotes: a space breaks up what the tokenizer would read as a control token, such as
the end of the user's turn.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

from halka.core import AdaptedModel
from halka.data.examples import Example, Message
from halka.data.tokens import encode_prompt
from halka.evaluation.generation import stream_answer
from halka.models import context
from halka.util.errors import HalkaError

BRACKETED = re.compile(r"<.+>|\[.+\]", re.DOTALL)
TRIES = 4


def prompt_budget(model: AdaptedModel, name: str | None, new_tokens: int) -> int:
    """The tokens that a prompt may have beside an answer of `new_tokens`. Raises HalkaError if none are left."""
    room = context(model, name)
    if room is None:
        return 2**16
    if room <= new_tokens:
        raise HalkaError(f"{new_tokens} new tokens leave nothing of the {room} that this base reads: ask for fewer")
    return room - new_tokens


def user_message(model: AdaptedModel, prompt: str) -> Message:
    """The prompt as the user's message, without control tokens.

    Raises HalkaError for a tokenizer without offsets, and for a text that stays a control token with spaces in it.
    """
    for _ in range(TRIES):
        starts = _control_tokens(model.tokenizer, prompt)
        if not starts:
            return Message("user", prompt)
        for start in reversed(starts):
            prompt = f"{prompt[: start + 1]} {prompt[start + 1 :]}"
    raise HalkaError(
        f"the base's tokenizer reads {prompt[starts[0] : starts[0] + 20]!r} as a control token, with spaces too: take "
        "it out of the documents and the question"
    )


def _control_tokens(tokenizer: Any, text: str) -> list[int]:
    """The offsets of control tokens in a text: special tokens, and added tokens in brackets.

    Other added tokens, words and spaces, are plain text.
    """
    if not tokenizer.is_fast:
        raise HalkaError(f"{type(tokenizer).__name__} has no offsets of its tokens: load the fast tokenizer")
    control = {
        number: token.content
        for number, token in tokenizer.added_tokens_decoder.items()
        if (token.special or BRACKETED.fullmatch(token.content)) and not token.content.isspace()
    }
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    controls = [
        (number, end - len(text[start:end].lstrip()), end)
        for number, (start, end) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
        if number in control
    ]
    unknown = tokenizer.unk_token_id  # for letters that the tokenizer lacks it is no control token
    return [start for number, start, end in controls if number != unknown or text[start:end].strip() == control[number]]


def prompt_tokens(model: AdaptedModel, prompt: str) -> int:
    """The number of tokens of a prompt in the chat template."""
    return len(encode_prompt(Example((user_message(model, prompt),)), model.tokenizer))


class Answering(NamedTuple):
    """What `Answerer` needs of a model: a prompt to its answer in pieces, the prompt's budget, a text's tokens."""

    generate: Callable[[str], Iterable[str]]
    budget: int
    count: Callable[[str], int]


def answering(
    model: AdaptedModel, name: str | None, new_tokens: int, options: Mapping[str, Any] | None = None
) -> Answering:
    """A model with the adapter `name` (None: the bare base) for an answerer: `Answerer(retriever, *answering(…))`.

    Answers have at most `new_tokens` tokens; `options` go to transformers' `generate`. Raises HalkaError if the base
    has no room for a prompt beside them.
    """
    generate = partial(_answer, model, name, new_tokens, options or {})
    return Answering(generate, prompt_budget(model, name, new_tokens), partial(prompt_tokens, model))


def _answer(
    model: AdaptedModel, name: str | None, new_tokens: int, options: Mapping[str, Any], prompt: str
) -> Iterator[str]:
    """The answer's text in pieces, as it is made."""
    example = Example((user_message(model, prompt),))
    return stream_answer(model, name, example, max_new_tokens=new_tokens, **options)
