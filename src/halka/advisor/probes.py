"""Three probes: strength (the base without training), knowledge (form or content), cleanliness (the data alone).

The pilot is in `pilot.py`, the hardware in `resources.py`; `runner.py` runs all five.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice

import numpy as np

from halka.advisor.budget import FEWEST, Budget
from halka.advisor.evidence import BOTH, CLOSED, DOCUMENTS, EXAMPLES, Cleanliness, Knowledge, Strength
from halka.advisor.probed_base import SHOTS, ProbedBase, Report, TokenLosses, question_of
from halka.advisor.statistics import mean_loss
from halka.data.duplicates import answer_keys, between, prompt_key, within
from halka.data.examples import Example
from halka.evaluation.metrics import Score, mean_of
from halka.rag.questions import stands_in

COMMON = 0.25  # share of the training answers that contain a token of form
PLACES = 5  # places of defects that are listed, at most, for each kind


# ── strength ────────────────────────────────────────────────────────────────────────────────────────────────────────


def strength(base: ProbedBase, budget: Budget, progress: Report = lambda _: None) -> Strength:
    """Losses and scores of the held-out answers, zero-shot and with worked examples, beside trivial baselines.

    As many as there is time for; raises OutOfTimeError where there is none. Too few answers with worked examples are no
    score.

    The baselines: always the most frequent answer, the question copied, and a unigram model of the answers' tokens.
    """
    losses, values = {}, {}
    for condition in base.conditions:
        if condition in (CLOSED, EXAMPLES):
            losses[condition] = mean_loss([losses for _, losses in base.base_losses(condition, budget)])
            answers = base.base_answers(condition, budget, progress)
            if condition == CLOSED or _make_a_score(answers, base):
                values[condition] = base.values(answers)
            budget.done.add(condition)
    frequent = Counter(example.answers[0] for example in base.train).most_common(1)[0][0]
    trivial = {
        "majority": [frequent] * len(base.held_out),
        "copy": [question_of(example) for example in base.held_out],
    }
    return Strength(
        shots=min(SHOTS[EXAMPLES], len(base.train)),
        losses=losses,
        unigram=_unigram_loss(base),
        scores={condition: mean_of(numbers) for condition, numbers in values.items()},
        values=values,
        trivial={name: mean_of(base.values(texts)) for name, texts in trivial.items()},
    )


def _make_a_score(answers: Sequence[str], base: ProbedBase) -> bool:
    """Whether these are all answers, or as many as the shortest plan has: one or two say nothing of a condition."""
    return len(answers) >= min(FEWEST, len(base.held_out))


def _unigram_loss(base: ProbedBase) -> float:
    """The held-out answers' mean loss per token under a unigram model of the training answers, with add-one smoothing.

    The tokens are those of all other losses, the end-of-turn token included.
    """

    def read(examples: Sequence[Example]) -> list[int]:
        return [token for example in examples for token in base.answer_ids(example)]

    counts, held_out = Counter(read(base.train)), read(base.held_out)
    total = counts.total() + len(base.model.tokenizer)
    return -sum(math.log((counts[token] + 1) / total) for token in held_out) / max(1, len(held_out))


# ── knowledge ───────────────────────────────────────────────────────────────────────────────────────────────────────


def knowledge(base: ProbedBase, budget: Budget, progress: Report = lambda _: None) -> Knowledge:
    """Losses of the held-out answers under every condition, by form and content; with documents also scores.

    As many as there is time for; too few answers are no score.

    Loss that worked examples take away is form, which training teaches; loss that only passages take away is content,
    which retrieval supplies.
    """
    common = _common_tokens(base)
    losses, tokens, values = {}, {}, {}
    for condition in base.conditions:
        progress(f"losses: {condition}")
        losses[condition], tokens = _by_part(base.base_losses(condition, budget), common)
        if condition in (DOCUMENTS, BOTH):
            answers = base.base_answers(condition, budget, progress)
            if _make_a_score(answers, base):
                values[condition] = base.values(answers, condition)
            budget.done.add(condition)
    return Knowledge(
        losses=losses,
        tokens=tokens,
        found=_retrieved_share(base),
        scores={condition: mean_of(numbers) for condition, numbers in values.items()},
        values=values,
    )


def _common_tokens(base: ProbedBase) -> frozenset[int]:
    """Tokens of form: those that at least a quarter of the training answers contain."""
    counts = Counter(token for example in base.train for token in {*base.answer_ids(example)})
    return frozenset(token for token, count in counts.items() if count >= COMMON * len(base.train))


def _by_part(answers: Sequence[TokenLosses], common: frozenset[int]) -> tuple[Mapping[str, Score], Mapping[str, int]]:
    """Mean losses with intervals, and numbers of tokens, by part; parts without tokens are left out."""
    masks = [np.array([token in common for token in ids], dtype=bool) for ids, _ in answers]
    parts = {
        "all": [losses for _, losses in answers],
        "form": [losses[mask] for (_, losses), mask in zip(answers, masks, strict=True)],
        "content": [losses[~mask] for (_, losses), mask in zip(answers, masks, strict=True)],
    }
    scores, tokens = {}, {}
    for part, arrays in parts.items():
        if count := sum(map(len, arrays)):
            scores[part], tokens[part] = mean_loss(arrays), count
    return scores, tokens


def _retrieved_share(base: ProbedBase) -> float | None:
    """The share of held-out examples whose answer occurs in their retrieved passages; None without documents."""
    if base.retrieve is None:
        return None
    hits = [
        any(stands_in(example.answers, passage.searched) for passage in base.retrieve(question_of(example)))
        for example in base.held_out
    ]
    return sum(hits) / len(hits)


# ── cleanliness ─────────────────────────────────────────────────────────────────────────────────────────────────────


def cleanliness(train: Sequence[Example], held_out: Sequence[Example]) -> Cleanliness:
    """Count repeated, contradictory and leaked examples, with up to `PLACES` places of each.

    White space and case are ignored. Repeated: training examples whose whole conversation occurred before.
    Contradictory: training examples with the prompt of another and no answer in common with it. Leaked: held-out
    examples whose prompt is in the training data. Contradictions are no mistakes where a prompt has many right answers
    ("write a poem").

    Takes linear time, also for many examples with one prompt.
    """
    repeated, leaked = within(train), between(train, held_out)
    contradictory = [train[index].place(index) for index in _contradictory(train)]
    return Cleanliness(
        repeated=len(repeated),
        contradictory=len(contradictory),
        leaked=len(leaked),
        answers=len(frozenset().union(*map(answer_keys, train))),
        places={
            "repeated": _some(duplicate.second for duplicate in repeated),
            "contradictory": _some(contradictory),
            "leaked": _some(duplicate.second for duplicate in leaked),
        },
        held_out=len(held_out),
    )


def _contradictory(examples: Sequence[Example]) -> Iterator[int]:
    """Their indices, grouped by prompt."""
    by_prompt: dict[object, list[int]] = defaultdict(list)
    for index, example in enumerate(examples):
        if example.answers:
            by_prompt[prompt_key(example)].append(index)
    for indices in by_prompt.values():
        answers = [answer_keys(examples[index]) for index in indices]
        by_answer: dict[str, set[int]] = defaultdict(set)
        for index, keys in zip(indices, answers, strict=True):
            for key in keys:
                by_answer[key].add(index)
        agreeing = {keys: len(set().union(*(by_answer[key] for key in keys))) for keys in set(answers)}
        yield from (index for index, keys in zip(indices, answers, strict=True) if agreeing[keys] < len(indices))


def _some(places: Iterable[str]) -> tuple[str, ...]:
    return tuple(islice(places, PLACES))
