"""Splits of examples: some held out for validation, a subset of them; the same seed gives the same ones."""

import random
from collections.abc import Iterable, Sequence
from typing import TypeVar

from halka.data.duplicates import dialogue_key
from halka.data.examples import Example, Examples, as_examples
from halka.util.errors import HalkaError

T = TypeVar("T")


def split_off(examples: Sequence[Example], count: int, seed: str) -> tuple[list[Example], list[Example]]:
    """Split off some `count` and at least one example, by `dialogue_key`; (rest, split off), each in order.

    What stays together and is more than `count` is split off only where nothing else can be, or comes nearer to it.
    """
    count = max(count, 1)
    groups: dict[object, list[int]] = {}
    key = dialogue_key(examples)
    for index, example in enumerate(examples):
        groups.setdefault(key(example), []).append(index)
    chosen: set[int] = set()
    for group in sorted(_shuffled(groups.values(), seed), key=lambda group: len(group) > count):
        missing = count - len(chosen)
        if missing <= 0 or (chosen and len(group) > count and len(group) >= 2 * missing):
            break
        chosen.update(group)
    rest = [example for index, example in enumerate(examples) if index not in chosen]
    return rest, [examples[index] for index in sorted(chosen)]


def hold_out(examples: Examples, share: float) -> tuple[list[Example], list[Example]]:
    """Hold a share of examples or rows out for validation: (to train on, held out); always the same ones.

    Raises DataError for a row that is no example, HalkaError for a share that is not between 0 and 1.
    """
    if not 0 < share < 1:
        raise HalkaError(f"share is {share}: hold out a part of the examples, such as 0.1")
    examples = as_examples(examples)
    return split_off(examples, round(share * len(examples)), "0/validation")


def subset(examples: tuple[Example, ...], count: int | None, seed: str) -> tuple[Example, ...]:
    """`count` of the examples, in order; all if None. A smaller subset of the same seed is part of a larger one."""
    return (
        examples if count is None else tuple(examples[i] for i in sorted(_shuffled(range(len(examples)), seed)[:count]))
    )


def _shuffled(items: Iterable[T], seed: str) -> list[T]:
    shuffled = list(items)
    random.Random(seed).shuffle(shuffled)
    return shuffled
