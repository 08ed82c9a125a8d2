"""A tag for each word of a sentence: cross entropy at the words' first tokens, and the likeliest tags there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from halka.core import AdaptedModel
from halka.data.batches import Batch
from halka.data.examples import Example
from halka.data.labels import OUTSIDE
from halka.data.tokens import Encoded
from halka.models import pad_id, run
from halka.objectives.classification import entropy
from halka.objectives.words import Tagged, collate_words, encode_sentence, encode_words


class Tagging:
    head_sees_rows = True
    answers_take_room = False

    def encode(
        self, model: AdaptedModel, name: str | None, examples: Sequence[Example], max_length: int | None, too_long: str
    ) -> Encoded:
        return encode_words(examples, model.tokenizer, model.labels_of(name), max_length, too_long)

    def question(self, model: AdaptedModel, example: Example, room: int | None) -> Tagged:
        return encode_sentence(example, model.tokenizer, room)

    def collate(self, items: Sequence[Tagged], pad_id: int) -> Batch:
        return collate_words(items, pad_id)

    def outputs(self, model: AdaptedModel, batch: Batch) -> Tensor:
        return run(model, **batch.inputs).logits

    def loss(self, model: AdaptedModel, name: str | None, outputs: Tensor, labels: Tensor) -> tuple[Tensor, int]:
        return entropy(outputs, labels, len(model.labels_of(name)))

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
            tags = [OUTSIDE] * len(item.tags)  # words that were cut off have no token
            for place, word in enumerate(item.words):
                if word >= 0:
                    tags[word] = labels[best[place]]
            answers.append(" ".join(tags))
        return answers
