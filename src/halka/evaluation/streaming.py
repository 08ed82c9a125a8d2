"""A model with an adapter, as `rag.answer.Answerer` asks it: answers in pieces, and the tokens of a prompt.

A prompt is text, whatever documents were put into it: what the base's tokenizer would read as a control token, and so
as the end of the user's turn, is broken up by a space.
"""

from __future__ import annotations

import queue
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from halka.core import AdaptedModel
from halka.data.examples import Example, Message
from halka.data.tokens import encode_prompt
from halka.evaluation.answers import generate
from halka.models import context
from halka.util.errors import HalkaError

BRACKETED = re.compile(r"<.+>|\[.+\]", re.DOTALL)
TRIES = 4


def prompt_budget(model: AdaptedModel, name: str | None, new_tokens: int) -> int:
    """The tokens that a prompt may take beside an answer of `new_tokens`. Raises ValueError where none are left."""
    room = context(model, name)
    if room is None:
        return 2**16
    if room <= new_tokens:
        raise HalkaError(f"{new_tokens} new tokens leave nothing of the {room} that this base reads: ask for fewer")
    return room - new_tokens


def user_message(model: AdaptedModel, prompt: str) -> Message:
    """The user's message of a prompt, in which no control token stands.

    Raises ValueError for a tokenizer that does not tell where its tokens stand, and for a text that is one however it
    is written.
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
    """Where the control tokens begin that a text would be read with: the special ones, and what is added in brackets.

    Other tokens that were added, words and spaces, are a text's own.
    """
    if not tokenizer.is_fast:
        raise HalkaError(f"{type(tokenizer).__name__} does not tell where its tokens stand; load the fast tokenizer")
    control = {
        number: token.content
        for number, token in tokenizer.added_tokens_decoder.items()
        if (token.special or BRACKETED.fullmatch(token.content)) and not token.content.isspace()
    }
    read = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    found = [
        (number, end - len(text[start:end].lstrip()), end)
        for number, (start, end) in zip(read["input_ids"], read["offset_mapping"], strict=True)
        if number in control
    ]
    unknown = tokenizer.unk_token_id  # where it stands for what the tokenizer does not know, it says nothing
    return [start for number, start, end in found if number != unknown or text[start:end].strip() == control[number]]


def prompt_tokens(model: AdaptedModel, prompt: str) -> int:
    """The tokens that the model reads for a prompt, its chat template's included."""
    return len(encode_prompt(Example((user_message(model, prompt),)), model.tokenizer))


def answering(
    model: AdaptedModel, name: str | None, tokens: int, options: dict[str, Any]
) -> Callable[[str], Iterable[str]]:
    """What makes an adapter's answers of at most so many tokens, in pieces as they are made."""
    from transformers import TextIteratorStreamer

    def answer(prompt: str) -> Iterator[str]:
        streamer: Any = TextIteratorStreamer(model.tokenizer, skip_prompt=True, skip_special_tokens=True)
        failed: queue.SimpleQueue[BaseException] = queue.SimpleQueue()

        def work() -> None:
            try:
                for _ in generate(
                    model,
                    name,
                    [Example((user_message(model, prompt),))],
                    max_new_tokens=tokens,
                    batch_size=1,
                    streamer=streamer,
                    **options,
                ):
                    pass
            except BaseException as error:  # raised again where the answer is read
                failed.put(error)
                streamer.end()

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        yield from streamer
        thread.join()
        if not failed.empty():
            raise failed.get()

    return answer
