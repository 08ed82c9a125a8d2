"""Where an answer begins and ends in what a model writes, as its chat template has it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from transformers import PreTrainedTokenizerBase

from halka.data import chat
from halka.data.examples import Message

PROBE = (Message("user", "Who?"), Message("assistant", "Ada."))


def end_tokens(generation_config: Any, tokenizer: PreTrainedTokenizerBase | None) -> frozenset[int]:
    """The ids that end a text: the generation config's, else the tokenizer's, and what the chat template closes with.

    Of a base that was not taught to chat the first are often others than the last, by which training closes answers.
    """
    ends = getattr(generation_config, "eos_token_id", None)
    if ends is None and tokenizer is not None:
        ends = tokenizer.eos_token_id
    ids: set[Any] = set() if ends is None else {*ends} if isinstance(ends, Iterable) else {ends}
    if tokenizer is not None and tokenizer.chat_template and (mark := chat.closing(PROBE, tokenizer)):
        ids.add(tokenizer.convert_tokens_to_ids(mark))
    return frozenset(ids)


def opening(tokenizer: PreTrainedTokenizerBase) -> str:
    """What the chat template itself writes before an answer, such as an empty thought; training teaches it, too."""
    return chat.opening(PROBE, tokenizer).strip() if tokenizer.chat_template else ""


def spoken(text: str, begin: str) -> str:
    """The answer in a text that may begin as the template begins one, `opening`."""
    return text.strip().removeprefix(begin).strip()


def spoken_pieces(pieces: Iterable[str], begin: str) -> Iterator[str]:
    """The pieces of an answer's text without its `opening`, each as soon as it is certain."""
    held, certain = "", not begin
    for piece in pieces:
        if certain:
            yield piece
            continue
        held += piece
        start = held.lstrip()
        if start.startswith(begin) and (rest := start.removeprefix(begin).lstrip()):
            certain = True
            yield rest
        elif not begin.startswith(start) and not start.startswith(begin):
            certain = True
            yield held
    if not certain and not held.lstrip().startswith(begin):
        yield held
