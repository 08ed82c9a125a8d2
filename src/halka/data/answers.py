"""Where an answer begins and ends in what a model writes, as its chat template has it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from itertools import takewhile
from typing import Any

from transformers import PreTrainedTokenizerBase

from halka.data import locating


def end_tokens(generation_config: Any, tokenizer: PreTrainedTokenizerBase | None) -> frozenset[int]:
    """The ids that end a text: the generation config's, else the tokenizer's, and by what training closes answers.

    That is what the chat template closes them with, or without one the tokenizer's end-of-sequence token. Of a base
    that was not taught to chat the first are often others.
    """
    ends = getattr(generation_config, "eos_token_id", None)
    if ends is None and tokenizer is not None:
        ends = tokenizer.eos_token_id
    ids: set[Any] = set() if ends is None else {*ends} if isinstance(ends, Iterable) else {ends}
    if tokenizer is not None and tokenizer.chat_template and (mark := locating.closing(tokenizer)):
        ids.add(tokenizer.convert_tokens_to_ids(mark))
    elif tokenizer is not None and not tokenizer.chat_template and tokenizer.eos_token_id is not None:
        ids.add(tokenizer.eos_token_id)
    return frozenset(ids)


def opening(tokenizer: PreTrainedTokenizerBase) -> str:
    """What the chat template itself writes before an answer, such as an empty thought; training teaches it, too.

    It is as it stands in decoded answers, without special tokens.
    """
    if not tokenizer.chat_template:
        return ""
    ids = tokenizer(locating.opening(tokenizer), add_special_tokens=False)["input_ids"]
    return str(tokenizer.decode(ids, skip_special_tokens=True)).strip()


def spoken(text: str, begin: str) -> str:
    """The answer in a text that may begin as the template begins one, `opening`."""
    return text.strip().removeprefix(begin).strip()


def decoded_answer(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase, ends: Collection[int], begin: str) -> str:
    """The answer in what a model writes, without the id of `ends` that closes it, what follows that, and `opening`."""
    own = [*takewhile(lambda number: number not in ends, ids)]
    return spoken(str(tokenizer.decode(own, skip_special_tokens=True)), begin)


class Spoken:
    """The text of an answer that comes in pieces, without its `opening`, each piece as soon as it is certain."""

    def __init__(self, begin: str):
        self._begin, self._held, self._certain = begin, "", not begin

    def push(self, piece: str) -> str:
        """What this piece makes certain."""
        if self._certain:
            return piece
        self._held += piece
        start = self._held.lstrip()
        spoken = start.removeprefix(self._begin).lstrip() if start.startswith(self._begin) else self._held
        self._certain = bool(spoken) and not self._begin.startswith(start)
        return spoken if self._certain else ""

    def end(self) -> str:
        """The rest: what may have become the opening, and has not."""
        held, certain, self._certain = self._held, self._certain, True
        return "" if certain or held.lstrip().startswith(self._begin) else held
