"""A text from a text, by an encoder and a decoder: loss on every token of the answer, answers by generation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from halka.core import AdaptedModel
from halka.data.batches import Batch
from halka.data.examples import Example
from halka.data.tokens import Encoded
from halka.models import pad_id, run
from halka.objectives.classification import entropy
from halka.objectives.pairs import Pair, collate_pairs, encode_pairs, encode_source


class SequenceToSequence:
    head_sees_rows = True
    answers_take_room = False

    def encode(
        self, model: AdaptedModel, name: str | None, examples: Sequence[Example], max_length: int | None, too_long: str
    ) -> Encoded:
        return encode_pairs(examples, model.tokenizer, max_length, too_long)

    def question(self, model: AdaptedModel, example: Example, room: int | None) -> Pair:
        return encode_source(example, model.tokenizer, room)

    def collate(self, items: Sequence[Pair], pad_id: int) -> Batch:
        return collate_pairs(items, pad_id)

    def outputs(self, model: AdaptedModel, batch: Batch) -> Tensor:
        base: Any = model.base
        before = base.prepare_decoder_input_ids_from_labels(labels=batch.labels)
        return run(model, **batch.inputs, decoder_input_ids=before).logits

    def loss(self, model: AdaptedModel, name: str | None, outputs: Tensor, labels: Tensor) -> tuple[Tensor, int]:
        return entropy(outputs, labels, outputs.shape[-1])

    def answers(
        self,
        model: AdaptedModel,
        names: Sequence[str | None],
        items: Sequence[Pair],
        max_new_tokens: int,
        options: Mapping[str, Any],
    ) -> list[str]:
        base: Any = model.base
        batch = self.collate(items, pad_id(model)).to(base.device)
        made = base.generate(
            **batch.inputs,
            max_new_tokens=max_new_tokens,
            **{"do_sample": False, "temperature": None, "top_p": None, "top_k": None, **options},
        )
        return [text.strip() for text in model.tokenizer.batch_decode(made, skip_special_tokens=True)]
