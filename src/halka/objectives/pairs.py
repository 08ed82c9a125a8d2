"""An `Example` to what a sequence-to-sequence model reads and writes: the prompt's tokens, and the answer's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from halka.data.batches import NO_LOSS, Batch, mask_of, padded
from halka.data.examples import Example
from halka.data.tokens import Encoded, sifted
from halka.util.errors import HalkaError


@dataclass(frozen=True)
class Pair:
    """Token ids of the prompt and of the answer, with what the tokenizer puts around them; an answer has an end."""

    ids: list[int]
    answer: list[int]

    @property
    def labels(self) -> int:
        return len(self.answer)

    def __len__(self) -> int:
        return len(self.ids) + len(self.answer)


def encode_pairs(
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int | None = None,
    too_long: str = "cut",
) -> Encoded:
    """Encodes many at once; `max_length` is for both together, and the prompt is cut before the answer.

    Raises:
        TooLong: with "error", for the first over `max_length`.
        ValueError: no example is left.
    """
    encoded = [_pair(example, tokenizer) for example in examples]

    def shorten(index: int, item: Any, length: int) -> Pair | ValueError:
        room = length - len(item.answer)
        if room < 2:
            return HalkaError(f"the answer alone has {len(item.answer)} tokens, where max_length is {length}")
        return Pair(_ids(source_of(examples[index]), tokenizer, room), item.answer)

    return sifted(examples, encoded, shorten, max_length, too_long)


def encode_source(example: Example, tokenizer: PreTrainedTokenizerBase, room: int | None) -> Pair:
    """An example's prompt without its answer, cut to the room there is."""
    return Pair(_ids(source_of(example), tokenizer, room), [])


def source_of(example: Example) -> str:
    """What is read: the messages before the answer, one a line."""
    return "\n".join(message.content for message in example.prompt)


def collate_pairs(items: Sequence[Pair], pad_id: int) -> Batch:
    """The items as one batch, filled up at the right; labels (B, S)."""
    ids = [item.ids for item in items]
    return Batch(padded(ids, pad_id), mask_of(ids), padded([item.answer for item in items], NO_LOSS))


def _pair(example: Example, tokenizer: Any) -> Pair | ValueError:
    if not example.answers:
        return HalkaError("it has no answer")
    answer = tokenizer(text_target=example.answers[0], verbose=False)["input_ids"]
    end = tokenizer.eos_token_id
    answer = answer if end is None or answer[-1:] == [end] else [*answer, end]
    return Pair(_ids(source_of(example), tokenizer), answer)


def _ids(text: str, tokenizer: Any, room: int | None = None) -> list[int]:
    cut = {} if room is None else {"truncation": True, "max_length": room}
    return tokenizer(text, verbose=False, **cut)["input_ids"]
