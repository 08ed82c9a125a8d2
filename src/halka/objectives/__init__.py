"""Training objectives, one file each: how examples are tokenized and collated, the loss, and the answers.

`objective_of(model)` is the objective of the model's kind of base.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeVar, cast

import torch
from torch import Tensor

from halka.core import AdaptedModel
from halka.data.batches import Batch
from halka.data.examples import Example, Item
from halka.data.packing import PackedBatch
from halka.data.tokens import Tokens
from halka.data.truncation import EncodedExamples, LengthPolicy
from halka.models import pad_id
from halka.models.kinds import kind_of
from halka.models.layouts import layout_of
from halka.objectives.classification import Classification
from halka.objectives.language_modelling import LanguageModelling
from halka.objectives.sequence_to_sequence import SequenceToSequence
from halka.objectives.tagging import Tagging
from halka.util.errors import HalkaError

__all__ = ["OBJECTIVES", "Objective", "batch_of", "objective_of", "packs", "summed_losses"]

ItemT = TypeVar("ItemT", bound=Item)


class Objective(Protocol[ItemT]):
    """What a base of one kind is trained for, and how it answers. `name` is an adapter, None the bare base.

    The loop, the checkpoints and the batch plan are the same for all objectives.

    head_sees_rows        the head is called on whole rows, so adapters that train the head can share a pass
    answer_uses_context   an answer's tokens take positions of the base's context beside the prompt's
    """

    head_sees_rows: bool
    answer_uses_context: bool

    def encode(
        self,
        model: AdaptedModel,
        name: str | None,
        examples: Sequence[Example],
        max_length: int | None,
        too_long: LengthPolicy,
    ) -> EncodedExamples[ItemT]:
        """Tokenize examples to train on.

        Raises:
            TooLongError: with the policy "error", for the first over `max_length`.
            DataError: a label is not one of the adapter's, or no example is left.
        """
        ...

    def encode_prompt(self, model: AdaptedModel, example: Example, max_length: int | None) -> ItemT:
        """Tokenize an example without its answer, for `answers`; encoders' prompts are cut to `max_length`."""
        ...

    def collate(self, items: Sequence[ItemT], padding: int) -> Batch:
        """Pad the items into one batch to train on."""
        ...

    def outputs(self, model: AdaptedModel, batch: Batch) -> Tensor:
        """Run the base; returns what `loss` reads, one row for each of the batch (B, …)."""
        ...

    def loss(self, model: AdaptedModel, name: str | None, outputs: Tensor, labels: Tensor) -> Tensor:
        """The summed loss of rows that use adapter `name`."""
        ...

    def answers(
        self,
        model: AdaptedModel,
        names: Sequence[str | None],
        items: Sequence[ItemT],
        max_new_tokens: int,
        options: Mapping[str, Any],
    ) -> list[str]:
        """The answer to each prompt, inside `model.use(names)`. `options` go to transformers' `generate`."""
        ...


OBJECTIVES: dict[str, Objective[Any]] = {
    "causal-lm": LanguageModelling(),
    "sequence-classification": Classification(),
    "token-classification": Tagging(),
    "seq2seq-lm": SequenceToSequence(),
}
"""By kind of base (`halka.util.kinds.TASK_KINDS`)."""


def packs(model: AdaptedModel) -> bool:
    """Whether the objective's batches can be packed: those of a language model whose tokens see others by attention."""
    return isinstance(OBJECTIVES.get(kind_of(model.base)), LanguageModelling) and layout_of(model.base).attends


def batch_of(model: AdaptedModel, groups: Mapping[str | None, Sequence[Item]], *, packed: bool) -> PackedBatch | Batch:
    """Each adapter's items in one batch, on the base's device.

    packed: the items are one line of tokens, in which what items of one adapter begin with is computed once, as
    `LanguageModelling.pack` lays it out.
    Raises HalkaError for an objective whose batches cannot be packed.
    """
    objective = objective_of(model)
    if packed:
        if not (isinstance(objective, LanguageModelling) and packs(model)):
            raise HalkaError(f"batches of {type(model.base).__name__} cannot be packed: train with batches=padded")
        return objective.pack(model, cast(Sequence[Sequence[Tokens]], [*groups.values()]))
    items = [item for own in groups.values() for item in own]
    return objective.collate(items, pad_id(model)).to(next(model.base.parameters()).device)


def summed_losses(
    model: AdaptedModel,
    groups: Mapping[str | None, Sequence[Item]],
    *,
    packed: bool,
    batch: PackedBatch | Batch | None = None,
) -> Tensor:
    """The summed loss of each adapter's items (R,), in one pass of the base.

    batch: what `batch_of` made of them, if it was called before. Call it within `model.use` of one name for each group,
    or one for each item where it is not packed, and within `use_attention(model.base)`, both around backward too.
    Raises HalkaError as `batch_of` does, and outside of these blocks.
    """
    objective, names = objective_of(model), [*groups]
    batch = batch_of(model, groups, packed=packed) if batch is None else batch
    if isinstance(batch, PackedBatch):
        assert isinstance(objective, LanguageModelling)
        return objective.packed_losses(model, names, batch)
    outputs = objective.outputs(model, batch)
    sizes = [len(own) for own in groups.values()]
    rows = zip(names, outputs.split(sizes), batch.labels.split(sizes), strict=True)
    return torch.stack([objective.loss(model, name, own, labels) for name, own, labels in rows])


def objective_of(model: AdaptedModel) -> Objective[Any]:
    """The objective of the model's base. Raises HalkaError for a base without a head to train."""
    kind = kind_of(model.base)
    if kind not in OBJECTIVES:
        raise HalkaError(
            f"{type(model.base).__name__} is an encoder: it has no next token to learn from or to generate. Load it "
            'with a head for its task: `halka.load_base(name, kind="sequence-classification", labels=[…])`'
        )
    return OBJECTIVES[kind]
