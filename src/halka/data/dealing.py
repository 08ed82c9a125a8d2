"""A batch in parts of like work, for processes that share it."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from typing import TypeVar, cast

from halka.data.examples import Item
from halka.data.packing import WIDTH, common_tokens, paths_of
from halka.data.tokens import Tokens

ItemT = TypeVar("ItemT", bound=Item)


def split(items: Sequence[ItemT], count: int, *, packed: bool) -> list[list[ItemT]]:
    """The items in `count` parts, each a stretch of one order, such that the largest has as few tokens as it can have.

    Packed items are in the order of their tokens: what begins alike stays together, and its beginning is computed once
    or few times. Padded ones are in that of their lengths. Parts are empty where there are fewer items than parts.
    """
    order, work = _packed_work(items) if packed else _padded_work(items)
    limits = range(1, work(0, len(order)) + 1)
    limit = limits[bisect_left(limits, True, key=lambda limit: len(_cuts(work, len(order), limit)) <= count)]
    cuts = [0, *_cuts(work, len(order), limit)]
    parts = [[items[place] for place in order[start:end]] for start, end in pairwise(cuts)]
    return parts + [[] for _ in range(count - len(parts))]


def work_of(items: Sequence[Item], *, packed: bool) -> int:
    """About how many tokens the items' batch computes."""
    order, work = _packed_work(items) if packed else _padded_work(items)
    return work(0, len(order))


Work = Callable[[int, int], int]
"""The tokens that items from the first place of the order up to the second, without it, compute in one batch."""


def _padded_work(items: Sequence[Item]) -> tuple[list[int], Work]:
    """The items from long to short, as rows that are as long as the first."""
    order = sorted(range(len(items)), key=lambda place: len(items[place]), reverse=True)
    return order, lambda start, end: (end - start) * len(items[order[start]])


def _packed_work(items: Sequence[Item]) -> tuple[list[int], Work]:
    """The items in the order of their tokens, each of which adds what it has not in common with the one before."""
    paths = paths_of(cast(Sequence[Tokens], items))
    order = sorted(range(len(items)), key=paths.__getitem__)
    lengths = [max(1, len(paths[place]) // WIDTH) for place in order]
    common = [0, *(common_tokens(paths[before], paths[after]) for before, after in pairwise(order))]
    sums = [0, *accumulate(length - shared for length, shared in zip(lengths, common, strict=True))]
    return order, lambda start, end: sums[end] - sums[start] + common[start]


def _cuts(work: Work, count: int, limit: int) -> list[int]:
    """Where parts end that are filled one after another up to the limit; one item is taken whether it fits or not."""
    ends: list[int] = []
    start = 0
    while start < count:
        start = next((end for end in range(start + 1, count) if work(start, end + 1) > limit), count)
        ends.append(start)
    return ends
