"""An `Example` to what a classifier reads: one text or two, and the place of its label.

The texts are the user's messages, and the answer is the label's name, so that one file serves a classifier and a
language model that says the label.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from halka.data.batches import Batch, mask_of, padded
from halka.data.examples import Example
from halka.data.labels import place_of
from halka.data.tokens import Encoded, sifted
from halka.util.errors import HalkaError

NOT_A_TEXT = "a classifier reads one text or two, each a user's message: leave other messages away"


@dataclass(frozen=True)
class Labelled:
    """Token ids, the place of the label, and for each token whether it is the second text's, where the base asks."""

    ids: list[int]
    label: int
    types: list[int]

    @property
    def labels(self) -> int:
        return 1

    def __len__(self) -> int:
        return len(self.ids)


def encode_labelled(
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    labels: Sequence[str],
    max_length: int | None = None,
    too_long: str = "cut",
) -> Encoded:
    """Encodes many at once, with the tokens that the tokenizer puts around texts; what is cut keeps them.

    Raises:
        TooLong: with "error", for the first over `max_length`.
        ValueError: a label is none of `labels`, or no example is left.
    """
    places = [_place(example, labels) for example in examples]
    encoded = [_item(texts_of(example), tokenizer, label) for example, label in zip(examples, places, strict=True)]

    def shorten(index: int, item: Any, length: int) -> Labelled:
        return _item(texts_of(examples[index]), tokenizer, item.label, length)

    return sifted(examples, encoded, shorten, max_length, too_long)


def encode_texts(example: Example, tokenizer: PreTrainedTokenizerBase, room: int | None) -> Labelled:
    """An example's texts without its label, cut to the room there is."""
    return _item(texts_of(example), tokenizer, 0, room)


def texts_of(example: Example) -> list[str]:
    """The one text or the two. Raises ValueError for any other conversation."""
    if len(example.prompt) not in (1, 2) or any(message.role != "user" for message in example.prompt):
        raise HalkaError(f"{example.where}: {NOT_A_TEXT}" if example.where else NOT_A_TEXT)
    return [message.content for message in example.prompt]


def collate_labelled(items: Sequence[Labelled], pad_id: int) -> Batch:
    """The items as one batch, filled up at the right; labels (B,)."""
    import torch

    ids = [item.ids for item in items]
    types = padded([item.types for item in items], 0) if items and items[0].types else None
    return Batch(padded(ids, pad_id), mask_of(ids), torch.tensor([item.label for item in items]), types)


def _place(example: Example, labels: Sequence[str]) -> int:
    try:
        if not example.answers:
            raise HalkaError("it has no label")
        return place_of(example.answers[0].strip(), labels)
    except ValueError as error:
        raise HalkaError(f"{example.where}: {error}" if example.where else str(error)) from None


def _item(texts: list[str], tokenizer: Any, label: int, room: int | None = None) -> Labelled:
    cut = {} if room is None else {"truncation": True, "max_length": room}
    encoded = tokenizer(*texts, verbose=False, **cut)
    return Labelled(encoded["input_ids"], label, encoded.get("token_type_ids") or [])
