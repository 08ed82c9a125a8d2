"""An `Example` to what a tagger reads: a sentence of words, with a tag at each word's first token.

The words are the user's message and the tags the answer, both with single blanks between.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from halka.data.batches import NO_LOSS, Batch, mask_of, padded
from halka.data.examples import Example
from halka.data.labels import place_of
from halka.data.tokens import Encoded, sifted
from halka.objectives.labelled import texts_of
from halka.util.errors import HalkaError


@dataclass(frozen=True)
class Tagged:
    """Token ids; for each its word's place where it is the word's first, else -1; and the words' tags, by place."""

    ids: list[int]
    words: list[int]
    tags: list[int]

    @property
    def labels(self) -> int:
        return sum(word >= 0 for word in self.words)

    def __len__(self) -> int:
        return len(self.ids)


def encode_words(
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    labels: Sequence[str],
    max_length: int | None = None,
    too_long: str = "cut",
) -> Encoded:
    """Encodes many at once; words that are cut off carry no loss.

    Raises:
        TooLong: with "error", for the first over `max_length`.
        ValueError: a tag is none of `labels`, words and tags are not as many, or no example is left.
    """
    tags = [_places(example, labels) for example in examples]
    encoded = [_item(words_of(example), tokenizer, each) for example, each in zip(examples, tags, strict=True)]

    def shorten(index: int, item: Any, length: int) -> Tagged:
        return _item(words_of(examples[index]), tokenizer, item.tags, length)

    return sifted(examples, encoded, shorten, max_length, too_long)


def encode_sentence(example: Example, tokenizer: PreTrainedTokenizerBase, room: int | None) -> Tagged:
    """An example's words without their tags, cut to the room there is."""
    words = words_of(example)
    return _item(words, tokenizer, [0] * len(words), room)


def words_of(example: Example) -> list[str]:
    """The sentence's words. Raises ValueError for anything but one message by the user."""
    texts = texts_of(example)
    if len(texts) > 1:
        raise HalkaError(f"{example.where or 'the example'}: a tagger reads one sentence, not two texts")
    return texts[0].split()


def collate_words(items: Sequence[Tagged], pad_id: int) -> Batch:
    """The items as one batch, filled up at the right; labels (B, T)."""
    ids = [item.ids for item in items]
    labels = [[NO_LOSS if word < 0 else item.tags[word] for word in item.words] for item in items]
    return Batch(padded(ids, pad_id), mask_of(ids), padded(labels, NO_LOSS))


def _places(example: Example, labels: Sequence[str]) -> list[int]:
    where = f"{example.where}: " if example.where else ""
    tags, words = example.answers[0].split() if example.answers else [], words_of(example)
    if len(tags) != len(words):
        raise HalkaError(f"{where}{len(words)} words have {len(tags)} tags: give one for each")
    try:
        return [place_of(tag, labels) for tag in tags]
    except ValueError as error:
        raise HalkaError(f"{where}{error}") from None


def _item(words: list[str], tokenizer: Any, tags: list[int], room: int | None = None) -> Tagged:
    """The sentence's tokens; a token is the first of a word if none before it begins within that word."""
    text = " ".join(words)
    if not tokenizer.is_fast:
        raise HalkaError(f"{type(tokenizer).__name__} does not tell where its tokens stand; load the fast tokenizer")
    cut = {} if room is None else {"truncation": True, "max_length": room}
    encoded = tokenizer(text, return_offsets_mapping=True, verbose=False, **cut)
    begins = [place for place, word in enumerate(words) for _ in (*word, " ")]  # the word that a character is of
    seen, firsts = -1, []
    for start, end in encoded["offset_mapping"]:
        start += start < end and text[start] == " "
        word = begins[start] if start < end else -1
        firsts.append(word if word > seen else -1)
        seen = max(seen, word)
    return Tagged(encoded["input_ids"], firsts, tags)
