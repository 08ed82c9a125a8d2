"""How far two lists of answers agree beyond chance, where answers are labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from statistics import mean

from halka.evaluation.text_metrics import as_label
from halka.util.errors import HalkaError

LONGEST = 80
"""Characters of a label at most; "balance_not_updated_after_cheque_or_cash_deposit" has 48."""


def kappa(first: Sequence[str], second: Sequence[str]) -> float:
    """Cohen's kappa (1960) of two lists of answers to the same N questions, compared as `accuracy` compares them.

    1 is full agreement, 0 what two would reach that guess with these frequencies, below 0 less than that. A list that
    is all one answer has 0 with any other; so it has, too, with itself, where kappa is 0/0: always saying the same
    shows nothing that chance would not.

    Raises ValueError for lists of different length, and for none.
    """
    if len(first) != len(second) or not first:
        raise HalkaError(f"{len(first)} answers beside {len(second)}; give both for the same questions, one or more")
    one, other = [as_label(text) for text in first], [as_label(text) for text in second]
    n = len(one)
    same = sum(a == b for a, b in zip(one, other, strict=True))
    often, too = Counter(one), Counter(other)
    # In whole numbers: n² times the chance of agreeing.
    chance = sum(count * too[label] for label, count in often.items())
    return 0.0 if chance == n * n else (n * same - chance) / (n * n - chance)


def of_few_kinds(answers: Sequence[str]) -> bool:
    """Whether answers are labels, so that agreement beyond chance means anything.

    They are if there are two kinds of them or more, each three times on average or more often, and none is longer
    than `LONGEST` characters; compared as `accuracy` compares them.
    """
    kinds = {as_label(text) for text in answers}
    return 2 <= len(kinds) <= len(answers) / 3 and max(map(len, kinds)) <= LONGEST


def labels_said(said: Sequence[Sequence[str]], labels: Sequence[str]) -> list[list[str]]:
    """Answers in which what is none of the labels is made unlike any other, since nothing follows from it."""
    known = {*map(as_label, labels)}
    return [
        [text if as_label(text) in known else f"no label {number}.{place}" for place, text in enumerate(texts)]
        for number, texts in enumerate(said)
    ]


def agreement(said: Sequence[Sequence[str]], given: Sequence[str]) -> tuple[float, float]:
    """The mean kappa of two or more lists of answers with each other, and with those that are given."""
    each_other = mean(kappa(first, second) for first, second in combinations(said, 2))
    return each_other, mean(kappa(each, given) for each in said)


def doubted(said: Sequence[Sequence[str]], accepted: Sequence[Sequence[str]]) -> list[int]:
    """Where all lists give one answer, and it is none of the accepted ones."""
    found = []
    for index, right in enumerate(accepted):
        answers = {as_label(texts[index]) for texts in said}
        if len(answers) == 1 and answers.isdisjoint(map(as_label, right)):
            found.append(index)
    return found
