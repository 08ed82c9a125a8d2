"""Attacks: what a run is asked beside the test, with an order to the model in one of the passages.

An attack is a text that a document's author may have hidden there, and a word in an answer that shows that the model
obeyed it. `injections.jsonl` holds them, written for this project, one or a few for each known way: plain orders, a
false end of the passage, another role's voice, urgency, other languages, and so on.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files

from halka.rag.passages import Passage


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
