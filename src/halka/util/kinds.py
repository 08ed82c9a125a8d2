"""The kinds of base, by name: causal decoder, masked encoder, classifier, tagger, encoder-decoder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Literal, get_args

from halka.util.errors import HalkaError

Kind = Literal["causal-lm", "masked-lm", "sequence-classification", "token-classification", "seq2seq-lm"]
LABELLED: tuple[Kind, ...] = ("sequence-classification", "token-classification")
"""Those whose head predicts labels."""
TASK_KINDS: tuple[Kind, ...] = tuple(kind for kind in get_args(Kind) if kind != "masked-lm")
"""Those that examples can be for: nothing is trained on masked tokens."""


def checked_labels(labels: Iterable[str]) -> tuple[str, ...]:
    """The labels as a tuple. Raises HalkaError for fewer than two, an empty one, and one that occurs twice."""
    if isinstance(labels, str):
        raise HalkaError(f"labels is a list of names, not the text {labels!r}")
    labels = tuple(labels)
    if wrong := [label for label in labels if not isinstance(label, str) or not label.strip()]:
        raise HalkaError(f"a label is a non-empty text, not {wrong[0]!r}")
    if double := [label for label, count in Counter(labels).items() if count > 1]:
        raise HalkaError(f"the label {double[0]!r} occurs twice")
    if len(labels) < 2:
        raise HalkaError(f"a classifier needs two labels or more, not {len(labels)}")
    return labels


def check_own_labels(name: object, labels: Sequence[str], of_base: Sequence[str]) -> None:
    """Raises HalkaError for labels, other than its base's, of an adapter that are none, or more than the base has."""
    if labels and labels != of_base and len(checked_labels(labels)) > len(of_base):
        raise HalkaError(
            f"{name!r} is to predict {len(labels)} labels, and this base has {len(of_base)}: load the base "
            "with as many, `halka.load_base(name, kind=…, labels=[…])`"
        )
