"""Batches hold every example once, keep their budget, group like lengths and can be made again."""

import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from halka.data.batches import IGNORE_INDEX, collate, plan, plan_packed
from halka.data.packing import pack
from halka.data.tokens import Tokens

LENGTHS = st.lists(st.integers(1, 600), max_size=80)
ITEMS = st.lists(
    st.lists(st.tuples(st.integers(1, 99), st.booleans()), min_size=1, max_size=9).map(
        lambda pairs: Tokens([token for token, _ in pairs], [loss for _, loss in pairs])
    ),
    min_size=1,
    max_size=6,
)


@given(
    lengths=LENGTHS,
    batch_tokens=st.none() | st.integers(1, 2000),
    batch_size=st.none() | st.integers(1, 9),
    seed=st.integers(0, 5),
    epoch=st.integers(0, 5),
)
def test_a_plan_has_every_example_once_within_the_limits(lengths, batch_tokens, batch_size, seed, epoch):
    if batch_tokens is None and batch_size is None:
        batch_size = 4
    planned = plan(lengths, seed=seed, epoch=epoch, batch_tokens=batch_tokens, batch_size=batch_size)
    assert sorted(index for batch in planned for index in batch) == list(range(len(lengths)))
    for batch in planned:
        padded = len(batch) * max(lengths[index] for index in batch)
        assert batch_size is None or len(batch) <= batch_size
        assert batch_tokens is None or padded <= batch_tokens or len(batch) == 1
    assert planned == plan(lengths, seed=seed, epoch=epoch, batch_tokens=batch_tokens, batch_size=batch_size)


@given(lengths=LENGTHS, batch_size=st.integers(1, 9))
def test_batches_of_a_number_of_examples_are_full_but_for_one(lengths, batch_size):
    sizes = sorted(len(batch) for batch in plan(lengths, seed=0, epoch=0, batch_size=batch_size))
    assert all(size == batch_size for size in sizes[1:])


def test_padding_is_little_and_budgets_are_filled():
    rng = random.Random(0)
    lengths = [int(rng.lognormvariate(5, 0.7)) + 1 for _ in range(5000)]
    planned = plan(lengths, seed=0, epoch=0, batch_tokens=4096)
    padded = sum(len(batch) * max(lengths[index] for index in batch) for batch in planned)
    assert padded < 1.05 * sum(lengths)
    assert padded > 0.9 * 4096 * len(planned)


def test_epochs_and_seeds_mix_companions_and_order():
    lengths = [20 + index % 3 for index in range(60)]
    plans = [plan(lengths, seed=seed, epoch=epoch, batch_size=4) for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    as_sets = [{frozenset(batch) for batch in planned} for planned in plans]
    assert as_sets[0] != as_sets[1] != as_sets[2] != as_sets[0]
    longest = [max(lengths[index] for index in batch) for batch in plan(lengths, seed=0, epoch=0, batch_size=4)]
    assert longest != sorted(longest)


def instructed(number: int, shared: int, alone: int, labels: int = 3) -> Tokens:
    """An example of `number` that begins with one of three instructions, all of `shared` tokens."""
    rng = random.Random(number)
    own = [rng.randrange(10, 99) for _ in range(alone + number % 3)]
    return Tokens([number % 3] * shared + own, [False] * (shared + len(own) - labels) + [True] * labels)


def computed(items: list[Tokens], batch: list[int]) -> int:
    return pack([[items[index] for index in batch]]).input_ids.numel()


@given(
    items=st.lists(ITEMS, max_size=8).map(lambda lists: [item for items in lists for item in items]),
    batch_tokens=st.none() | st.integers(1, 60),
    batch_size=st.none() | st.integers(1, 9),
    epoch=st.integers(0, 5),
    group_shared=st.booleans(),
)
def test_a_packed_plan_has_every_example_once_within_the_limits(items, batch_tokens, batch_size, epoch, group_shared):
    if batch_tokens is None and batch_size is None:
        batch_size = 4
    options = {"batch_tokens": batch_tokens, "batch_size": batch_size, "group_shared": group_shared}
    planned = plan_packed(items, seed=1, epoch=epoch, **options)
    assert sorted(index for batch in planned for index in batch) == list(range(len(items)))
    for batch in planned:
        assert batch_size is None or len(batch) <= batch_size
        assert batch_tokens is None or computed(items, batch) <= batch_tokens or len(batch) == 1
    assert planned == plan_packed(items, seed=1, epoch=epoch, **options)


def test_packed_batches_fill_the_budget_with_tokens_that_are_computed():
    items = [instructed(number, shared=90, alone=10) for number in range(600)]
    planned = plan_packed(items, seed=0, epoch=0, batch_tokens=1024)
    counts = [computed(items, batch) for batch in planned]
    assert sum(counts) > 0.97 * 1024 * (len(planned) - 1)
    assert 5 * len(planned) < len(plan([len(item) for item in items], seed=0, epoch=0, batch_tokens=1024))


def test_with_a_number_of_examples_packed_batches_are_the_padded_ones():
    items = [instructed(number, shared=number % 7, alone=8) for number in range(100)]
    lengths = [len(item) for item in items]
    assert plan_packed(items, seed=3, epoch=2, batch_size=6) == plan(lengths, seed=3, epoch=2, batch_size=6)


def test_examples_with_a_common_beginning_can_be_brought_together():
    items = [instructed(number, shared=40, alone=4 + number // 3 % 9) for number in range(300)]
    apart, together, later = (
        plan_packed(items, seed=0, epoch=epoch, batch_tokens=512, group_shared=grouped)
        for epoch, grouped in ((0, False), (0, True), (1, True))
    )
    assert sum(computed(items, batch) for batch in together) < sum(computed(items, batch) for batch in apart)
    assert sum(len({index % 3 for index in batch}) == 1 for batch in together) >= len(together) - 2
    assert {frozenset(batch) for batch in together} != {frozenset(batch) for batch in later}


@given(items=ITEMS, side=st.sampled_from(["left", "right"]))
def test_collating_pads_and_keeps_labels_at_their_tokens(items, side):
    batch = collate(items, pad_id=0, side=side)
    longest = max(len(item.ids) for item in items)
    for tensor in (batch.input_ids, batch.attention_mask, batch.labels):
        assert (tensor.shape, tensor.dtype) == ((len(items), longest), torch.int64)
    for row, item in enumerate(items):
        padding = longest - len(item.ids)

        def padded(values, fill, padding=padding):
            return [fill] * padding + values if side == "left" else values + [fill] * padding

        labels = [token if loss else IGNORE_INDEX for token, loss in zip(item.ids, item.loss, strict=True)]
        assert batch.input_ids[row].tolist() == padded(item.ids, 0)
        assert batch.attention_mask[row].tolist() == padded([1] * len(item.ids), 0)
        assert batch.labels[row].tolist() == padded(labels, IGNORE_INDEX)


def test_nonsense_is_refused():
    with pytest.raises(ValueError, match=r"set batch_tokens .* batch_size .* or both"):
        plan([1], seed=0, epoch=0)
    with pytest.raises(ValueError, match="batch_size is 0; it must be at least 1"):
        plan([1], seed=0, epoch=0, batch_size=0)
    with pytest.raises(ValueError, match=r"set batch_tokens .* batch_size .* or both"):
        plan_packed([], seed=0, epoch=0)
    with pytest.raises(ValueError, match="side is 'middle'; choose left or right"):
        collate([Tokens([1], [True])], pad_id=0, side="middle")
    with pytest.raises(ValueError, match="at least one item"):
        collate([], pad_id=0)
    assert plan([], seed=0, epoch=0, batch_size=2) == []
