"""Examples that say the same, within a list and between two: what is learned twice, and what a test gives away."""

from collections.abc import Sequence
from dataclasses import dataclass

from halka.data.examples import Example, Message


@dataclass(frozen=True)
class Duplicate:
    """The places of two examples with the same prompt, and whether they have an answer in common too."""

    first: str
    second: str
    same_answer: bool


def within(examples: Sequence[Example]) -> list[Duplicate]:
    """Each example whose whole conversation stood before; several answers to one prompt are no duplicates."""
    seen: dict[object, str] = {}
    found: list[Duplicate] = []
    for index, example in enumerate(examples):
        key, place = _key(example.messages), example.place(index)
        if key in seen:
            found.append(Duplicate(seen[key], place, same_answer=True))
        else:
            seen[key] = place
    return found


def between(first: Sequence[Example], second: Sequence[Example]) -> list[Duplicate]:
    """Each example of `second` whose prompt stands in `first`."""
    places: dict[object, str] = {}
    answers: dict[object, set[str]] = {}
    for index, example in enumerate(first):
        key = prompt_key(example)
        places.setdefault(key, example.place(index))
        answers.setdefault(key, set()).update(answer_keys(example))
    return [
        Duplicate(places[key], example.place(index), not answers[key].isdisjoint(answer_keys(example)))
        for index, example in enumerate(second)
        if (key := prompt_key(example)) in places
    ]


def prompt_key(example: Example) -> object:
    """The same for two examples that ask the same, blanks and capitals aside."""
    return _key(example.prompt)


def answer_keys(example: Example) -> frozenset[str]:
    """All answers that count as right, blanks and capitals aside."""
    return frozenset(map(_plain, example.answers))


def _key(messages: Sequence[Message]) -> object:
    return tuple((message.role, _plain(message.content)) for message in messages)


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold()
