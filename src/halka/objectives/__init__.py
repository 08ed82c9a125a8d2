"""What is learned from an example, one file each: how it is read, what is lost, and what is answered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor

from halka.core import AdaptedModel
from halka.data.batches import Batch
from halka.data.examples import Example
from halka.data.tokens import Encoded, Item
from halka.models.kinds import kind_of
from halka.objectives.classification import Classification
from halka.objectives.language_modelling import LanguageModelling
from halka.objectives.sequence_to_sequence import SequenceToSequence
from halka.objectives.tagging import Tagging
from halka.util.errors import HalkaError


class Objective(Protocol):
    """What a base of one kind learns, and how it answers. `name` is an adapter's, or None for the bare base.

    The loop, the checkpoints and the batches are the same for all of them.
    """

    head_sees_rows: bool  # whether the head is called with whole rows, so that rows of several adapters can share it
    answers_take_room: bool  # whether an answer's tokens stand in the context beside the prompt's

    def encode(
        self, model: AdaptedModel, name: str | None, examples: Sequence[Example], max_length: int | None, too_long: str
    ) -> Encoded:
        """Examples as the base reads them. Raises ValueError for what cannot be learned from, as `encode_all` does."""
        ...

    def question(self, model: AdaptedModel, example: Example, room: int | None) -> Item:
        """An example without its answer, for `answers`."""
        ...

    def collate(self, items: Sequence[Any], pad_id: int) -> Batch:
        """The items as one batch, to learn from."""
        ...

    def outputs(self, model: AdaptedModel, batch: Batch) -> Tensor:
        """What the loss is computed from, a row of the batch each (B, …)."""
        ...

    def loss(self, model: AdaptedModel, name: str | None, outputs: Tensor, labels: Tensor) -> tuple[Tensor, int]:
        """The summed loss of rows that use adapter `name`, and over how many labels."""
        ...

    def answers(
        self,
        model: AdaptedModel,
        names: Sequence[str | None],
        items: Sequence[Any],
        max_new_tokens: int,
        options: Mapping[str, Any],
    ) -> list[str]:
        """The answer of each item, whose adapters are in use."""
        ...


OBJECTIVES: dict[str, Objective] = {
    "causal-lm": LanguageModelling(),
    "sequence-classification": Classification(),
    "token-classification": Tagging(),
    "seq2seq-lm": SequenceToSequence(),
}
"""By the kind of base (`models/kinds.py`)."""


def objective_of(model: AdaptedModel) -> Objective:
    """What the model's base learns. Raises ValueError for a base that Halka does not train."""
    kind = kind_of(model.base)
    if kind not in OBJECTIVES:
        raise HalkaError(
            f"{type(model.base).__name__} is an encoder: it has no next token to learn from or to generate. Load it "
            'with a head for what it shall learn: `halka.load_base(name, kind="sequence-classification", labels=[…])`'
        )
    return OBJECTIVES[kind]
