"""`as_tokens`: examples encoded as the base reads them, none longer than its context."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from halka.core import AdaptedModel
from halka.data.examples import ExamplesOrItems, Item, examples_and_items
from halka.data.tokens import UNCLOSED, Tokens, unclosed
from halka.data.truncation import lowest_limit
from halka.models import context
from halka.models.kinds import kind_of
from halka.objectives import objective_of
from halka.objectives.language_modelling import LanguageModelling
from halka.objectives.sequence_to_sequence import Pair
from halka.training.config import TrainConfig
from halka.util.errors import DataError, HalkaError
from halka.util.text import plural


def as_tokens(
    model: AdaptedModel, examples: ExamplesOrItems, config: TrainConfig, name: str | None = None
) -> list[Item]:
    """Encode examples for the base's objective, with room for adapter `name`'s virtual tokens; encoded ones stay.

    No item is longer than the base's context, whatever `max_length` allows; warns of examples that are cut or left out.
    Raises DataError where no label is left, for items over the context, for tokens that the base has no row for, and
    for a label that the adapter does not know; HalkaError for a model without a tokenizer.
    """
    objective = objective_of(model)
    raw, items = examples_and_items(examples)
    total = len(raw) + len(items)
    room = context(model, name)
    if long := [str(i) for i, item in enumerate(items) if room is not None and len(item) > room]:
        raise DataError(
            f"{len(long)} of {len(items)} encoded examples, the first at {long[0]}, are longer than the {room} "
            "positions that the base has for text: cut them"
        )
    if any(example.is_text for example in raw) and not isinstance(objective, LanguageModelling):
        raise DataError(
            f"raw texts are for a causal-lm, which learns to read on, and this base is a {kind_of(model.base)}: "
            "name another base, or give examples with answers"
        )
    if raw:
        if model.tokenizer is None:
            raise HalkaError("to train on examples the model needs its tokenizer: `halka.adapt(base, tokenizer)`")
        length = lowest_limit(config.max_length, room)
        encoded = objective.encode(model, name, raw, length, config.too_long)
        items += encoded.items
        if encoded.dropped or encoded.cut:
            first = f", first {encoded.problems[0]}" if encoded.problems else ""
            look = "; `halka data preview` shows them all" if isinstance(objective, LanguageModelling) else ""
            cut = "" if length is None else f" {encoded.cut} are cut to {length} tokens and"
            warnings.warn(
                f"of {plural(len(raw), 'example')}{cut} {encoded.dropped} left out{first}{look}",
                stacklevel=2,
            )
        open_ended = unclosed((item for item in encoded.items if isinstance(item, Tokens)), model.tokenizer)
        if open_ended > encoded.cut:
            warnings.warn(f"{open_ended} of {plural(len(raw), 'example')}: answers {UNCLOSED}", stacklevel=2)
    _check_rows(model, items)
    if not any(item.labels for item in items):
        raise DataError(f"no token to learn from in {plural(total, 'example')}: each needs an answer by the assistant")
    return items


def _check_rows(model: AdaptedModel, items: Sequence[Item]) -> None:
    """Raises DataError for tokens beyond the embedding's rows, such as those that a tokenizer was given later."""
    base: Any = model.base
    rows = base.get_input_embeddings().weight.shape[0]
    written = (ids for item in items for ids in (item.ids, item.answer if isinstance(item, Pair) else ()))
    most = max((max(ids, default=0) for ids in written), default=0)
    if most >= rows:
        shown = "" if model.tokenizer is None else f" {model.tokenizer.convert_ids_to_tokens(most)!r}"
        raise DataError(
            f"the examples have token {most}{shown}, and this base has rows for {rows}: call "
            "base.resize_token_embeddings(len(tokenizer)), and then halka.adapt again"
        )
