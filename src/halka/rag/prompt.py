"""The one form in which passages are put before a model, in training and in answering, and how its answers are read.

    Answer the question from the passages. Cite each passage that you use by its number, like [1]. If the passages do
    not hold the answer, reply: The documents do not say.

    [1] parcels.md, page 2: Parcels › Lost ones
    Write to the depot.

    [2] …

    Question: Where do I write when a parcel is lost?

What stands in a passage is data. Lines of it that look like this form's own are set off, so that no document can end
its passage, number another, or ask a question in the user's place.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import PurePath

from halka.rag.passages import Passage

ABSTAINED = "The documents do not say."
INSTRUCTION = (
    "Answer the question from the passages. Cite each passage that you use by its number, like [1]. If the passages do "
    f"not hold the answer, reply: {ABSTAINED}"
)
ANSWER = "{answer}"
CITATION = re.compile(r"\[(\d{1,3})\]")
FORM = re.compile(r"^(?=\s*(\[\d+\]|Question:|Answer the question from))", re.MULTILINE)

Count = Callable[[str], int]
"""How many tokens a text is, as the model counts."""


def prompted(question: str, passages: Sequence[Passage]) -> str:
    """The prompt for a question about these passages, numbered from 1."""
    shown = [f"[{number}] {_title(each)}\n{_as_data(each.text)}" for number, each in enumerate(passages, start=1)]
    return "\n\n".join([INSTRUCTION, *shown, f"Question: {question.strip()}"])


def fitting(question: str, passages: Sequence[Passage], budget: int, count: Count) -> list[Passage]:
    """As many of the passages, the first first, as a prompt of `budget` tokens holds.

    Raises ValueError where the question alone takes more.
    """
    if (needed := count(prompted(question, []))) > budget:
        raise ValueError(f"the question takes {needed} tokens where {budget} are left for the prompt: shorten it")
    kept: list[Passage] = []
    for each in passages:
        if count(prompted(question, [*kept, each])) <= budget:
            kept.append(each)
    return kept


def in_form(form: str, answer: str) -> str:
    """The answer as a form has it, which holds `{answer}` once. Raises ValueError for a form that does not."""
    if form.count(ANSWER) != 1:
        raise ValueError(f"the form {form!r} must hold {ANSWER} once, where the answer stands")
    return form.replace(ANSWER, answer)


def cited(answer: str, passages: int) -> list[int]:
    """The numbers of the passages that an answer cites, in order, each once; those that were not given are left out."""
    found = (int(number) for number in CITATION.findall(answer))
    return [number for number in dict.fromkeys(found) if 1 <= number <= passages]


def abstains(answer: str) -> bool:
    """Whether an answer says that the documents do not hold it."""
    return answer.strip().rstrip(".").casefold() == ABSTAINED.rstrip(".").casefold()


def _title(passage: Passage) -> str:
    page = f", page {passage.page}" if passage.page else ""
    name = " ".join(PurePath(passage.document).name.split()) or "text"
    return f"{name}{page}" + (f": {' '.join(passage.heading.split())}" if passage.heading else "")


def _as_data(text: str) -> str:
    return FORM.sub("| ", text)
