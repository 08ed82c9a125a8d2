"""Attention of several tokens of a text to its blocks: products of many queries with all keys that they see.

    B tiles   T queries of the longest   M blocks, C filled slots that the largest sees
    Q query heads   H key/value heads   G = Q/H   W head width

`grouped_products` of `paged_groups.py` is the slow twin.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from halka.engine.llama import kernels
from halka.kernels.shared import Shared, shared
from halka.models.attention.paged import ALWAYS, PagedPlan

QUERIES = 128  # of a tile at most: few see little that they need not, many are quick to multiply
WASTE = 1.3  # how much larger tiles may become that are computed with larger ones
MOST = 2**22  # scores of a head that a tile has: of more than 32,768 slots fewer queries see them at once
SCORES = 2**18  # of a head, that are computed at once unless a tile has more: what caches hold


@dataclass(frozen=True)
class Tile:
    """Neighbouring tokens of a text: the first one's place in the line, and the slots that each of them sees.

    blocks, ends   that hold what some of them see, and how many slots are filled up to the end of each
    always         so many slots at the beginning all of them see
    lows, highs    and each the slots from one to the other
    """

    start: int
    blocks: Any
    ends: Any
    always: int
    lows: Any
    highs: Any

    @property
    def shape(self) -> tuple[int, int]:
        """Slots, tokens."""
        return int(self.ends[-1]), len(self.lows)


def tiles_of(plan: PagedPlan, number: int, window: int | None) -> Iterator[Tile]:
    """The tiles of a text, whose blocks are in order, those of virtual tokens first."""
    text, start = plan.texts[number], plan.forest.starts[number]
    blocks, counts, begins = map(np.array, (text.blocks, text.counts, text.begins))
    slots = counts.sum() if window is None else min(counts.sum(), window + QUERIES)
    queries = max(1, min(QUERIES, MOST // int(slots)))
    for first in range(start, start + text.tokens, queries):
        own = plan.positions[first : min(first + queries, start + text.tokens)].numpy()
        seen = begins <= own[-1]
        if window is not None:
            seen &= (begins == ALWAYS) | (begins + counts > own[0] - window + 1)
        filled, virtual = counts[seen], begins[seen] == ALWAYS
        always, ends = int(filled[virtual].sum()), np.cumsum(filled)
        keys = (np.repeat(begins[seen] - ends + filled, filled) + np.arange(ends[-1]))[always:]
        lows = np.zeros_like(own) if window is None else np.searchsorted(keys, own - window, "right")
        yield Tile(first, blocks[seen], ends, always, always + lows, always + np.searchsorted(keys, own, "right"))


class Tiles:
    """Tiles of like shapes, padded to the largest."""

    def __init__(self, tiles: Sequence[Tile]):
        self.count, self.slots = len(tiles), max(tile.shape[0] for tile in tiles)
        self.longest = max(tile.shape[1] for tile in tiles)
        self.starts, self.counts = np.array([[tile.start, tile.shape[1]] for tile in tiles]).T.copy()
        most = max(len(tile.blocks) for tile in tiles)
        self.tables, self.ends = (_padded([getattr(tile, name) for tile in tiles], most) for name in ("blocks", "ends"))
        self.always = np.array([tile.always for tile in tiles])
        self.lows, self.highs = (
            _padded([getattr(tile, name) for tile in tiles], self.longest) for name in ("lows", "highs")
        )


def _padded(rows: Sequence[Any], width: int) -> Any:
    """(rows, width), each row filled up with its last number."""
    return np.stack([np.pad(row, (0, width - len(row)), "edge") for row in rows])


def batched(tiles: Sequence[Tile]) -> list[Tiles]:
    """Tiles of like shapes together, as long as padding them costs little."""
    batches = list[list[Tile]]()
    for tile in sorted(tiles, key=lambda tile: tile.shape):
        batch = [*batches[-1], tile] if batches else [tile]
        slots, tokens = (max(tile.shape[axis] for tile in batch) for axis in (0, 1))
        padded = len(batch) * slots * tokens
        if batches and padded <= min(SCORES, WASTE * sum(math.prod(tile.shape) for tile in batch)):
            batches[-1] = batch
        else:
            batches.append([tile])
    return [Tiles(batch) for batch in batches]


class TileAttention:
    """Computes tiles in memory of its own."""

    def __init__(self, heads: int, dtype: torch.dtype):
        self._heads = heads
        self._rooms = {name: torch.empty(0, dtype=dtype) for name in ("q", "keys", "values", "scores", "attended")}

    def __call__(
        self, threads: int, q_NQW: Shared, kv: Any, layer: int, tiles: Tiles, scale: np.float32, out: Shared
    ) -> None:
        """softmax(q @ keysᵀ · scale) @ values, at the tiles' places of `out` (N, Q·W), with kv of `KVBlocks.data`."""
        B, H, T, C = tiles.count, self._heads, tiles.longest, tiles.slots
        _, Q, W = q_NQW.tensor.shape
        q, scores, attended = (
            self._room(name, B * H, Q // H * T, width) for name, width in (("q", W), ("scores", C), ("attended", W))
        )
        keys, values = self._room("keys", B * H, C, W), self._room("values", B * H, C, W)
        kernels.gather(
            *(threads, q_NQW.array, kv, layer, tiles.starts, tiles.counts, tiles.tables, tiles.ends, scale),
            *(q.array.reshape(B, H, -1, T, W), *(it.array.reshape(B, H, C, W) for it in (keys, values))),
        )
        torch.bmm(q.tensor, keys.tensor.mT, out=scores.tensor)
        own = scores.array.reshape(B, Q, T, C)
        kernels.hide(threads, own, tiles.counts, tiles.always, tiles.lows, tiles.highs)
        torch.softmax(scores.tensor, -1, out=scores.tensor)
        torch.bmm(scores.tensor, values.tensor, out=attended.tensor)
        kernels.scatter(threads, attended.array.reshape(B, Q, T, W), tiles.starts, tiles.counts, out.array)

    def _room(self, name: str, *shape: int) -> Shared:
        """Memory of this shape, the same from one call to the next."""
        count = math.prod(shape)
        if self._rooms[name].numel() < count:
            self._rooms[name] = self._rooms[name].new_empty(count)
        return shared(self._rooms[name][:count].view(shape))
