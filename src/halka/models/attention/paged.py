"""Attention to keys and values that are kept in blocks: one line of tokens of many texts, each behind its own past.

    N tokens of the line   R texts   M blocks of the one with the most   C = M·SIZE   L layers
    Q query heads   H key/value heads   W head width

A text's past is a list of blocks, which others may share: of its adapter's virtual tokens, and of its own tokens. What
the line's tokens add is written first, layer by layer, so a text may attend to a block that another of the same line
fills. `paged_groups.py` says which tokens attend in one go.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from halka.models.attention.forest import SegmentPlan
from halka.util import huge_pages
from halka.util.forest import Forest
from halka.util.transfer import to_device

SIZE = 16  # tokens of a block
ALWAYS = -1  # where a block begins whose tokens are virtual: all of a text see them, whatever the window


class KVBlocks:
    """The keys and values of `count` blocks: `data` (count, L, 2, H, SIZE, W), each to be cleared before its use."""

    def __init__(self, count: int, shape: tuple[int, int, int], dtype: torch.dtype, device: torch.device | str = "cpu"):
        """shape: of a token in all layers, (2·L, H, W)."""
        pairs, heads, width = shape
        self.data = huge_pages.empty(count, pairs // 2, 2, heads, SIZE, width, dtype=dtype, device=device)

    @staticmethod
    def bytes_of(shape: tuple[int, int, int], dtype: torch.dtype) -> int:
        """What one block takes."""
        return SIZE * dtype.itemsize * shape[0] * shape[1] * shape[2]

    def clear(self, blocks: Sequence[int]) -> None:
        """Zero these: what is no number there would reach whoever has zeros to multiply it by.

        By one operation on a GPU; on a CPU block by block, which writes whole pages.
        """
        if self.data.device.type != "cpu":
            [numbers] = to_device([torch.tensor(blocks, dtype=torch.int64, device="cpu")], self.data.device)
            self.data.index_fill_(0, numbers, 0)
            return
        for block in blocks:
            self.data[block].zero_()

    def write(self, layer: int, blocks: Tensor, places: Tensor, key: Tensor, value: Tensor) -> None:
        """Keep key and value (N, H, W) at these places (N,) of blocks (N,)."""
        self.data[blocks, layer, 0, :, places] = key
        self.data[blocks, layer, 1, :, places] = value

    def strips(self, tables: Tensor, heads: Tensor) -> Tensor:
        """(R, H, M) what `read` reads of these blocks (R, M), for these heads (H,): numbers of strips.

        A strip is a block's keys, or values, of one head: SIZE·W numbers side by side.
        """
        _, layers, _, count, _, _ = self.data.shape
        return tables[:, None] * (2 * layers * count) + heads[None, :, None]

    def read(self, layer: int, strips: Tensor) -> tuple[Tensor, Tensor]:
        """A layer's keys and values (R, H, C, W) of these strips (R, H, M), by one copy of each."""
        rows, heads, blocks = strips.shape
        width, count = self.data.shape[-1], self.data.shape[3]
        flat, wanted = self.data.view(-1, SIZE * width), strips.flatten()
        keys, values = (flat[count * pair :].index_select(0, wanted) for pair in (2 * layer, 2 * layer + 1))
        return keys.view(rows, heads, blocks * SIZE, width), values.view(rows, heads, blocks * SIZE, width)


@dataclass(frozen=True)
class PagedText:
    """One text of a line: how many tokens it has there, and its blocks, those that it fills included.

    blocks   numbers of blocks, in order, those of virtual tokens first
    counts   how many tokens of each are filled, when the line has been computed
    begins   the position of each block's first token, or ALWAYS
    """

    tokens: int
    blocks: Sequence[int]
    counts: Sequence[int]
    begins: Sequence[int]


class PagedPlan(SegmentPlan):
    """What attention needs to know of a line, computed once and read by every layer.

    kv          where keys and values are
    texts       in the order of the line
    at          the position of each token, for the host
    positions   (N,) the same on the device
    slots       (N,) where each token's keys and values are kept: block · SIZE + place in it
    forest      the line as `util.forest.Forest` has it: a segment for each text, and its runs
    """

    def __init__(
        self,
        kv: KVBlocks,
        texts: Sequence[PagedText],
        positions: Sequence[int],
        slots: Sequence[int],
        runs: Sequence[int],
    ):
        """runs: tokens of each stretch with one adapter, in the order of the line."""
        super().__init__(Forest(tuple(text.tokens for text in texts), (-1,) * len(texts), tuple(runs)), kv.data.device)
        self.kv, self.texts, self.at = kv, tuple(texts), tuple(positions)
        of_tokens = [torch.tensor(it, dtype=torch.int64, device="cpu") for it in (positions, slots)]
        self.positions, self.slots = to_device(of_tokens, self.device)

    def with_runs(self, runs: Sequence[int]) -> PagedPlan:
        """The plan with other runs."""
        plan = copy(self)
        plan.forest = replace(self.forest, runs=tuple(runs))
        return plan

    @cached_property
    def blocks_and_places(self) -> tuple[Tensor, Tensor]:
        """(N,) the block of each token's slot, and the place in it."""
        return self.slots // SIZE, self.slots % SIZE

    @property
    def tables(self) -> Tensor:
        """(R, M) each text's blocks, filled up with its last one, of which it then sees nothing."""
        return self._of_texts[0]

    @property
    def counts(self) -> Tensor:
        """(R, M) how many tokens of each block are filled."""
        return self._of_texts[1]

    @property
    def begins(self) -> Tensor:
        """(R, M) the position of each block's first token, or ALWAYS."""
        return self._of_texts[2]

    @cached_property
    def _of_texts(self) -> list[Tensor]:
        """Tables, counts, begins: in one copy to the device."""
        tables = [table([text.blocks for text in self.texts], [text.blocks[-1] for text in self.texts])]
        tables += [table([text.counts for text in self.texts]), table([text.begins for text in self.texts])]
        return to_device(tables, self.device)


def table(rows: Sequence[Sequence[int]], fill: Sequence[int] | None = None) -> Tensor:
    """Rows of numbers as a tensor on the CPU, filled up to the longest with zeros, or with a number of each."""
    longest = max(len(row) for row in rows)
    fill = [0] * len(rows) if fill is None else fill
    filled = [[*row, *[rest] * (longest - len(row))] for row, rest in zip(rows, fill, strict=True)]
    return torch.tensor(filled, dtype=torch.int64, device="cpu")
