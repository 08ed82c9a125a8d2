"""Probe: form or knowledge. What falls with worked examples is behaviour; what falls only with documents is knowledge.

The answers' tokens are read, not made: their losses under four conditions (as it is, with examples, with passages, with
both), for the tokens that other answers have, too, and for those that are an answer's own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from halka.advisor.conditions import BOTH, DOCUMENTS, question_of
from halka.advisor.evidence import Knowledge
from halka.advisor.questions import Questions
from halka.advisor.statistics import interval
from halka.evaluation.metrics import Score, mean_of
from halka.rag.raft import stands_in

COMMON = 0.25  # share of the other answers that a token of form stands in
Progress = Callable[[str], None]
Losses = Sequence[tuple[list[int], np.ndarray]]


def knowledge(questions: Questions, progress: Progress = lambda _: None) -> Knowledge:
    """The losses under each condition, by part; with documents also what the base answers from them."""
    common = _common(questions)
    losses, tokens, values = {}, {}, {}
    for condition in questions.conditions:
        progress(f"reading answers: {condition}")
        losses[condition], tokens = _by_part(questions.read(condition), common)
        if condition in (DOCUMENTS, BOTH):
            progress(f"answering: {condition}")
            asked = [questions.put(each, condition) for each in questions.held_out]
            values[condition] = questions.values(questions.answers(None, asked), condition)
    return Knowledge(
        losses=losses,
        tokens=tokens,
        found=None if questions.find is None else _found(questions),
        scores={condition: mean_of(each) for condition, each in values.items()},
        values=values,
    )


def _common(questions: Questions) -> frozenset[int]:
    """Tokens that at least a quarter of the training answers have, the one that ends them among those."""
    counts = Counter(token for each in questions.train for token in {*questions.answer_ids(each)})
    return frozenset(token for token, count in counts.items() if count >= COMMON * len(questions.train))


def _by_part(read: Losses, common: frozenset[int]) -> tuple[Mapping[str, Score], Mapping[str, int]]:
    """The mean loss a token with its interval, and the tokens, of all, form and content; those that there are."""
    masks = [np.array([token in common for token in ids], dtype=bool) for ids, _ in read]
    parts = {
        "all": [losses for _, losses in read],
        "form": [losses[mask] for (_, losses), mask in zip(read, masks, strict=True)],
        "content": [losses[~mask] for (_, losses), mask in zip(read, masks, strict=True)],
    }
    found, tokens = {}, {}
    for name, each in parts.items():
        own = [losses for losses in each if len(losses)]
        if own:
            found[name] = interval([losses.mean() for losses in own], [len(losses) for losses in own])
            tokens[name] = sum(map(len, own))
    return found, tokens


def _found(questions: Questions) -> float:
    """The share of held-out examples whose answer stands in the passages that are found for them."""
    assert questions.find is not None
    held = [
        any(stands_in(each.answers, passage.searched) for passage in questions.find(question_of(each)))
        for each in questions.held_out
    ]
    return sum(held) / len(held)
