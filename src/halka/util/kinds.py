"""The kinds of base, by name: causal decoder, masked encoder, classifier, tagger, encoder-decoder."""

from __future__ import annotations

from typing import Literal, get_args

Kind = Literal["causal-lm", "masked-lm", "sequence-classification", "token-classification", "seq2seq-lm"]
LABELLED: tuple[Kind, ...] = ("sequence-classification", "token-classification")
"""Those whose head predicts labels."""
TASK_KINDS: tuple[Kind, ...] = tuple(kind for kind in get_args(Kind) if kind != "masked-lm")
"""Those that examples can be for: nothing is trained on masked tokens."""
