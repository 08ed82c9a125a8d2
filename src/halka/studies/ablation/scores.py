"""What an answer is worth: its form, what it knows, whether it cites rightly, and whether it abstains where it must."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from halka.evaluation.metrics import Score, find_metric, mean_of
from halka.rag.prompt import ABSTAINED, CITATION, abstains, cited
from halka.rag.raft import stands_in
from halka.studies.ablation.settings import matcher


@dataclass(frozen=True)
class Answered:
    """A question of the test, what was answered, and what was put before the model.

    answers   those that are right; none where the documents do not hold one
    passages  how many were given
    gold      the numbers of those that hold an answer
    best      the score of the best one
    """

    question: str
    answers: tuple[str, ...]
    text: str
    passages: int = 0
    gold: tuple[int, ...] = ()
    best: float | None = None

    def above(self, floor: float) -> Answered:
        """What is answered where a best passage below the floor is none."""
        return self if self.best is not None and self.best >= floor else replace(self, text=ABSTAINED)


@dataclass(frozen=True)
class Measure:
    """One figure: of which answers it is the mean, and what of each."""

    name: str
    title: str
    meaning: str
    of: Callable[[Answered], bool]
    value: Callable[[Answered, re.Pattern[str]], float]


def answer_in(text: str, form: re.Pattern[str]) -> str:
    """The answer itself: within the form where it is kept, else all of the text, without its citations."""
    kept = form.fullmatch(text)
    return (kept[1] if kept else CITATION.sub("", text)).strip()


def _in_form(each: Answered, form: re.Pattern[str]) -> float:
    return float(abstains(each.text) or form.fullmatch(each.text) is not None)


def _known(metric: str) -> Callable[[Answered, re.Pattern[str]], float]:
    def value(each: Answered, form: re.Pattern[str]) -> float:
        return float(find_metric(metric).per_item(answer_in(each.text, form), each.answers)["sum"])

    return value


def _contains(each: Answered, form: re.Pattern[str]) -> float:
    return float(stands_in(each.answers, each.text))


def _cites(each: Answered, form: re.Pattern[str]) -> float:
    """All that is cited holds an answer, something is, and nothing that was not given."""
    numbers = {int(number) for number in CITATION.findall(each.text)}
    return float(bool(numbers) and numbers == {*cited(each.text, each.passages)} and numbers <= {*each.gold})


def _abstains(each: Answered, form: re.Pattern[str]) -> float:
    return float(abstains(each.text))


def _answerable(each: Answered) -> bool:
    return bool(each.answers)


MEASURES: tuple[Measure, ...] = (
    Measure("form", "In form", "answers in the wanted form, or that abstain", lambda each: True, _in_form),
    Measure("exact", "Exact", "an answer, but for case, punctuation, articles", _answerable, _known("squad_exact")),
    Measure("f1", "F1", "words shared with the best answer", _answerable, _known("token_f1")),
    Measure("contains", "Contains", "an answer stands somewhere in the text", _answerable, _contains),
    Measure(
        *("cites", "Cites rightly", "cites a passage that holds the answer, and none that does not"),
        *(lambda each: bool(each.answers and each.passages), _cites),
    ),
    Measure(
        *("abstains", "Abstains", "says so where the documents do not hold the answer"),
        *(lambda each: not each.answers and each.passages > 0, _abstains),
    ),
    Measure(
        *("gives_up", "Gives up", "says so where they do"),
        *(lambda each: bool(each.answers and each.passages), _abstains),
    ),
)


def scored(answers: Sequence[Answered], form: str, seed: int = 0) -> dict[str, Score]:
    """Each measure's mean over the answers that it is of, with its interval; those of none are left out."""
    pattern = matcher(form)
    found = {}
    for measure in MEASURES:
        values = [measure.value(each, pattern) for each in answers if measure.of(each)]
        if values:
            found[measure.name] = mean_of(values, seed)
    return found


def as_rows(answers: Sequence[Answered]) -> list[dict[str, Any]]:
    return [asdict(each) for each in answers]


def from_row(row: Mapping[str, Any]) -> Answered:
    return Answered(
        row["question"], tuple(row["answers"]), row["text"], row["passages"], tuple(row["gold"]), row["best"]
    )
