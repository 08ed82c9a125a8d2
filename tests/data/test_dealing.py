"""A batch in parts: each example once, and no part much larger than it must be."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from halka.data.dealing import split, work_of
from halka.data.packing import computed_tokens, paths_of
from halka.data.tokens import Tokens

ITEMS = st.lists(
    st.tuples(st.sampled_from([(), (5, 6, 7, 8, 9, 10)]), st.lists(st.integers(11, 13), min_size=1, max_size=6)).map(
        lambda parts: Tokens([*parts[0], *parts[1]], [True] * len([*parts[0], *parts[1]]))
    ),
    min_size=1,
    max_size=6,
)


@given(items=ITEMS, count=st.integers(1, 4), packed=st.booleans())
def test_each_item_is_in_one_part(items: list[Tokens], count: int, packed: bool):
    parts = split(items, count, packed=packed)
    assert len(parts) == count
    assert sorted(id(item) for part in parts for item in part) == sorted(map(id, items))


@given(items=ITEMS, count=st.integers(1, 3), packed=st.booleans())
def test_no_cut_of_that_order_has_a_smaller_largest_part(items: list[Tokens], count: int, packed: bool):
    parts = split(items, count, packed=packed)
    order = [item for part in parts for item in part]
    cuts = itertools.combinations_with_replacement(range(len(order) + 1), count - 1)
    ways = ([order[i:j] for i, j in itertools.pairwise((0, *cut, len(order)))] for cut in cuts)
    least = min(max(work_of(part, packed=packed) for part in way if part) for way in ways)
    assert max(work_of(part, packed=packed) for part in parts if part) == least


@pytest.mark.parametrize("packed", [True, False])
def test_the_work_is_the_tokens_that_a_batch_computes(packed: bool):
    begin = list(range(20, 40))
    items = [Tokens([*begin, 3, 4, 5 + i], [False] * 20 + [True] * 3) for i in range(4)]
    computed = computed_tokens(paths_of(items), least_saved=0) if packed else 4 * 23
    assert work_of(items, packed=packed) == computed


def test_what_begins_alike_stays_together():
    one, two = (
        [Tokens([*begin, 50 + i], [False] * 9 + [True]) for i in range(3)] for begin in (range(9), range(9, 18))
    )
    mixed = [item for pair in zip(one, two, strict=True) for item in pair]
    parts = split(mixed, 2, packed=True)
    assert [sorted(item.ids for item in part) for part in parts] == [
        [item.ids for item in one],
        [item.ids for item in two],
    ]
