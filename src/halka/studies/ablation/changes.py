"""Facts that are changed in their documents: to what, and where they stand."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from halka.evaluation.metrics import find_metric
from halka.rag.raft import Asked


def alike(asked: Asked, among: Iterable[Asked]) -> list[str]:
    """Other questions' answers that could answer this one: to the same question word, and of the same looks."""

    def looks(question: str, answer: str) -> tuple[bool, ...]:
        words = set(question.casefold().split())
        kinds = (word in words for word in ("who", "when", "where", "many", "year"))
        return (*kinds, any(map(str.isdigit, answer)), answer[:1].isupper(), " " in answer)

    wanted = looks(asked.question, asked.answers[0])
    exact = find_metric("squad_exact").per_item
    others = [
        (each.question, answer)
        for each in among
        for answer in each.answers[:1]
        if not exact(answer, asked.answers)["sum"]
    ]
    near = [answer for question, answer in others if looks(question, answer) == wanted]
    return near or [answer for _, answer in others]


def replaced(text: str, answers: Sequence[str], new: str) -> str:
    """The text with `new` wherever an answer's words stand in order, as `holds` finds them, the longest answer first.

    Between them may be other punctuation than in the answer; what it begins and ends with goes where it is there.
    """
    either = "|".join(
        _pattern(each.strip()) for each in sorted(answers, key=len, reverse=True) if re.search(r"\w", each)
    )
    return re.sub(either, lambda _: new, text, flags=re.IGNORECASE) if either else text


def _pattern(answer: str) -> str:
    words = re.findall(r"\w+", answer)
    before, after = re.split(r"\w.*\w|\w", answer, maxsplit=1, flags=re.DOTALL)
    whole = r"\W+".join(map(re.escape, words))
    return rf"(?:{re.escape(before)})?(?<!\w){whole}(?!\w)(?:{re.escape(after)})?"
