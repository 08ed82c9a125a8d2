"""Where an answer ends: the tokens that a model is taught, or has learned, to end it with."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from transformers import PreTrainedTokenizerBase

from halka.data.chat import closing
from halka.data.examples import Message

PROBE = (Message("user", "Who?"), Message("assistant", "Ada."))


def end_tokens(generation_config: Any, tokenizer: PreTrainedTokenizerBase | None) -> frozenset[int]:
    """The ids that end a text: the generation config's, else the tokenizer's, and what the chat template closes with.

    Of a base that was not taught to chat the first are often others than the last, by which training closes answers.
    """
    ends = getattr(generation_config, "eos_token_id", None)
    if ends is None and tokenizer is not None:
        ends = tokenizer.eos_token_id
    ids = set[int]() if ends is None else {*ends} if isinstance(ends, Iterable) else {ends}
    if tokenizer is not None and tokenizer.chat_template and (mark := closing(PROBE, tokenizer)):
        ids.update(tokenizer.convert_tokens_to_ids([mark]))
    return frozenset(ids)
