"""What single answers are worth, 0 to 1 by any metric, so that ways of answering can be compared example by example."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Sequence

import numpy as np

from halka.advisor.agreement import of_few_kinds
from halka.evaluation.metrics import find_metric
from halka.rag.prompt import CITATION

SHORT = 5  # words of an answer that is a name or a number rather than a text
CITED = re.compile(rf"(\s*{CITATION.pattern})+(?=\s*\.?\s*$)")  # at an answer's end, before or after its full stop


def worth(
    metric: str, texts: Sequence[str], references: Sequence[Sequence[str]], *, passages: bool = False
) -> tuple[float, ...]:
    """Each answer's worth by the metric, as a share of its range.

    passages   whether passages were shown: citations of them at an answer's end do not count then, unless what is
               accepted has such marks itself

    A measure of a whole corpus is taken of each answer alone. Raises ValueError for a metric that there is not.
    """
    measure = find_metric(metric)
    low, high = measure.range
    values = []
    for text, accepted in zip(texts, references, strict=True):
        if passages and not any(map(CITATION.search, accepted)):
            text = CITED.sub("", text).strip()
        counts = measure.per_item(text, accepted)
        value = float(measure.aggregate({key: np.array([float(count)]) for key, count in counts.items()})[0])
        share = (value - low) / (high - low) if np.isfinite(value) else 0.0
        values.append(min(1.0, max(0.0, share if measure.higher_is_better else 1 - share)))
    return tuple(values)


def usual_metric(answers: Sequence[str]) -> str:
    """The metric that answers of this look are judged by, where none is named."""
    if all(map(_is_json, answers)):
        return "exact_match"
    if of_few_kinds(answers):
        return "accuracy"
    return "squad_exact" if statistics.median(len(each.split()) for each in answers) <= SHORT else "token_f1"


def _is_json(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict | list)
    except ValueError:
        return False
