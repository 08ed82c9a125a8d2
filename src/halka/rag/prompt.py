"""The prompt with passages, the same in training and in answering, and the parsing of its answers.

    Answer the question from the passages. Cite each passage that you use by its number, like [1]. If the passages do
    not hold the answer, reply: The documents do not say.

    [1] parcels.md, page 2: Parcels › Lost ones
    Write to the depot.

    [2] …

    Question: Where do I write when a parcel is lost?

The text of a passage is data. Lines of it that look like the prompt's own are marked, so that no document can end its
passage, number another, or ask a question in the user's name; text that looks like a chat template's control token is
broken up. Only its tokenizer knows which control tokens a base really has: see `evaluation.streaming.user_message`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import PurePath

from halka.rag.passages import Passage
from halka.util.errors import ContextLengthError, HalkaError

ABSTAINED = "The documents do not say."
INSTRUCTION = (
    "Answer the question from the passages. Cite each passage that you use by its number, like [1]. If the passages do "
    f"not hold the answer, reply: {ABSTAINED}"
)
ANSWER = "{answer}"
CITATION = re.compile(r"\[(\d{1,3}(?:\s*,\s*\d{1,3})*)\]")  # `[1]`, and `[1, 2]`, as untuned bases write
FORM = re.compile(r"\s*(\[\d+\]|question:|answer the question from)")  # at the start of a folded line
LINE_END = re.compile("\r\n|[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]")
CONTROL = re.compile(
    r"<(?=[|｜][^\s<>]+[|｜]>|/?s>|(?:bos|eos|pad|(?:start|end)_of_turn|/?think|/?tool_call|/?tool_response)>)"
    r"|\[(?=/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS)\])"
)
UNSEEN = "\u034f\u115f\u1160\u17b4\u17b5\u3164\uffa0"  # besides Unicode's format characters, controls and selectors

Count = Callable[[str], int]
"""Counts the model's tokens of a text."""


def prompted(question: str, passages: Sequence[Passage]) -> str:
    """The prompt for a question about these passages, numbered from 1."""
    shown = [f"[{number}] {_title(passage)}\n{_as_data(passage.text)}" for number, passage in enumerate(passages, 1)]
    return "\n\n".join([INSTRUCTION, *shown, f"Question: {question.strip()}"])


def fitting(question: str, passages: Sequence[Passage], budget: int, count: Count) -> list[Passage]:
    """The passages, in order, that fit into a prompt of `budget` tokens; a passage that does not fit is left out.

    Raises ContextLengthError if the question alone does not fit.
    """
    if (needed := count(prompted(question, []))) > budget:
        raise ContextLengthError(
            f"the question, with what comes before it, takes {needed} tokens, and the prompt may have {budget}: "
            "shorten it"
        )
    kept: list[Passage] = []
    for passage in passages:
        if count(prompted(question, [*kept, passage])) <= budget:
            kept.append(passage)
    return kept


def in_form(template: str, answer: str) -> str:
    """Insert the answer into a template, which has `{answer}` once. Raises HalkaError for one that has not."""
    if template.count(ANSWER) != 1:
        raise HalkaError(f"the form {template!r} must hold {ANSWER} once, in the place of the answer")
    return template.replace(ANSWER, answer)


def cited(answer: str, passages: int) -> list[int]:
    """The numbers of the passages that an answer cites, in order, each once; without those above `passages`."""
    numbers = (number for citation in CITATION.finditer(answer) for number in numbers_of(citation))
    return [number for number in dict.fromkeys(numbers) if 1 <= number <= passages]


def numbers_of(citation: re.Match[str]) -> list[int]:
    """The numbers of the passages in a match of `CITATION`."""
    return [int(number) for number in citation[1].split(",")]


def abstains(answer: str) -> bool:
    """Whether an answer says that the documents do not hold it."""
    return answer.strip().rstrip(".").casefold() == ABSTAINED.rstrip(".").casefold()


def _title(passage: Passage) -> str:
    page = f", page {passage.page}" if passage.page else ""
    name = " ".join(PurePath(passage.document).name.split()) or "text"
    return _broken_up(f"{name}{page}" + (f": {' '.join(passage.heading.split())}" if passage.heading else ""))


def _as_data(text: str) -> str:
    """Mark each line that looks like the prompt's own, and the empty lines above it."""
    lines, above = LINE_END.split(_broken_up(text)), False
    for at in reversed(range(len(lines))):
        line = _folded(lines[at])
        above = FORM.match(line) is not None or (above and not line.strip())
        if above:
            lines[at] = f"| {lines[at]}"
    return "\n".join(lines)


def _broken_up(text: str) -> str:
    return CONTROL.sub(r"\g<0> ", text)


def _folded(line: str) -> str:
    """A line without invisible characters, NFKC-normalised and case-folded."""
    if not line.isascii() or not line.isprintable():
        line = unicodedata.normalize("NFKC", "".join(letter for letter in line if not _is_unseen(letter)))
    return line.casefold()


def _is_unseen(letter: str) -> bool:
    kind = unicodedata.category(letter)
    selectors = (("\u180b", "\u180f"), ("\ufe00", "\ufe0f"), ("\U000e0000", "\U000e0fff"))
    selects = any(first <= letter <= last for first, last in selectors)
    return kind == "Cf" or (kind == "Cc" and not letter.isspace()) or letter in UNSEEN or selects
