"""A packed batch predicts every label from the same tokens as each example alone, and computes no token twice."""

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from halka.data.packing import PackedBatch, computed_tokens, pack, paths_of
from halka.data.tokens import Tokens

IDS = st.sampled_from([1, 2, 300, 70_000])  # few, so that beginnings are shared; of one to three bytes
ITEMS = st.lists(
    st.lists(st.tuples(IDS, st.booleans()), min_size=1, max_size=9).map(
        lambda pairs: Tokens([token for token, _ in pairs], [loss for _, loss in pairs])
    ),
    min_size=1,
    max_size=9,
)
LEAST = st.sampled_from([0, 1, 4])
Label = tuple[tuple[int, ...], int]  # the tokens that it is predicted from, and the token itself


def labels_alone(items: list[Tokens]) -> Counter[Label]:
    """The slow twin: the labels of every example by itself."""
    return Counter(
        (tuple(item.ids[:place]), item.ids[place])
        for item in items
        for place in range(1, len(item.ids))
        if item.loss[place]
    )


def tokens_alone(items: list[Tokens]) -> set[tuple[int, ...]]:
    """The slow twin: every beginning of an example that a label is predicted from, or that such a one begins with."""
    return {path[:end] for path, _ in labels_alone(items) for end in range(1, len(path) + 1)}


def seen_by_tokens(batch: PackedBatch) -> list[tuple[int, ...]]:
    """For each token of the line, those that it sees: its segment's up to itself, and its ancestors'."""
    ids = iter(batch.input_ids[0].tolist())
    segments: list[tuple[int, ...]] = []
    seen: list[tuple[int, ...]] = []
    for length, parent in zip(batch.forest.lengths, batch.forest.parents, strict=True):
        path = () if parent < 0 else segments[parent]
        for _ in range(length):
            path = (*path, next(ids))
            seen.append(path)
        segments.append(path)
    assert next(ids, None) is None
    return seen


def labels_packed(batch: PackedBatch) -> list[Counter[Label]]:
    """Each run's labels."""
    seen = seen_by_tokens(batch)
    labels = [
        ((seen[state], label), count)
        for state, label, count in zip(batch.states.tolist(), batch.labels.tolist(), batch.counts.tolist(), strict=True)
    ]
    runs: list[Counter[Label]] = []
    for size in batch.labels_of_run:
        runs.append(Counter())
        for label, count in labels[:size]:
            runs[-1][label] += count
        labels = labels[size:]
    assert not labels
    return runs


def tokens(ids: list[int], loss: str) -> Tokens:
    return Tokens(ids, [mark == "x" for mark in loss])


@given(groups=st.lists(ITEMS, min_size=1, max_size=3), least=LEAST)
def test_labels_are_those_of_the_examples_alone(groups, least):
    batch = pack(groups, least)
    assert labels_packed(batch) == [labels_alone(items) for items in groups]


@given(groups=st.lists(ITEMS, min_size=1, max_size=3), least=LEAST)
def test_each_items_own_labels_are_among_the_batchs(groups, least):
    batch = pack(groups, least)
    expected = [
        token
        for items in groups
        for item in items
        for token, counts in zip(item.ids[1:], item.loss[1:], strict=True)
        if counts
    ]
    assert batch.labels[batch.own].tolist() == expected
    assert Counter(batch.own.tolist()) == dict(enumerate(batch.counts.tolist()))


@given(groups=st.lists(ITEMS, min_size=1, max_size=3), least=LEAST, multiple=st.integers(1, 32))
def test_a_filled_line_has_the_same_labels_and_tokens_behind_all_others(groups, least, multiple):
    batch = pack(groups, least)
    filled, count = batch.filled(multiple), batch.input_ids.shape[1]
    assert filled.input_ids.shape == filled.position_ids.shape == (1, -(-count // multiple) * multiple)
    assert filled.input_ids[:, :count].equal(batch.input_ids)
    assert filled.position_ids[:, :count].equal(batch.position_ids)
    assert filled.position_ids.max() == batch.position_ids.max()
    assert seen_by_tokens(filled)[:count] == seen_by_tokens(batch)
    assert len(filled.forest.runs) == len(batch.forest.runs)
    assert labels_packed(filled) == labels_packed(batch)


@given(groups=st.lists(ITEMS, min_size=1, max_size=3), least=LEAST)
def test_the_line_is_a_forest_whose_trees_lie_within_runs(groups, least):
    batch = pack(groups, least)
    forest = batch.forest
    assert sum(forest.lengths) == sum(forest.runs) == batch.input_ids.shape[1]
    assert len(forest.runs) == len(batch.labels_of_run) == len(groups)
    assert all(length > 0 for length in forest.lengths)
    assert all(parent < number for number, parent in enumerate(forest.parents))
    run_of = [run for run, size in enumerate(forest.runs) for _ in range(size)]
    start = 0
    runs: list[int] = []
    for length, parent in zip(forest.lengths, forest.parents, strict=True):
        assert len(set(run_of[start : start + length])) == 1
        runs.append(run_of[start])
        assert parent < 0 or runs[parent] == runs[-1]
        start += length
    assert batch.position_ids[0].tolist() == [len(path) - 1 for path in seen_by_tokens(batch)]
    assert [run_of[state] for state in batch.states] == [
        run for run, size in enumerate(batch.labels_of_run) for _ in range(size)
    ]


@given(items=ITEMS)
def test_sharing_all_computes_every_beginning_once_and_none_without_need(items):
    batch = pack([items], 0)
    assert set(seen_by_tokens(batch)) == (tokens_alone(items) or {tuple(items[0].ids[:1])})
    assert batch.input_ids.numel() == max(1, len(tokens_alone(items)))


@given(items=ITEMS, least=LEAST)
def test_tokens_can_be_counted_without_a_batch(items, least):
    assert computed_tokens(paths_of(items), least) == pack([items], least).input_ids.numel()


@given(items=ITEMS, least=LEAST, order=st.randoms(use_true_random=False))
def test_the_order_of_examples_does_not_matter(items, least, order):
    shuffled = list(items)
    order.shuffle(shuffled)
    ours, theirs = pack([items], least), pack([shuffled], least)
    if tokens_alone(items):
        assert ours.forest == theirs.forest
        for name in ("input_ids", "position_ids", "states", "labels", "counts"):
            assert torch.equal(getattr(ours, name), getattr(theirs, name))


def test_a_shared_instruction_stands_once_before_its_answers():
    first, second = tokens([1, 2, 3, 4, 5], "...xx"), tokens([1, 2, 3, 6, 7, 8], "...xxx")
    batch = pack([[first, second]], least_saved=0)
    assert batch.input_ids.tolist() == [[1, 2, 3, 4, 6, 7]]  # 5 and 8 predict nothing
    assert (batch.forest.lengths, batch.forest.parents, batch.forest.runs) == ((3, 1, 2), (-1, 0, 0), (6,))
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 3, 4]]
    # the first tokens of both answers are predicted from the instruction's last state
    assert (batch.states.tolist(), batch.labels.tolist()) == ([2, 2, 3, 4, 5], [4, 6, 5, 7, 8])
    assert batch.counts.tolist() == [1, 1, 1, 1, 1]
    assert batch.labels_of_run == (5,)


