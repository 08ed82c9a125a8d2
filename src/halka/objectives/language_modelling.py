"""The next token of a conversation: loss on what the assistant writes, answers by generation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from halka.core import AdaptedModel
from halka.data.batches import Batch, collate
from halka.data.examples import Example
from halka.data.tokens import Encoded, Tokens, encode_all, encode_prompt
from halka.models import hidden_states, logits, pad_id
from halka.objectives.cross_entropy import label_loss


class LanguageModelling:
    head_sees_rows = False  # it sees label positions alone
    answers_take_room = True

    def encode(
        self, model: AdaptedModel, name: str | None, examples: Sequence[Example], max_length: int | None, too_long: str
    ) -> Encoded:
        return encode_all(examples, model.tokenizer, max_length, too_long)

    def question(self, model: AdaptedModel, example: Example, room: int | None) -> Tokens:
        ids = encode_prompt(example, model.tokenizer)
        return Tokens(ids, [False] * len(ids))

    def collate(self, items: Sequence[Tokens], pad_id: int) -> Batch:
        return collate(items, pad_id)

    def outputs(self, model: AdaptedModel, batch: Batch) -> Tensor:
        return hidden_states(model, **batch.inputs)

    def loss(self, model: AdaptedModel, name: str | None, outputs: Tensor, labels: Tensor) -> tuple[Tensor, int]:
        targets = () if name is None else model.adapter(name).targets.values()
        head_trains = any(target.role in ("head", "base") for target in targets)
        return label_loss(outputs, labels, lambda hidden: logits(model, hidden), head_trains=head_trains)

    def answers(
        self,
        model: AdaptedModel,
        names: Sequence[str | None],
        items: Sequence[Tokens],
        max_new_tokens: int,
        options: Mapping[str, Any],
    ) -> list[str]:
        base: Any = model.base
        batch = collate(items, pad_id(model), "left").to(base.device)
        made = base.generate(
            **batch.inputs,
            max_new_tokens=max_new_tokens,
            pad_token_id=pad_id(model),
            **{"do_sample": False, "temperature": None, "top_p": None, "top_k": None, **options},
        )
        texts = model.tokenizer.batch_decode(made[:, batch.input_ids.shape[1] :], skip_special_tokens=True)
        return [text.strip() for text in texts]
