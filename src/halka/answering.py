"""A model with an adapter, as `rag.answer.Answerer` asks it: answers in pieces, and the tokens of a prompt."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from halka.core import AdaptedModel
from halka.data.examples import Example, Message
from halka.data.tokens import encode_prompt
from halka.evaluation import generate
from halka.models import context


def prompt_budget(model: AdaptedModel, name: str | None, new_tokens: int) -> int:
    """The tokens that a prompt may take beside an answer of `new_tokens`. Raises ValueError where none are left."""
    room = context(model, name)
    if room is None:
        return 2**16
    if room <= new_tokens:
        raise ValueError(f"{new_tokens} new tokens leave nothing of the {room} that this base reads: ask for fewer")
    return room - new_tokens


def prompt_tokens(model: AdaptedModel, prompt: str) -> int:
    """The tokens that the model reads for a prompt, its chat template's included."""
    return len(encode_prompt(Example((Message("user", prompt),)), model.tokenizer))


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
                    [Example((Message("user", prompt),))],
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
