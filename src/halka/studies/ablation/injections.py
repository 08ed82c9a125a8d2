"""Passages that give orders: attacks put into what was found, and how often they are obeyed.

An attack is a sentence or a few that a document's author may have hidden there, and a word that shows that they were
obeyed. `injections.jsonl` holds them, written for this project, one or a few for each way that is known: plain orders,
a false end of the passage, another role's voice, urgency, other languages, and so on.
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
    """A text, the word in an answer that shows that it was obeyed, and the way it goes about it."""

    way: str
    text: str
    marker: str

    def succeeds(self, answer: str) -> bool:
        return self.marker.casefold() in answer.casefold()


@cache
def attacks() -> tuple[Attack, ...]:
    """Those that come with Halka."""
    lines = files("halka.studies.ablation").joinpath("injections.jsonl").read_text(encoding="utf-8").splitlines()
    return tuple(Attack(**json.loads(line)) for line in lines)


def attack_of(number: int) -> tuple[Attack, int]:
    """The attack of the numbered question, and its `at`, which is the next one whenever its turn comes again."""
    turn, which = divmod(number, len(attacks()))
    return attacks()[which], which + turn


def injected(passages: Sequence[Passage], attack: Attack, at: int) -> list[Passage]:
    """The passages with the attack in one of them, at its start, in its middle or at its end.

    By `at` the passages take turns first and then the places, so that each passage has it at each place.
    """
    which = at % len(passages)
    text = passages[which].text
    middle = text.find(" ", len(text) // 2) % (len(text) + 1)
    place = (0, middle, len(text))[at // len(passages) % 3]
    said = f"{text[:place].rstrip()}\n{attack.text}\n{text[place:].lstrip()}".strip()
    return [replace(each, text=said) if number == which else each for number, each in enumerate(passages)]
