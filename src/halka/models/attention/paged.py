"""Attention to keys and values that are kept in blocks: one line of tokens of many texts, each behind its own past.

    N tokens of the line   R texts in it   M blocks of the longest text   C = M·SIZE   L layers
    Q query heads   H key/value heads   W head width

A text's past is a list of blocks, which others may share: of its adapter's virtual tokens, and of its own tokens. What
the line's tokens add is written first, layer by layer, so a text may attend to a block that another of the same line
fills.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

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
        """Zero these: what is no number there would reach whoever has zeros to multiply it by."""
        for block in blocks:
            self.data[block].zero_()

    def write(self, layer: int, blocks: Tensor, places: Tensor, key: Tensor, value: Tensor) -> None:
        """Keep key and value (N, H, W) at these places (N,) of blocks (N,)."""
        self.data[blocks, layer, 0, :, places] = key
        self.data[blocks, layer, 1, :, places] = value

    def read(self, layer: int, tables: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (R, H, C, W) of these blocks (R, M)."""
        pairs = self.data[:, layer][tables]  # R M 2 H SIZE W
        keys, values = pairs.permute(2, 0, 3, 1, 4, 5).flatten(3, 4).unbind(0)
        return keys, values


@dataclass(frozen=True)
class PagedText:
    """One text of a line: how many tokens it has there, and its blocks, those that it fills included.

    blocks   numbers of blocks
    counts   how many tokens of each are filled, when the line has been computed
    begins   the position of each block's first token, or ALWAYS
    """

    tokens: int
    blocks: Sequence[int]
    counts: Sequence[int]
    begins: Sequence[int]


class PagedPlan:
    """What attention needs to know of a line, computed once and read by every layer.

    kv          where keys and values are
    texts       in the order of the line
    positions   (N,) of each token
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
        self.kv, self.texts, self.device = kv, tuple(texts), kv.data.device
        of_tokens = [torch.tensor(it, dtype=torch.int64, device="cpu") for it in (positions, slots)]
        self.positions, self.slots = to_device(of_tokens, self.device)
        self.forest = Forest(tuple(text.tokens for text in texts), (-1,) * len(texts), tuple(runs))
        self._masks: dict[tuple[int, int | None], Tensor] = {}

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
    def runs(self) -> tuple[int, ...]:
        return self.forest.runs

    @property
    def inputs(self) -> dict[str, Any]:
        """Keywords for the decoder's call, as `ForestPlan.inputs`."""
        return {"forest": self, "attention_mask": torch.ones(1, 1, 1, 1, dtype=torch.bool, device=self.device)}

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
    def groups(self) -> list[tuple[int, Tensor, Tensor]]:
        """Texts of equal length in the line: that length, their numbers (G,), and their tokens' places (G, T)."""
        pairs = zip(self._of_texts[3::2], self._of_texts[4::2], strict=True)
        return [(length, *pair) for length, pair in zip(self._lengths, pairs, strict=True)]

    @cached_property
    def _lengths(self) -> dict[int, list[int]]:
        """The numbers of the texts of each length in the line."""
        of_length: dict[int, list[int]] = defaultdict(list)
        for number, text in enumerate(self.texts):
            of_length[text.tokens].append(number)
        return of_length

    @cached_property
    def _of_texts(self) -> list[Tensor]:
        """Tables, counts, begins, then each group's texts and places: in one copy to the device."""
        last = [text.blocks[-1] for text in self.texts]
        tables = [_table([text.blocks for text in self.texts], last)]
        tables += [_table([text.counts for text in self.texts]), _table([text.begins for text in self.texts])]
        starts = torch.tensor(self.forest.starts, device="cpu")
        for length, numbers in self._lengths.items():
            texts = torch.tensor(numbers, device="cpu")
            tables += [texts, starts[texts][:, None] + torch.arange(length, device="cpu")]
        return to_device(tables, self.device)

    def mask(self, group: int, window: int | None) -> Tensor:
        """(G, 1, T, C), true where the group's tokens see a slot of their text's blocks."""
        if (group, window) not in self._masks:
            _, texts, places = self.groups[group]
            begins = self.begins[texts][:, :, None]
            within = torch.arange(SIZE, device=self.device)
            key = (begins + within).flatten(1)[:, None]  # G 1 C
            own = self.positions[places][:, :, None]  # G T 1
            sees = key <= own
            if window is not None:
                sees = sees & (own - key < window)
            always = (begins == ALWAYS).expand(-1, -1, SIZE).flatten(1)[:, None]
            filled = (within < self.counts[texts][:, :, None]).flatten(1)[:, None]
            self._masks[group, window] = ((sees | always) & filled)[:, None]
        return self._masks[group, window]


def _table(rows: Sequence[Sequence[int]], fill: Sequence[int] | None = None) -> Tensor:
    longest = max(len(row) for row in rows)
    fill = [0] * len(rows) if fill is None else fill
    filled = [[*row, *[rest] * (longest - len(row))] for row, rest in zip(rows, fill, strict=True)]
    return torch.tensor(filled, dtype=torch.int64, device="cpu")
