"""Probe: what the base can do without training, zero-shot and with examples, beside what needs no model at all."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence

from halka.advisor.conditions import CLOSED, EXAMPLES, question_of
from halka.advisor.evidence import Strength
from halka.advisor.questions import Questions
from halka.advisor.statistics import interval
from halka.data.examples import Example
from halka.evaluation.metrics import mean_of

Progress = Callable[[str], None]


def strength(questions: Questions, progress: Progress = lambda _: None) -> Strength:
    """Losses and scores of the answers to the held-out examples, zero-shot and with examples in the prompt.

    Beside them: always the commonest answer, the question copied, and each token guessed by its frequency.
    """
    losses, values = {}, {}
    for condition in (CLOSED, EXAMPLES):
        asked = [questions.put(each, condition) for each in questions.held_out]
        found = [losses for _, losses in questions.read(condition)]
        losses[condition] = interval([each.sum() / max(1, len(each)) for each in found], [len(each) for each in found])
        answered = 0

        def done(condition: str = condition) -> None:
            nonlocal answered
            answered += 1
            progress(f"{condition}: {answered} of {len(questions.held_out)}")

        values[condition] = questions.values(questions.answers(None, asked, done))
    return Strength(
        shots=min(questions.shots[EXAMPLES], len(questions.train)),
        losses=losses,
        unigram=_unigram(questions),
        scores={condition: mean_of(each) for condition, each in values.items()},
        values=values,
        trivial={name: mean_of(questions.values(texts)) for name, texts in _without_a_model(questions).items()},
    )


def _without_a_model(questions: Questions) -> dict[str, list[str]]:
    """Answers that anybody can give."""
    commonest = Counter(each.answers[0] for each in questions.train).most_common(1)[0][0]
    return {
        "majority": [commonest] * len(questions.held_out),
        "copy": [question_of(each) for each in questions.held_out],
    }


def _unigram(questions: Questions) -> float:
    """The held-out answers' mean loss a token, each token by its share of the training answers, one added to each.

    The tokens are those of all other losses, with what ends an answer.
    """

    def read(examples: Sequence[Example]) -> list[int]:
        return [token for each in examples for token in questions.answer_ids(each)]

    seen, told = Counter(read(questions.train)), read(questions.held_out)
    total = seen.total() + len(questions.model.tokenizer)
    return -sum(math.log((seen[token] + 1) / total) for token in told) / max(1, len(told))