def test_a_repeated_example_counts_twice_and_a_label_within_a_shared_segment_for_those_who_have_it():
    batch = pack([[tokens([1, 2, 3], "..x")] * 2 + [tokens([1, 2, 3], ".x.")]], least_saved=0)
    assert batch.input_ids.tolist() == [[1, 2]]
    assert (batch.states.tolist(), batch.labels.tolist(), batch.counts.tolist()) == ([0, 1], [2, 3], [1, 2])


def test_an_example_that_is_the_beginning_of_another_needs_no_segment():
    batch = pack([[tokens([1, 2, 3], "..x"), tokens([1, 2, 3, 4, 5], "....x")]], least_saved=0)
    assert batch.input_ids.tolist() == [[1, 2, 3, 4]]
    assert batch.forest.lengths == (4,)
    assert (batch.states.tolist(), batch.labels.tolist()) == ([1, 3], [3, 5])


def test_adapters_share_nothing():
    item = tokens([1] * 40, "." * 30 + "x" * 10)
    batch = pack([[item], [item, item]])
    assert batch.forest.lengths == batch.forest.runs == (39, 39)
    assert batch.forest.parents == (-1, -1)
    assert batch.labels_of_run == (10, 10)
    assert batch.counts.tolist() == [1] * 10 + [2] * 10


@pytest.mark.parametrize(("common", "examples", "shared"), [(7, 2, False), (8, 2, True), (4, 20, False), (5, 20, True)])
def test_sharing_that_saves_little_is_not_done(common, examples, shared):
    items = [tokens([*range(common), 100 + number, 0], "." * (common + 1) + "x") for number in range(examples)]
    batch = pack([items])
    lengths = (common, *[1] * examples) if shared else (common + 1,) * examples
    assert batch.forest.lengths == lengths
    assert labels_packed(batch) == [labels_alone(items)]


def test_tokens_that_are_not_shared_pass_to_the_segments_below():
    """Two tokens that all have in common are not worth a segment, the twelve of two pairs are."""
    items = [
        tokens([1, 2, *[10 + pair] * 10, 20 + number, 0], "." * 13 + "x") for pair in range(2) for number in range(2)
    ]
    assert pack([items]).forest.parents == (-1, 0, 0, -1, 3, 3)
    assert pack([items]).forest.lengths == (12, 1, 1) * 2


def test_a_chain_of_thousand_segments():
    items = [tokens([1] * length + [2, 3], "." * (length + 1) + "x") for length in range(1, 1200)]
    batch = pack([items], least_saved=0)
    assert labels_packed(batch) == [labels_alone(items)]


def test_a_batch_without_labels_keeps_one_token_for_each_run():
    batch = pack([[tokens([5, 6], "x.")], [tokens([7, 8], ".x")]])
    assert (batch.input_ids.tolist(), batch.forest.runs) == ([[5, 7]], (1, 1))
    assert batch.labels_of_run == (0, 1)
    with pytest.raises(ValueError, match="at least one item for each adapter"):
        pack([[tokens([5], "x")], []])
    with pytest.raises(ValueError, match="at least one item for each adapter"):
        pack([])


def test_all_tensors_are_int64_and_move_together():
    batch = pack([[tokens([1, 2, 3], ".xx")]]).to("meta")
    for tensor in (batch.input_ids, batch.position_ids, batch.states, batch.labels, batch.counts, batch.own):
        assert (tensor.dtype, tensor.device.type) == (torch.int64, "meta")
