"""Attention of several tokens of a text to its blocks: products of many queries with all keys that they see.

    T tokens of a tile   C filled slots of a text's blocks   Q query heads   H key/value heads   G = Q/H   W head width

`grouped_products` with `KVBlocks.read` and `PagedPlan.mask` is the slow twin.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from halka.engine.llama import kernels
from halka.engine.llama.shared import shared
from halka.models.attention.paged import ALWAYS, PagedPlan

TILE = 128  # queries of a product: few enough not to compute much that they cannot see, many enough for its speed


@dataclass(frozen=True)
class Tile:
    """Neighbouring tokens of a chunk, and what they see.

    places   where they are in the line
    columns  the slots of which some of them see one
    hidden   (T, columns from `partly` on) what each does not see; None if each sees all
    """

    places: slice
    columns: slice
    partly: int
    hidden: Tensor | None


@dataclass(frozen=True)
class Chunk:
    """The tokens of a text in a line, as a layer's attention sees them.

    blocks   (M,) that hold something they see
    ends     (M,) how many slots are filled up to the end of each
    """

    blocks: Any
    ends: Any
    tiles: Sequence[Tile]

    @property
    def slots(self) -> int:
        return int(self.ends[-1])


def chunk_of(plan: PagedPlan, number: int, window: int | None) -> Chunk:
    """The chunk of the text with this number."""
    text, start = plan.texts[number], plan.forest.starts[number]
    own = plan.positions[start : start + text.tokens].numpy()
    blocks, counts, begins = (np.array(each) for each in (text.blocks, text.counts, text.begins))
    if window is not None:
        near = (begins == ALWAYS) | (begins + counts > own[0] - window + 1)
        blocks, counts, begins = blocks[near], counts[near], begins[near]
    ends = np.cumsum(counts)
    within = np.arange(ends[-1]) - np.repeat(ends - counts, counts)
    always = np.repeat(begins == ALWAYS, counts)
    keys = np.repeat(begins, counts) + within
    tiles = list[Tile]()
    for first in range(0, text.tokens, TILE):
        queries = own[first : first + TILE, None]
        sees = keys <= queries
        if window is not None:
            sees &= queries - keys < window
        sees |= always
        low, high = _span(sees.any(0))
        partly, end = _span(~sees[:, low:high].all(0))
        hidden = None if partly == end else torch.from_numpy(~sees[:, low + partly : high])
        tiles.append(Tile(slice(start + first, start + first + len(queries)), slice(low, high), partly, hidden))
    return Chunk(blocks, ends, tiles)


def _span(which: Any) -> tuple[int, int]:
    """The first that is true, and the one after the last; (0, 0) if none is."""
    places = np.flatnonzero(which)
    return (int(places[0]), int(places[-1]) + 1) if len(places) else (0, 0)


class ChunkAttention:
    """Computes chunk after chunk in memory of its own."""

    def __init__(self, heads: int, dtype: torch.dtype):
        self._heads, self._lowest = heads, torch.finfo(dtype).min
        self._rooms = {name: torch.empty(0, dtype=dtype) for name in ("keys", "values", "q", "scores", "out")}

    def __call__(self, threads: int, q_NQW: Tensor, kv: Tensor, layer: int, chunk: Chunk, scale: float, out: Tensor):
        """softmax(q @ keysᵀ · scale) @ values, at the chunk's places of `out` (N, Q·W), with kv `KVBlocks.data`."""
        H, W, G = self._heads, q_NQW.shape[2], q_NQW.shape[1] // self._heads
        keys, values = (self._room(name, H, chunk.slots, W) for name in ("keys", "values"))
        collected = shared(keys).array, shared(values).array
        kernels.collect(threads, shared(kv).array, layer, chunk.blocks, chunk.ends, *collected)
        for tile in chunk.tiles:
            T, C = tile.places.stop - tile.places.start, tile.columns.stop - tile.columns.start
            own, scores = self._room("q", H, G, T, W), self._room("scores", H, G, T, C)
            attended = self._room("out", H, G, T, W)
            torch.mul(q_NQW[tile.places].unflatten(1, (H, G)).permute(1, 2, 0, 3), scale, out=own)
            flat = scores.flatten(1, 2)
            torch.bmm(own.flatten(1, 2), keys[:, tile.columns].mT, out=flat)
            if tile.hidden is not None:
                scores[..., tile.partly :].masked_fill_(tile.hidden, self._lowest)
            torch.softmax(flat, -1, out=flat)
            torch.bmm(flat, values[:, tile.columns], out=attended.flatten(1, 2))
            out[tile.places].unflatten(1, (H, G, W)).copy_(attended.permute(2, 0, 1, 3))

    def _room(self, name: str, *shape: int) -> Tensor:
        """Memory of this shape, the same from one call to the next."""
        count = math.prod(shape)
        if self._rooms[name].numel() < count:
            self._rooms[name] = self._rooms[name].new_empty(count)
        return self._rooms[name][:count].view(shape)
