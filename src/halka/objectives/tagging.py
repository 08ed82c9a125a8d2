"""Token classification: a tag for every word of a sentence, predicted at the word's first token.

The sentence is an example's user message and its tags are the answer, both separated by single spaces.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from halka.core import AdaptedModel
from halka.data.batches import IGNORE_INDEX, Batch, mask_of, padded
from halka.data.examples import Example, Item
from halka.data.labels import OUTSIDE, label_index
from halka.data.truncation import EncodedExamples, LengthPolicy, truncate
from halka.models import pad_id, run
from halka.models.heads import labels_to_learn
from halka.objectives.classification import texts_of
from halka.objectives.cross_entropy import summed_cross_entropy
from halka.util.errors import DataError


@dataclass(frozen=True)
class Tagged(Item):
    """Token ids; for every token its word's index if it is the word's first, else -1; and every word's tag index."""

    ids: list[int]
    words: list[int]
    tags: list[int]

    @property
    def labels(self) -> int:
        return sum(word >= 0 for word in self.words)

    def __len__(self) -> int:
        return len(self.ids)


class Tagging:
    """Cross entropy at every word's first token; the answer is the most likely tag of each word.

    Words that were cut off carry no loss and are answered with `OUTSIDE`.
    """

    head_sees_rows = True
    answer_uses_context = False

    def encode(
        self,
        model: AdaptedModel,
        name: str | None,
        examples: Sequence[Example],
        max_length: int | None,
        too_long: LengthPolicy,
    ) -> EncodedExamples[Tagged]:
        labels = labels_to_learn(model, name)
        tags = [_tags(example, labels) for example in examples]
        items = [_item(words_of(example), model.tokenizer, own) for example, own in zip(examples, tags, strict=True)]

        def shorten(index: int, item: Tagged, length: int) -> Tagged:
            return _item(words_of(examples[index]), model.tokenizer, item.tags, length)

        return truncate(examples, items, shorten, max_length, too_long)

    def encode_prompt(self, model: AdaptedModel, example: Example, max_length: int | None) -> Tagged:
        words = words_of(example)
        return _item(words, model.tokenizer, [0] * len(words), max_length)

    def collate(self, items: Sequence[Tagged], padding: int) -> Batch:
        ids = [item.ids for item in items]
        labels = [[IGNORE_INDEX if word < 0 else item.tags[word] for word in item.words] for item in items]
        return Batch(padded(ids, padding), mask_of(ids), padded(labels, IGNORE_INDEX))

    def outputs(self, model: AdaptedModel, batch: Batch) -> Tensor:
        return run(model, **batch.inputs).logits

    def loss(self, model: AdaptedModel, name: str | None, outputs: Tensor, labels: Tensor) -> Tensor:
        return summed_cross_entropy(outputs, labels, len(model.labels_of(name)))

    def answers(
        self,
        model: AdaptedModel,
        names: Sequence[str | None],
        items: Sequence[Tagged],
        max_new_tokens: int,
        options: Mapping[str, Any],
    ) -> list[str]:
        base: Any = model.base
        logits_BTC = self.outputs(model, self.collate(items, pad_id(model)).to(base.device))
        answers = []
        for row_TC, item, name in zip(logits_BTC, items, names, strict=True):
            labels = model.labels_of(name)
            best = row_TC[:, : len(labels)].argmax(-1).tolist()
            tags = [OUTSIDE] * len(item.tags)
            for token, word in enumerate(item.words):
                if word >= 0:
                    tags[word] = labels[best[token]]
            answers.append(" ".join(tags))
        return answers


def words_of(example: Example) -> list[str]:
    """The sentence's words. Raises DataError for anything but one user message."""
    texts = texts_of(example)
    if len(texts) > 1:
        raise example.error("a tagger reads one sentence, not two texts")
    return texts[0].split()


def _tags(example: Example, labels: Sequence[str]) -> list[int]:
    """The label index of every word's tag."""
    tags, words = (example.answer or "").split(), words_of(example)
    if len(tags) != len(words):
        raise example.error(f"{len(words)} words have {len(tags)} tags: give one for each")
    try:
        return [label_index(tag, labels) for tag in tags]
    except DataError as error:
        raise example.error(error) from None


def _item(
    words: list[str], tokenizer: PreTrainedTokenizerBase, tags: list[int], max_length: int | None = None
) -> Tagged:
    """The sentence's tokens; a token is a word's first if no token before it begins within that word."""
    text = " ".join(words)
    if not tokenizer.is_fast:
        raise DataError(f"{type(tokenizer).__name__} gives no character offsets: load the fast tokenizer")
    encoded = tokenizer(
        text, return_offsets_mapping=True, verbose=False, truncation=max_length is not None, max_length=max_length
    )
    word_at = [index for index, word in enumerate(words) for _ in (*word, " ")]  # for every character
    last, firsts = -1, []
    for start, end in encoded["offset_mapping"]:
        start += start < end and text[start] == " "
        word = word_at[start] if start < end else -1
        firsts.append(word if word > last else -1)
        last = max(last, word)
    return Tagged(encoded["input_ids"], firsts, tags)
