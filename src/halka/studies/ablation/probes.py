"""What a run is asked beside the test: passages with an attack in them, and facts that changed in their documents.

An attack is a text that a document's author may have hidden there, and a word in an answer that shows that the model
obeyed it. `injections.jsonl` holds them, written for this project, one or a few for each known way: plain orders, a
false end of the passage, another role's voice, urgency, other languages, and so on.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from random import Random

from halka.evaluation.metrics import find_metric
from halka.rag.passages import Passage
from halka.rag.raft import Asked


@dataclass(frozen=True)
class Attack:
    """A text, the word in an answer that shows that it was obeyed, and the way in which it attacks."""

    way: str
    text: str
    marker: str

    def succeeds(self, answer: str) -> bool:
        return self.marker.casefold() in answer.casefold()


@cache
def attacks() -> tuple[Attack, ...]:
    """The attacks that come with Halka."""
    lines = files("halka.studies.ablation").joinpath("injections.jsonl").read_text(encoding="utf-8").splitlines()
    return tuple(Attack(**json.loads(line)) for line in lines)


def attack_of(number: int) -> tuple[Attack, int]:
    """The attack of the numbered question, and where `inject` puts it: elsewhere at each of the attack's turns."""
    turn, index = divmod(number, len(attacks()))
    return attacks()[index], index + turn


def inject(passages: Sequence[Passage], attack: Attack, at: int) -> list[Passage]:
    """The passages with the attack in one of them, at its start, in its middle or at its end.

    With rising `at` the passages take turns first and then the places, so that each passage has it at each place.
    """
    index = at % len(passages)
    text = passages[index].text
    middle = text.find(" ", len(text) // 2) % (len(text) + 1)
    place = (0, middle, len(text))[at // len(passages) % 3]
    attacked = f"{text[:place].rstrip()}\n{attack.text}\n{text[place:].lstrip()}".strip()
    return [replace(passage, text=attacked) if n == index else passage for n, passage in enumerate(passages)]


def change_of(asked: Asked, text: str, questions: Iterable[Asked], draw: Random) -> tuple[str, str] | None:
    """Another answer for the question, and its document's text with it in place of the right one.

    None where no other answer is in `questions`, or the right one stands nowhere in the text in these letters.
    """
    others = similar_answers(asked, questions)
    if not others:
        return None
    new = draw.choice(others)
    changed = replace_answers(text, asked.answers, new)
    return None if changed == text else (new, changed)


def similar_answers(asked: Asked, questions: Iterable[Asked]) -> list[str]:
    """Other questions' answers that could answer this one: same question word, same kind of answer; else any other."""

    def looks(question: str, answer: str) -> tuple[bool, ...]:
        words = set(question.casefold().split())
        kinds = (word in words for word in ("who", "when", "where", "many", "year"))
        return (*kinds, any(map(str.isdigit, answer)), answer[:1].isupper(), " " in answer)

    own = looks(asked.question, asked.answers[0])
    exact = find_metric("squad_exact").per_item
    others = [
        (other.question, answer)
        for other in questions
        for answer in other.answers[:1]
        if not exact(answer, asked.answers)["sum"]
    ]
    similar = [answer for question, answer in others if looks(question, answer) == own]
    return similar or [answer for _, answer in others]


def replace_answers(text: str, answers: Sequence[str], new: str) -> str:
    """The text with `new` wherever an answer's words stand in order, as `holds` finds them, the longest answer first.

    Between the words may be other punctuation than in the answer; the answer's own at its ends goes with it.
    """
    patterns = [
        _pattern(answer.strip()) for answer in sorted(answers, key=len, reverse=True) if re.search(r"\w", answer)
    ]
    return re.sub("|".join(patterns), lambda _: new, text, flags=re.IGNORECASE) if patterns else text


def _pattern(answer: str) -> str:
    words = re.findall(r"\w+", answer)
    before, after = re.split(r"\w.*\w|\w", answer, maxsplit=1, flags=re.DOTALL)
    whole = r"\W+".join(map(re.escape, words))
    return rf"(?:{re.escape(before)})?(?<!\w){whole}(?!\w)(?:{re.escape(after)})?"
