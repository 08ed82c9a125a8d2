"""Probes: the rows of tokens on which two models are compared, and which positions count."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from halka.core import AdaptedModel
from halka.data.examples import Example
from halka.data.texts import shipped_text
from halka.data.tokens import Tokens, encode_all, windows
from halka.models import context, without_dropout
from halka.util.errors import HalkaError
from halka.util.transfer import numbers, to_device

WINDOW = 256  # tokens in a row of a text
Probes = str | Sequence[str | Example | Tokens]
"""A text or several, examples (their answers count), or tokens (those that carry loss count)."""


def probe_rows(model: AdaptedModel, probes: Probes | None) -> list[Tokens]:
    """The rows to compare on. Raises HalkaError where there is none, and for text without a tokenizer."""
    items = [shipped_text("merging")] if probes is None else [probes] if isinstance(probes, str) else list(probes)
    if not items:
        raise HalkaError("there are no probes to compare on: give texts or examples, or leave them out")
    tokenizer: Any = model.tokenizer
    if tokenizer is None and not all(isinstance(item, Tokens) for item in items):
        raise HalkaError("probes of text need the model's tokenizer: `halka.adapt(base, tokenizer)`, or give Tokens")
    rows: list[Tokens] = []
    for item in items:
        if isinstance(item, str):
            assert tokenizer is not None
            ids, size = tokenizer.encode(item, add_special_tokens=False), min(WINDOW, context(model) or WINDOW)
            rows += [Tokens(piece, [True] * len(piece)) for piece in windows(ids, tokenizer, size)]
        elif isinstance(item, Example):
            assert tokenizer is not None
            rows += encode_all([item], tokenizer, context(model)).items
        else:
            rows.append(item)
    rows = [row for row in rows if any(row.loss[1:])]
    if not rows:
        raise HalkaError(
            "the probes hold nothing to compare: each needs two tokens, of which one after the first carries loss"
        )
    return rows


def logits_of(model: AdaptedModel, rows: Sequence[Tokens]) -> Iterator[Tensor]:
    """Yield for each row the logits (N, V) that predict its tokens with loss, with the adapters now in use.

    A classifier has one row of logits (1, C); an encoder-decoder gets the row as decoder input, too.
    """
    base: Any = model.base
    device, uncached = next(base.parameters()).device, {"use_cache": False} if base.can_generate() else {}
    for row in rows:
        (ids,) = to_device([torch.tensor([row.ids], device="cpu")], device)
        inputs = {
            "input_ids": ids,
            **({"decoder_input_ids": ids} if base.config.is_encoder_decoder else {}),
            **uncached,
        }
        with torch.inference_mode(), without_dropout(model, model.active):
            logits = base(**inputs).logits
        places = tuple(place for place, counts in enumerate(row.loss[1:]) if counts)
        yield logits if logits.dim() == 2 else logits[0, :-1][numbers(places, device)]
