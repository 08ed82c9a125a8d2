"""Sequence classification: the label of one text, or of two.

The texts are an example's user messages and its answer is the label's name, so the same file trains a classifier and
a language model that writes the label.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from halka.core import AdaptedModel
from halka.data.batches import Batch, mask_of, padded
from halka.data.examples import Example, Item
from halka.data.labels import label_index
from halka.data.truncation import EncodedExamples, LengthPolicy, truncate
from halka.models import pad_id, run
from halka.models.heads import labels_to_learn
from halka.objectives.cross_entropy import summed_cross_entropy
from halka.util.errors import DataError


@dataclass(frozen=True)
class Labelled(Item):
    """Token ids, the label's index, and each token's type (1 in the second text) where the base uses types."""

    ids: list[int]
    label: int
    types: list[int]

    @property
    def labels(self) -> int:
        return 1

    def __len__(self) -> int:
        return len(self.ids)


class Classification:
    """Cross entropy over an adapter's labels; the answer is the most likely label's name."""

    head_sees_rows = True
    answer_uses_context = False

    def encode(
        self,
        model: AdaptedModel,
        name: str | None,
        examples: Sequence[Example],
        max_length: int | None,
        too_long: LengthPolicy,
    ) -> EncodedExamples[Labelled]:
        labels = labels_to_learn(model, name)
        indices = [_label(example, labels) for example in examples]
        items = [
            _item(texts_of(example), model.tokenizer, label) for example, label in zip(examples, indices, strict=True)
        ]

        def shorten(index: int, item: Labelled, length: int) -> Labelled:
            return _item(texts_of(examples[index]), model.tokenizer, item.label, length)

        return truncate(examples, items, shorten, max_length, too_long)

    def encode_prompt(self, model: AdaptedModel, example: Example, max_length: int | None) -> Labelled:
        return _item(texts_of(example), model.tokenizer, 0, max_length)

    def collate(self, items: Sequence[Labelled], padding: int) -> Batch:
        ids = [item.ids for item in items]
        types = padded([item.types for item in items], 0) if items and items[0].types else None
        return Batch(
            padded(ids, padding), mask_of(ids), torch.tensor([item.label for item in items], device="cpu"), types
        )

    def outputs(self, model: AdaptedModel, batch: Batch) -> Tensor:
        return run(model, **batch.inputs).logits

    def loss(self, model: AdaptedModel, name: str | None, outputs: Tensor, labels: Tensor) -> Tensor:
        return summed_cross_entropy(outputs, labels, len(model.labels_of(name)))

    def answers(
        self,
        model: AdaptedModel,
        names: Sequence[str | None],
        items: Sequence[Labelled],
        max_new_tokens: int,
        options: Mapping[str, Any],
    ) -> list[str]:
        base: Any = model.base
        logits_BC = self.outputs(model, self.collate(items, pad_id(model)).to(base.device))
        labels = [model.labels_of(name) for name in names]
        return [own[int(row[: len(own)].argmax())] for row, own in zip(logits_BC, labels, strict=True)]


def texts_of(example: Example) -> list[str]:
    """The example's one or two texts. Raises DataError for any other conversation."""
    if len(example.prompt) not in (1, 2) or any(message.role != "user" for message in example.prompt):
        raise example.error("a classifier reads one text or two, each a user message: remove the other messages")
    return [message.content for message in example.prompt]


def _label(example: Example, labels: Sequence[str]) -> int:
    if example.answer is None:
        raise example.error("it has no label")
    try:
        return label_index(example.answer.strip(), labels)
    except DataError as error:
        raise example.error(error) from None


def _item(texts: list[str], tokenizer: PreTrainedTokenizerBase, label: int, max_length: int | None = None) -> Labelled:
    """The texts with the special tokens that the tokenizer puts around them, also when they are cut."""
    first, second = texts[0], texts[1] if len(texts) == 2 else None
    encoded = tokenizer(first, second, verbose=False, truncation=max_length is not None, max_length=max_length)
    return Labelled(encoded["input_ids"], label, encoded.get("token_type_ids") or [])
