"""Scores an ablation's answers: form, exactness, citations, and whether they abstain where they should."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from halka.evaluation.metrics import Score, find_metric, mean_of, resampled_mean
from halka.rag.prompt import ABSTAINED, CITATION, abstains, cited, numbers_of
from halka.rag.questions import stands_in
from halka.studies.ablation.settings import matcher


@dataclass(frozen=True)
class Answered:
    """A question of the test with the model's answer and the passages in its prompt.

    answers   the right answers; none where the documents hold none
    passages  how many passages the prompt had
    gold      the numbers of the passages that hold an answer
    best      the best passage's score
    """

    question: str
    answers: tuple[str, ...]
    text: str
    passages: int = 0
    gold: tuple[int, ...] = ()
    best: float | None = None

    def above(self, floor: float) -> Answered:
        """The answer of a system that abstains where the best passage scores below the floor."""
        return self if self.best is not None and self.best >= floor else replace(self, text=ABSTAINED)


@dataclass(frozen=True)
class Measure:
    """One figure: the mean of `value` over the answers for which `of` holds."""

    name: str
    title: str
    meaning: str
    of: Callable[[Answered], bool]
    value: Callable[[Answered, re.Pattern[str]], float]


def answer_in(text: str, pattern: re.Pattern[str]) -> str:
    """The answer itself without citations: the pattern's group, or the whole text where the pattern does not match."""
    match = pattern.fullmatch(text)
    return CITATION.sub("", match[1] if match else text).strip()


def _in_form(answered: Answered, pattern: re.Pattern[str]) -> float:
    return float(abstains(answered.text) or pattern.fullmatch(answered.text) is not None)


def _known(metric: str) -> Callable[[Answered, re.Pattern[str]], float]:
    def value(answered: Answered, pattern: re.Pattern[str]) -> float:
        return float(find_metric(metric).per_item(answer_in(answered.text, pattern), answered.answers)["sum"])

    return value


def _contains(answered: Answered, pattern: re.Pattern[str]) -> float:
    return float(stands_in(answered.answers, answered.text))


def _cites(answered: Answered, pattern: re.Pattern[str]) -> float:
    """Whether the answer cites at least one passage of the prompt, and only those that hold an answer."""
    numbers = {number for citation in CITATION.finditer(answered.text) for number in numbers_of(citation)}
    return float(
        bool(numbers) and numbers == {*cited(answered.text, answered.passages)} and numbers <= {*answered.gold}
    )


def _abstains(answered: Answered, pattern: re.Pattern[str]) -> float:
    return float(abstains(answered.text))


def _answerable(answered: Answered) -> bool:
    return bool(answered.answers)


EXACT = Measure("exact", "Exact", "an answer, but for case, punctuation, articles", _answerable, _known("squad_exact"))
MEASURES: tuple[Measure, ...] = (
    Measure("form", "In form", "answers in the wanted form, or that abstain", lambda answered: True, _in_form),
    EXACT,
    Measure("f1", "F1", "words shared with the best answer", _answerable, _known("token_f1")),
    Measure("contains", "Contains", "an answer stands somewhere in the text", _answerable, _contains),
    Measure(
        "cites",
        "Cites rightly",
        "cites a passage that holds the answer, and none that does not",
        of=lambda answered: bool(answered.answers and answered.passages),
        value=_cites,
    ),
    Measure(
        "abstains",
        "Abstains",
        "says so where the documents do not hold the answer",
        of=lambda answered: not answered.answers and answered.passages > 0,
        value=_abstains,
    ),
    Measure(
        "gives_up",
        "Gives up",
        "says so where they do",
        of=lambda answered: bool(answered.answers and answered.passages),
        value=_abstains,
    ),
)


def scored(answers: Sequence[Answered], template: str, seed: int = 0) -> dict[str, Score]:
    """Each measure's mean over its answers, with its interval; a measure without answers is left out."""
    pattern = matcher(template)
    scores = {}
    for measure in MEASURES:
        values = [measure.value(answered, pattern) for answered in answers if measure.of(answered)]
        if values:
            scores[measure.name] = mean_of(values, seed)
    return scores


def exact_with_draws(answers: Iterable[Answered], template: str) -> dict[str, Any]:
    """The share of exact answers as `scored` has it, with its `draws`, which are of the same questions for all ways."""
    pattern = matcher(template)
    values = [EXACT.value(answered, pattern) for answered in answers if EXACT.of(answered)]
    return asdict(mean_of(values)) | {"draws": resampled_mean(values)}


def as_rows(answers: Sequence[Answered]) -> list[dict[str, Any]]:
    return [asdict(answered) for answered in answers]


def from_row(row: Mapping[str, Any]) -> Answered:
    return Answered(
        row["question"], tuple(row["answers"]), row["text"], row["passages"], tuple(row["gold"]), row["best"]
    )
