"""Attention to blocks is attention to the tokens that they hold."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from halka.models.attention.function import attend_to_blocks, grouped_products
from halka.models.attention.paged import ALWAYS, SIZE, KVBlocks, PagedPlan, PagedText
from halka.models.attention.paged_groups import NUMBERS
from halka.models.attention.scoring import Scoring

LAYERS, HEADS, QUERIES, WIDTH = 2, 2, 4, 8


def blocks(count: int) -> KVBlocks:
    kv = KVBlocks(count, (2 * LAYERS, HEADS, WIDTH), torch.float32)
    kv.data.fill_(torch.nan)  # whatever nobody has filled is never seen
    return kv


def expected(query, keys, values, positions, own, window, virtual):
    """Attention of tokens at positions `own` to keys (H, S, W), of which the first are virtual and always seen."""
    sees = positions <= own[:, None]
    if window is not None:
        sees &= own[:, None] - positions < window
    sees[:, :virtual] = True
    return grouped_products(query[None], keys[None], values[None], sees[None, None], 0.5)[0]


@pytest.mark.parametrize("most", [NUMBERS, 2**10, 1])
@pytest.mark.parametrize("way", ["products", "fused"])
@pytest.mark.parametrize("window", [None, 7])
def test_texts_of_any_length_see_their_own_blocks_and_virtual_tokens(window, way, most):
    """In groups of many texts, in some for some heads, and each token and head by itself."""
    generator = torch.Generator().manual_seed(0)
    cases = [(20, 1, 5), (33, 1, 0), (3, 3, 0), (40, 12, 18), (16, 1, 0)]  # tokens, of these in the line, virtual ones
    kv, free, texts, slots, positions, everything = blocks(40), iter(range(40)), [], [], [], []
    for length, new, virtual in cases:
        keys, values = torch.randn(2, HEADS, virtual + length, WIDTH, generator=generator)
        numbers, counts, begins = [], [], []
        for start, total, first in ((0, virtual, ALWAYS), (virtual, length, virtual)):
            for at in range(0, total, SIZE):
                number, count = next(free), min(SIZE, total - at)
                kv.clear([number])
                kv.data[number, 1, 0, :, :count] = keys[:, start + at : start + at + count]
                kv.data[number, 1, 1, :, :count] = values[:, start + at : start + at + count]
                numbers.append(number)
                counts.append(count)
                begins.append(ALWAYS if first == ALWAYS else first + at)
        own = numbers[-(-virtual // SIZE) :]
        places = range(length - new, length)
        for place in places:  # what the line brings is not there yet
            kv.data[own[place // SIZE], 1, :, :, place % SIZE] = 0
        slots += [own[place // SIZE] * SIZE + place % SIZE for place in places]
        positions += [virtual + place for place in places]
        texts.append(PagedText(new, numbers, counts, begins))
        everything.append((keys, values, virtual, new))
    plan = PagedPlan(kv, texts, positions, slots, [text.tokens for text in texts])
    query = torch.randn(1, QUERIES, sum(plan.forest.lengths), WIDTH, generator=generator)
    key, value = (
        torch.cat([pair[:, pair.shape[1] - new :] for *pairs, _, new in everything for pair in [pairs[which]]], 1)[None]
        for which in (0, 1)
    )
    attended = attend_to_blocks(query, key, value, plan, 1, Scoring(0.5, window=window), way=way, most=most)
    at = 0
    for keys, values, virtual, new in everything:
        end = keys.shape[1]
        alone = expected(
            query[0, :, at : at + new], keys, values, torch.arange(end), torch.arange(end - new, end), window, virtual
        )
        torch.testing.assert_close(attended[0, :, at : at + new], alone)
        at += new


class Largest(TorchDispatchMode):
    """The most numbers that a tensor has which an operation makes."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        if not func.is_view and not func._schema.is_mutable:
            tensors = (it for it in tree_leaves(made) if isinstance(it, torch.Tensor))
            self.numbers = max([self.numbers, *(tensor.numel() for tensor in tensors)])
        return made


@pytest.mark.parametrize("way", ["products", "fused"])
@pytest.mark.parametrize("new", [1, 200])
def test_a_long_text_beside_short_ones_takes_no_room_for_all_of_them(new, way):
    """Nor do the scores, or the mask, of all tokens that are read behind much."""
    most, long, short, rows = 2**15, 900, 10, 31
    kv, numbers = blocks(100), [*range(57)]
    kv.clear(range(100))
    counts = [SIZE] * 56 + [4]
    texts = [PagedText(new, numbers, counts, [SIZE * number for number in numbers])]
    texts += [PagedText(1, [60 + row], [short], [0]) for row in range(rows)]
    positions = [*range(long - new, long), *[short - 1] * rows]
    slots = [*range(long - new, long), *((60 + row) * SIZE + short - 1 for row in range(rows))]
    plan = PagedPlan(kv, texts, positions, slots, [text.tokens for text in texts])
    query, keys = torch.randn(1, QUERIES, len(slots), WIDTH), torch.randn(1, HEADS, len(slots), WIDTH)
    with Largest() as largest:
        attended = attend_to_blocks(query, keys, keys, plan, 1, Scoring(0.5), way=way, most=most)
    assert HEADS * long * WIDTH // 2 < largest.numbers <= most < rows * HEADS * long * WIDTH
    whole = attend_to_blocks(query, keys, keys, plan, 1, Scoring(0.5))
    torch.testing.assert_close(attended, whole)
