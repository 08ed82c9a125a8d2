"""What is wrong with the data by itself: what is repeated, contradicts itself, or gives the held-out answers away."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from halka.advisor.evidence import Cleanliness
from halka.data.duplicates import answer_keys, between, prompt_key, within
from halka.data.examples import Example

SHOWN = 5
"""Places of each kind at most."""


def cleanliness(train: Sequence[Example], held_out: Sequence[Example]) -> Cleanliness:
    """Numbers of examples, and up to `SHOWN` places of each kind under "repeated", "contradictory" and "leaked".

    Blanks and capitals aside: repeated are training examples whose whole conversation stood before; contradictory are
    those with the prompt of another and no answer in common with it, all sides of it; leaked are held-out examples
    whose prompt stands in the training data, whatever its answer there. Contradictory are not only mistakes: where
    many answers are right and none is the only one ("write a poem"), they are as they should be.

    Takes time in proportion to the number of examples, also of those with one prompt.
    """
    repeated, leaked = within(train), between(train, held_out)
    contradictory = [train[index].place(index) for index in _contradictory(train)]
    return Cleanliness(
        repeated=len(repeated),
        contradictory=len(contradictory),
        leaked=len(leaked),
        answers=len(frozenset().union(*map(answer_keys, train))),
        places={
            "repeated": _some(each.second for each in repeated),
            "contradictory": _some(contradictory),
            "leaked": _some(each.second for each in leaked),
        },
        held_out=len(held_out),
    )


def _contradictory(examples: Sequence[Example]) -> Iterator[int]:
    """Their indices, those of one prompt together."""
    asking: dict[object, list[int]] = defaultdict(list)
    for index, example in enumerate(examples):
        if example.answers:
            asking[prompt_key(example)].append(index)
    for indices in asking.values():
        answers = [answer_keys(examples[index]) for index in indices]
        saying: dict[str, set[int]] = defaultdict(set)
        for index, said in zip(indices, answers, strict=True):
            for answer in said:
                saying[answer].add(index)
        alike = {said: len(set().union(*(saying[answer] for answer in said))) for said in set(answers)}
        yield from (index for index, said in zip(indices, answers, strict=True) if alike[said] < len(indices))


def _some(places: Iterable[str]) -> tuple[str, ...]:
    return tuple(islice(places, SHOWN))
