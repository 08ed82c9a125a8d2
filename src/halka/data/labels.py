"""Label lists of classifiers and taggers: a label's index in the list is its row in the head."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from unicodedata import normalize

from halka.data.examples import Example
from halka.util.errors import DataError

FRACTION = re.compile(r"[+-]?\d*\.\d*[1-9]\d*")
OUTSIDE = "O"
"""The tag of a word outside of any entity."""


def classes_in(examples: Iterable[Example]) -> tuple[str, ...]:
    """The labels among the examples' answers: numbers in numerical, then names in alphabetical order.

    A label with composed and with combining accents is one, as it first occurs. Raises DataError for a number with a
    fraction, as of regression.
    """
    examples = list(examples)
    for example in examples:
        if fraction := next(filter(FRACTION.fullmatch, example.answers), None):
            raise example.error(
                f"the label {fraction!r} is a number with a fraction, and regression is not there: write classes as "
                "words or whole numbers, or list such names as `labels` in a task file"
            )
    labels = [label.strip() for example in examples for label in example.answers]
    return _in_order({*{normalize("NFC", label): label for label in reversed(labels)}.values()})


def tags_in(examples: Iterable[Example]) -> tuple[str, ...]:
    """The tags among the examples' answers, `OUTSIDE` first."""
    tags = _in_order({tag for example in examples for answer in example.answers for tag in answer.split()})
    return (*(tag for tag in tags if tag == OUTSIDE), *(tag for tag in tags if tag != OUTSIDE))


def label_index(label: str, labels: Sequence[str]) -> int:
    """The label's index in `labels`, whose accents may be composed otherwise, and which may have blanks around them.

    Raises DataError that lists the first labels.
    """
    if label in labels:
        return labels.index(label)
    composed = [normalize("NFC", name.strip()) for name in labels]
    if (own := normalize("NFC", label)) in composed:
        return composed.index(own)
    shown = ", ".join(labels[:10]) + (", …" if len(labels) > 10 else "")
    raise DataError(f"the label {label!r} is none of the {len(labels)} labels: {shown}")


def _in_order(labels: set[str]) -> tuple[str, ...]:
    return tuple(sorted(labels, key=lambda label: (0, int(label), label) if label.isdecimal() else (1, 0, label)))
