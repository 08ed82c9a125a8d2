"""Metrics for tagged words: whole entities, as conlleval and seqeval count them, and word by word."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from halka.data.labels import OUTSIDE
from halka.data.metric import Counts, Metric, ratio

WAYS = ("B", "I", "E", "S", OUTSIDE)
OTHER_LETTERS = {"M": "I", "L": "E", "U": "S"}  # BMES's and BILOU's


def entities(tags: Sequence[str]) -> Iterator[tuple[str, int, int]]:
    """(type, first word, last word) of every entity in IOB1, IOB2, IOE, IOBES, BMES, BILOU, or of tags that are types.

    A tag continues the entity before it unless it begins one (B, S), has another type, or follows an end (E, S).
    """
    kind, first, before = "", 0, OUTSIDE
    for place, tag in enumerate([*tags, OUTSIDE]):
        way, dash, own = tag.partition("-")
        if dash:
            way = OTHER_LETTERS.get(way, way)
        if way not in WAYS:  # a type alone, such as PER or NOUN
            way, own = "I", tag
        goes_on = way in "IE" and before in "BI" and own == kind
        if before != OUTSIDE and not goes_on:
            yield kind, first, place - 1
        if not goes_on:
            kind, first = own, place
        before = way


def _entity_counts(prediction: str, references: Sequence[str]) -> Counts:
    predicted, gold = set(entities(prediction.split())), set(entities(references[0].split()))
    return {"hit": float(len(predicted & gold)), "both": float(len(predicted) + len(gold))}


def _word_counts(prediction: str, references: Sequence[str]) -> Counts:
    predicted, gold = prediction.split(), references[0].split()
    hits = sum(one == other for one, other in zip(predicted, gold, strict=False))
    return {"hit": float(hits), "words": float(max(len(predicted), len(gold)))}


TAG_METRICS = (
    Metric(
        "tag_f1",
        "F1 of whole entities, type and place, over all sentences",
        _entity_counts,
        lambda sums: ratio(2 * sums["hit"], sums["both"]),
    ),
    Metric(
        "tag_accuracy",
        "share of words with the right tag",
        _word_counts,
        lambda sums: ratio(sums["hit"], sums["words"]),
    ),
)
