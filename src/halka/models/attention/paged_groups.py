"""Which tokens of a line attend to blocks (`paged.py`) in one go, so that no product holds too much.

    N tokens of the line   G pieces of a group   T tokens of each   M blocks of the one with the most   C = M·SIZE
    Q query heads   H key/value heads   W head width

A piece is some tokens of a text, with the blocks that they see. Pieces of equal length are a group, filled up to the
one with the most blocks, as long as that costs little: a long text is not read once for each short one beside it. Of a
group that would still be too large, heads are computed one after another; a text with too many scores has several
pieces.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from halka.models.attention.paged import ALWAYS, SIZE, PagedPlan, table
from halka.util.transfer import to_device

NUMBERS = 2**26  # of keys, values and scores that a group computes with at once: 128 MB in bf16
WASTE = 1.5  # a group reads so many times what its pieces need, and a sixteenth of NUMBERS more, before it becomes two


@dataclass(frozen=True)
class Products:
    """The shapes that attention to blocks computes with.

    queries   Q
    fused     whether torch's fused attention computes pieces of several tokens: it stores no scores, but wants keys and
              values for each query head
    window    the layer's, None without one
    most      numbers that exist at once, unless one head of one token needs more
    """

    queries: int
    fused: bool = False
    window: int | None = None
    most: int = NUMBERS

    def longest(self, slots: int, heads: int) -> int:
        """Tokens of a piece that sees so many slots: of one head, half of `most` are scores, twice, or the mask."""
        return max(1, self.most // (2 * slots * (1 if self.fused else 2 * self.queries // heads)))

    def numbers(self, tokens: int, heads: int, width: int) -> int:
        """Of a piece of so many tokens, for each slot and head of keys: keys, values, and scores before and after."""
        shared = self.queries // heads
        return 2 * width * shared if self.fused and tokens > 1 else 2 * width + 2 * shared * tokens


class PagedGroup:
    """Pieces of texts that attend in one go.

    places   (G, T) of their tokens in the line
    fused    whether torch's fused attention computes them
    strips   (G, heads, M), what `KVBlocks.read` reads, of each part: heads that are computed one after another; where
             fused, once for each query head
    heads    how many query heads the largest part has
    """

    def __init__(self, places: Tensor, tables: Sequence[Tensor], plan: PagedPlan, products: Products, share: _Share):
        """tables: blocks, counts and begins (G, M), as `PagedPlan` has them."""
        self.places, (blocks, self._counts, self._begins) = places, tables
        self._own, self._window, self._keeps = plan.positions[places][:, :, None], products.window, share.keeps
        self._mask: Tensor | None = None
        self.fused = products.fused and places.shape[1] > 1
        count = plan.kv.data.shape[3]
        shared = products.queries // count
        self.heads = share.heads * shared
        numbers, heads = torch.arange(count, device=plan.device), share.heads
        if self.fused:
            numbers, heads = numbers.repeat_interleave(shared), self.heads
        self.strips = [plan.kv.strips(blocks, part) for part in numbers.split(heads)]

    @property
    def mask(self) -> Tensor:
        """(G, 1, T, C), true where a token sees a slot of its text's blocks."""
        if self._mask is not None:
            return self._mask
        within = torch.arange(SIZE, device=self.places.device)
        begins = self._begins[:, :, None]
        key = (begins + within).flatten(1)[:, None]  # G 1 C
        sees = key <= self._own
        if self._window is not None:
            sees = sees & (self._own - key < self._window)
        always = (begins == ALWAYS).expand(-1, -1, SIZE).flatten(1)[:, None]
        filled = (within < self._counts[:, :, None]).flatten(1)[:, None]
        mask = ((sees | always) & filled)[:, None]
        if self._keeps:
            self._mask = mask
        return mask


class _Share(NamedTuple):
    """How many heads of keys a group computes at once, and whether its mask is kept for all layers."""

    heads: int
    keeps: bool


class _Piece(NamedTuple):
    """Some tokens of a text: the first one's place in the line, how many, and the blocks that they see."""

    start: int
    tokens: int
    blocks: Sequence[int]
    counts: Sequence[int]
    begins: Sequence[int]


def groups_of(plan: PagedPlan, products: Products) -> list[PagedGroup]:
    """The groups of a line, with what they need on the device by one copy."""
    _, _, _, heads, _, width = plan.kv.data.shape
    of_length = defaultdict[int, list[_Piece]](list)
    for piece in _pieces(plan, products):
        of_length[piece.tokens].append(piece)
    tensors, shares, masks = list[Tensor](), list[_Share](), 0
    for tokens, pieces in of_length.items():
        size = SIZE * products.numbers(tokens, heads, width)  # of a block and a head
        for batch in _batches(pieces, size * heads, products.most):
            starts = torch.tensor([piece.start for piece in batch], device="cpu")
            blocks = table([piece.blocks for piece in batch], [piece.blocks[-1] for piece in batch])
            tensors += [starts[:, None] + torch.arange(tokens, device="cpu"), blocks]
            tensors += [table([piece.counts for piece in batch]), table([piece.begins for piece in batch])]
            keeps = masks + blocks.numel() * SIZE * tokens <= products.most
            masks += keeps * blocks.numel() * SIZE * tokens
            shares.append(_Share(max(1, min(heads, products.most // (blocks.numel() * size))), keeps))
    tensors = to_device(tensors, plan.device)
    own = zip(range(0, len(tensors), 4), shares, strict=True)
    return [PagedGroup(tensors[at], tensors[at + 1 : at + 4], plan, products, share) for at, share in own]


def _pieces(plan: PagedPlan, products: Products) -> Iterator[_Piece]:
    heads = plan.kv.data.shape[3]
    for text, start in zip(plan.texts, plan.forest.starts, strict=True):
        step = products.longest(len(text.blocks) * SIZE, heads)
        virtual = bisect_right(text.begins, ALWAYS)
        for first in range(start, start + text.tokens, step):
            tokens = min(step, start + text.tokens - first)
            low, high = plan.at[first], plan.at[first + tokens - 1]
            end, begin = bisect_right(text.begins, high), virtual
            if products.window is not None:  # blocks whose last slot is out of the first token's sight are left out
                begin = bisect_right(text.begins, low - products.window + 1 - SIZE, virtual)
            blocks, counts, begins = ((*of[:virtual], *of[begin:end]) for of in (text.blocks, text.counts, text.begins))
            yield _Piece(first, tokens, blocks, counts, begins)


def _batches(pieces: Sequence[_Piece], size: int, most: int) -> Iterator[list[_Piece]]:
    """Pieces that are read together, of blocks with so many numbers; the last one of a batch has the most blocks."""
    batch, needed = list[_Piece](), 0
    for piece in sorted(pieces, key=lambda piece: len(piece.blocks)):
        own = len(piece.blocks) * size
        padded = (len(batch) + 1) * own
        if batch and padded > min(most, WASTE * (needed + own) + most // 16):
            yield batch
            batch, needed = [], 0
        batch.append(piece)
        needed += own
    yield batch
