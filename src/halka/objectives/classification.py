"""The label of a text or of two: cross entropy over an adapter's labels, and the likeliest of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from halka.core import AdaptedModel
from halka.data.batches import NO_LOSS, Batch
from halka.data.examples import Example
from halka.data.tokens import Encoded
from halka.models import pad_id, run
from halka.objectives.labelled import Labelled, collate_labelled, encode_labelled, encode_texts


class Classification:
    head_sees_rows = True
    answers_take_room = False

    def encode(
        self, model: AdaptedModel, name: str | None, examples: Sequence[Example], max_length: int | None, too_long: str
    ) -> Encoded:
        return encode_labelled(examples, model.tokenizer, model.labels_of(name), max_length, too_long)

    def question(self, model: AdaptedModel, example: Example, room: int | None) -> Labelled:
        return encode_texts(example, model.tokenizer, room)

    def collate(self, items: Sequence[Labelled], pad_id: int) -> Batch:
        return collate_labelled(items, pad_id)

    def outputs(self, model: AdaptedModel, batch: Batch) -> Tensor:
        return run(model, **batch.inputs).logits

    def loss(self, model: AdaptedModel, name: str | None, outputs: Tensor, labels: Tensor) -> tuple[Tensor, int]:
        return entropy(outputs, labels, len(model.labels_of(name)))

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
        known = [model.labels_of(name) for name in names]
        return [own[int(row[: len(own)].argmax())] for row, own in zip(logits_BC, known, strict=True)]


def entropy(logits: Tensor, labels: Tensor, count: int) -> tuple[Tensor, int]:
    """The summed cross entropy of labels (…) over the first `count` of the logits (…, C), and how many there are."""
    logits, labels = logits[..., :count].flatten(0, -2).float(), labels.flatten()
    loss = F.cross_entropy(logits, labels, ignore_index=NO_LOSS, reduction="sum")
    return loss, int((labels != NO_LOSS).sum())
