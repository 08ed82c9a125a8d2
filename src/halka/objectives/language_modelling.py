"""Language modelling: the next token of a conversation, with loss on what the assistant writes.

How a conversation becomes tokens is `halka.data.tokens`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from halka.core import AdaptedModel
from halka.data.answers import decoded_answer, end_tokens, opening
from halka.data.batches import Batch, collate
from halka.data.examples import Example
from halka.data.packing import PackedBatch, pack
from halka.data.tokens import Tokens, encode_all, encode_prompt
from halka.data.truncation import EncodedExamples, LengthPolicy
from halka.models import hidden_states, logits, pad_id
from halka.models.attention.forest import ForestPlan
from halka.models.attention.function import NAME as ATTENTION
from halka.models.layouts import layout_of
from halka.objectives.cross_entropy import chunk_for, label_losses, next_token_losses, summed_by_run
from halka.util.errors import HalkaError

GREEDY = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
"""Options of transformers' `generate` that override what a base's own generation config says of sampling."""

LINE = 16
"""On CPUs a line in half precision is filled up to a multiple of so many tokens: kernels are made for each length, and
kept."""


class LanguageModelling:
    """Cross entropy on the assistant's tokens, answers by generation."""

    head_sees_rows = False
    answer_uses_context = True

    def encode(
        self,
        model: AdaptedModel,
        name: str | None,
        examples: Sequence[Example],
        max_length: int | None,
        too_long: LengthPolicy,
    ) -> EncodedExamples[Tokens]:
        return encode_all(examples, model.tokenizer, max_length, too_long)

    def encode_prompt(self, model: AdaptedModel, example: Example, max_length: int | None) -> Tokens:
        ids = encode_prompt(example, model.tokenizer)
        return Tokens(ids, [False] * len(ids))

    def collate(self, items: Sequence[Tokens], padding: int) -> Batch:
        return collate(items, padding)

    def outputs(self, model: AdaptedModel, batch: Batch) -> Tensor:
        # no token sees the padding behind it, and without a mask attention is faster and stores no scores
        return hidden_states(model, input_ids=batch.input_ids)

    def loss(self, model: AdaptedModel, name: str | None, outputs: Tensor, labels: Tensor) -> Tensor:
        return next_token_losses(outputs, labels, partial(logits, model), **_head(model, [name])).sum()

    def padded_label_losses(self, model: AdaptedModel, name: str | None, batch: Batch) -> Tensor:
        """The loss of each of a padded batch's labels (M,), row by row."""
        outputs = self.outputs(model, batch)
        return next_token_losses(outputs, batch.labels, partial(logits, model), **_head(model, [name]))

    def pack(self, model: AdaptedModel, groups: Sequence[Sequence[Tokens]]) -> PackedBatch:
        """The items of each run as one line, on the base's device; what fills it up to LINE is the last run's.

        Raises HalkaError as `data.packing.pack` does.
        """
        base: Any = model.base
        batch, device = pack(groups), next(base.parameters()).device
        filled = device.type == "cpu" and base.dtype != torch.float32
        return (batch.filled(LINE) if filled else batch).to(device)

    def packed_losses(self, model: AdaptedModel, names: Sequence[str | None], batch: PackedBatch) -> Tensor:
        """The summed loss of each run (R,). Raises as `packed_label_losses` does."""
        return summed_by_run(self.packed_label_losses(model, names, batch), batch)

    def packed_label_losses(self, model: AdaptedModel, names: Sequence[str | None], batch: PackedBatch) -> Tensor:
        """The loss of each of the batch's labels (M,); run i uses adapter `names[i]`, which `model.use` has named so.

        Raises HalkaError within another `use`, without `use_attention`, for a base whose texts share no line, and for
        several runs of which one trains the head: that is called on labels' states, which have no rows.
        """
        base: Any = model.base
        if not layout_of(base).attends:
            raise HalkaError(f"texts share no line of {type(base).__name__}, whose layers carry states: pad batches")
        if model.active != tuple(names) or base.config._attn_implementation != ATTENTION:
            raise HalkaError(f"a packed batch of {names} needs `model.use({names})` and `use_attention(model.base)`")
        if len(names) > 1 and any(_trains_head(model, name) for name in names):
            raise HalkaError(f"of {names} one trains the head: its packed batches need passes of their own")
        forest = ForestPlan(batch.forest, batch.input_ids.device)
        hidden = hidden_states(model, input_ids=batch.input_ids, position_ids=batch.position_ids, **forest.inputs)
        batch = batch.to(hidden.device)  # of the last layer, if the base is on several
        states = hidden[0, batch.states]
        return label_losses(states, batch.labels, partial(logits, model), **_head(model, names))

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
        ends = sorted(end_tokens(base.generation_config, model.tokenizer))
        ending = {"tokenizer": model.tokenizer, **({"eos_token_id": ends} if ends else {})}  # it reads stop strings
        own = {"pad_token_id": pad_id(model), **ending, **GREEDY, **options}
        ids_BT = base.generate(**batch.inputs, max_new_tokens=max_new_tokens, **own)
        begin, ended = opening(model.tokenizer), own.get("eos_token_id", ())  # an option may name others
        ends = {ended} if isinstance(ended, int) else {*(ended or ())}
        return [
            decoded_answer(ids, model.tokenizer, ends, begin) for ids in ids_BT[:, batch.input_ids.shape[1] :].tolist()
        ]


def _head(model: AdaptedModel, names: Sequence[str | None]) -> dict[str, Any]:
    """Of the base's head, whether one of the adapters trains it, and the labels whose logits exist at once."""
    base: Any = model.base
    vocabulary = base.config.get_text_config().vocab_size
    trains = any(_trains_head(model, name) for name in names)
    device = next(base.get_submodule(layout_of(base).head).parameters()).device  # where the logits are
    return {"head_trains": trains, "chunk": chunk_for(device, vocabulary)}


def _trains_head(model: AdaptedModel, name: str | None) -> bool:
    targets = () if name is None else model.adapter(name).targets.values()
    return any(target.role in ("head", "base") for target in targets)
