"""The score below which nothing counts as found, from questions that are like those to come.

A small model that was given passages answers from them, whether they hold the answer or not. How well the best passage
fits tells more: a question whose best passage scores less than nearly all questions' best do is one that the documents
likely do not hold, and is not put to the model at all.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from halka.rag.retrieve import Retriever
from halka.rag.store import Scope
from halka.util.errors import HalkaError

GIVEN_UP = 0.05  # share of questions that have an answer and are left unanswered for it


def floor_for(
    retriever: Retriever,
    questions: Iterable[str],
    share: float = GIVEN_UP,
    scope: Scope = Scope(),  # noqa: B008
) -> float:
    """The score that the best passage of all but `share` of the questions reaches; the documents hold their answers.

    It is of this retriever's mode and reranker alone. Raises ValueError where there is no question.
    """
    best = [hits[0].score if (hits := retriever.search(each, 1, scope)) else -np.inf for each in questions]
    if not best:
        raise HalkaError("a floor is of questions: give some whose answers the documents hold")
    return float(np.quantile(best, share, method="lower"))
