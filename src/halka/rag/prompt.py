"""The one form in which passages are put before a model, in training and in answering, and how its answers are read.

    Answer the question from the passages. Cite each passage that you use by its number, like [1]. If the passages do
    not hold the answer, reply: The documents do not say.

    [1] parcels.md, page 2: Parcels › Lost ones
    Write to the depot.

    [2] …

    Question: Where do I write when a parcel is lost?

What stands in a passage is data. Lines of it that look like this form's own are set off, so that no document can end
its passage, number another, or ask a question in the user's place; what looks like a chat template's control token is
broken up. Which tokens a base really has only its tokenizer knows: `answering.user_message` holds to that.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import PurePath

from halka.rag.passages import Passage
from halka.util.errors import HalkaError

ABSTAINED = "The documents do not say."
INSTRUCTION = (
    "Answer the question from the passages. Cite each passage that you use by its number, like [1]. If the passages do "
    f"not hold the answer, reply: {ABSTAINED}"
)
ANSWER = "{answer}"
CITATION = re.compile(r"\[(\d{1,3})\]")
FORM = re.compile(r"\s*(\[\d+\]|question:|answer the question from)")  # of a line as `_folded` has it
LINE_END = re.compile("\r\n|[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]")
CONTROL = re.compile(
    r"<(?=[|｜][^\s<>]+[|｜]>|/?s>|(?:bos|eos|pad|(?:start|end)_of_turn|/?think|/?tool_call|/?tool_response)>)"
    r"|\[(?=/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS)\])"
)
UNSEEN = "\u034f\u115f\u1160\u17b4\u17b5\u3164\uffa0"  # and what Unicode calls format and controls, and selectors

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
        raise HalkaError(f"the question takes {needed} tokens where {budget} are left for the prompt: shorten it")
    kept: list[Passage] = []
    for each in passages:
        if count(prompted(question, [*kept, each])) <= budget:
            kept.append(each)
    return kept


def in_form(form: str, answer: str) -> str:
    """The answer as a form has it, which holds `{answer}` once. Raises ValueError for a form that does not."""
    if form.count(ANSWER) != 1:
        raise HalkaError(f"the form {form!r} must hold {ANSWER} once, where the answer stands")
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
    return _broken_up(f"{name}{page}" + (f": {' '.join(passage.heading.split())}" if passage.heading else ""))


def _as_data(text: str) -> str:
    """The text with a mark before each line that looks like the form's own, and before the empty ones above it."""
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
    """A line as it looks: without characters that are not seen, letters and signs in their plain form, no capitals."""
    if not line.isascii() or not line.isprintable():
        line = unicodedata.normalize("NFKC", "".join(each for each in line if not _is_unseen(each)))
    return line.casefold()


def _is_unseen(each: str) -> bool:
    kind = unicodedata.category(each)
    selects = "\u180b" <= each <= "\u180f" or "\ufe00" <= each <= "\ufe0f" or "\U000e0000" <= each <= "\U000e0fff"
    return kind == "Cf" or (kind == "Cc" and not each.isspace()) or each in UNSEEN or selects
