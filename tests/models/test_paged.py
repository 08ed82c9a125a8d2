"""Attention to blocks is attention to the tokens that they hold."""

from __future__ import annotations

import pytest
import torch

from halka.models.attention.function import attend_to_blocks, grouped_products
from halka.models.attention.paged import ALWAYS, SIZE, KVBlocks, PagedPlan, PagedText

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


@pytest.mark.parametrize("window", [None, 7])
def test_texts_of_any_length_see_their_own_blocks_and_virtual_tokens(window):
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
    attended = attend_to_blocks(query, key, value, plan, 1, 0.5, window=window)
    at = 0
    for keys, values, virtual, new in everything:
        end = keys.shape[1]
        alone = expected(
            query[0, :, at : at + new], keys, values, torch.arange(end), torch.arange(end - new, end), window, virtual
        )
        torch.testing.assert_close(attended[0, :, at : at + new], alone)
        at += new
