"""Attention of tiles is that of the same tokens with a mask, in fp32 and in bf16."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from halka.engine.llama import kernels
from halka.engine.llama.attention_tiles import MOST, QUERIES, TileAttention, batched, tiles_of
from halka.kernels.shared import array_of, shared
from halka.models.attention.function import grouped_products
from halka.models.attention.paged import ALWAYS, SIZE, KVBlocks, PagedPlan, PagedText
from halka.models.attention.paged_groups import Products, groups_of

Q, H, W = 6, 2, 8


def text(tokens: int, done: int, first: int, virtual: int = 0) -> tuple[PagedText, list[int]]:
    """A text with so many tokens in the line behind others, its blocks from `first` on, and the tokens' positions."""
    total = done + tokens
    blocks = [*range(first, first + -(-total // SIZE))][::-1]
    counts = [min(SIZE, total - start) for start in range(0, total, SIZE)]
    begins = [virtual + start for start in range(0, total, SIZE)]
    if virtual:
        blocks, counts, begins = [0, *blocks], [virtual, *counts], [ALWAYS, *begins]
    return PagedText(tokens, blocks, counts, begins), [*range(virtual + done, virtual + total)]


@pytest.mark.parametrize("window", [None, 1, 7, 40, 2 * QUERIES])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tiles_see_what_a_mask_lets_them(dtype, window):
    """From the beginning and behind a past, in one tile and in several, with virtual tokens, padded beside others."""
    kv = KVBlocks(80, (4, H, W), dtype)
    kv.data.copy_(torch.randn(kv.data.shape, generator=torch.Generator().manual_seed(0)))
    made = [
        text(1, 20, 1),
        text(5, 0, 5),
        text(2 * QUERIES + 3, 0, 10),
        text(20, 70, 30, virtual=5),
        text(QUERIES + 30, 33, 40, virtual=SIZE),
        text(2, 90, 60),
        text(6, 0, 70),
    ]
    texts = [one for one, _ in made]
    positions = [position for _, own in made for position in own]
    plan = PagedPlan(kv, texts, positions, [0] * len(positions), [len(positions)])
    q = torch.randn(len(positions), Q, W, generator=torch.Generator().manual_seed(1)).to(dtype)
    out, attend = torch.zeros(len(positions), Q * W, dtype=dtype), TileAttention(H, dtype)
    expected = torch.zeros(len(positions), Q * W)
    for group in groups_of(plan, Products(Q, window=window)):
        keys, values = (tensor.float() for tensor in kv.read(1, *group.strips))
        attended = grouped_products(q[group.places].float().transpose(1, 2), keys, values, group.mask, 0.4)
        expected[group.places] = attended.transpose(1, 2).flatten(-2)
    expected[0] = 0  # a text of one token is in none of these tiles
    tiles = [tile for number, own in enumerate(texts) if own.tokens > 1 for tile in tiles_of(plan, number, window)]
    batches = batched(tiles)
    assert any(batch.count > 1 for batch in batches)
    for batch in batches:
        attend(2, shared(q), array_of(kv.data), 1, batch, np.float32(0.4), shared(out))
    bound = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(out.float(), expected, rtol=bound, atol=bound)


def test_a_long_past_makes_tiles_of_fewer_queries():
    """What a tile holds of scores stays within bounds, however long the context."""
    own, positions = text(QUERIES, 2**17, 0)
    plan = PagedPlan(KVBlocks(1, (4, H, W), torch.float32), [own], positions, [0] * QUERIES, [QUERIES])
    tiles = [*tiles_of(plan, 0, None)]
    assert all(math.prod(tile.shape) <= MOST for tile in tiles)
    assert [place for tile in tiles for place in range(tile.start, tile.start + len(tile.lows))] == [*range(QUERIES)]
    assert len([*tiles_of(plan, 0, 4096)]) == 1


def test_what_pads_a_tile_is_0_whatever_memory_had():
    """Products on processors with AMX multiply what follows a row of odd width: it must be numbers."""
    kv, texts = KVBlocks(8, (4, H, W), torch.float32), [text(30, 0, 0), text(29, 0, 4)]
    kv.data.fill_(1.0)
    positions = [position for _, own in texts for position in own]
    plan = PagedPlan(kv, [one for one, _ in texts], positions, [0] * len(positions), [len(positions)])
    [tiles] = batched([tile for number in (0, 1) for tile in tiles_of(plan, number, None)])
    B, T, C = tiles.count, tiles.longest, tiles.slots
    q, keys, values = (np.full((B, H, *shape, W), np.nan, np.float32) for shape in ((Q // H, T), (C,), (C,)))
    line = shared(torch.ones(len(positions), Q, W))
    places = tiles.starts, tiles.counts, tiles.tables, tiles.ends
    kernels.gather(2, line.array, array_of(kv.data), 1, *places, np.float32(0.5), q, keys, values)
    for tile in range(B):
        tokens, slots = tiles.counts[tile], tiles.ends[tile, -1]
        assert (q[tile, :, :, :tokens] == 0.5).all()
        assert not q[tile, :, :, tokens:].any()
        for rows in (keys, values):
            assert (rows[tile, :, :slots] == 1).all()
            assert not rows[tile, :, slots:].any()
    assert (tiles.counts < T).any()
    assert (tiles.ends[:, -1] < C).any()
