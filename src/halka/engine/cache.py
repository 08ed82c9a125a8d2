"""`BlockCache`: which blocks of keys and values are free, whose they are, and which beginnings of texts they hold.

A full block is known by what came before it, by what acted on its tokens (an adapter's content id, or nothing), and by
the tokens: so it is found again by whoever begins alike, and by nobody else. What came before is a block, or a root
that keeps tenants apart; numbers are never used twice, so a key names one content for ever. Blocks that nobody uses
stay until their room is needed, the longest unused first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch

from halka.core import AdaptedModel
from halka.models import stack_of
from halka.models.attention.paged import SIZE, KVBlocks
from halka.util import machine
from halka.util.errors import HalkaError

POSITIONS = 4096  # of a text, to size the cache of a base without a limit
SHARE, OF_FREE = 0.25, 0.5  # of a device's memory, and of what is free there, that the cache takes at most by default

Key = tuple["int | str", Hashable, Hashable]
"""A block's parent (its serial number, or a tenant), what acted on its tokens, and the tokens."""


@dataclass(eq=False)
class Block:
    """A block in use, or kept for later.

    begin    the position of its first token, or `paged.ALWAYS`
    count    how many tokens are filled
    serial   the number of its content, as a parent; 0 while it has none
    users    how many texts have it
    """

    number: int
    begin: int
    count: int = 0
    key: Key | None = None
    serial: int = 0
    users: int = 1


class BlockCache:
    """Hands out the blocks of `kv`."""

    def __init__(self, kv: KVBlocks):
        self.kv = kv
        self.size = kv.data.shape[0]
        self._free, self._new = list[int](), list[int]()
        self._by_key: dict[Key, Block] = {}
        self._idle: OrderedDict[Key, Block] = OrderedDict()  # that nobody uses, the longest unused first
        self._serials = count(1)
        self.reset()

    @property
    def room(self) -> int:
        """How many blocks can be had."""
        return len(self._free) + len(self._idle)

    def new(self, begin: int) -> Block:
        """An empty block, of those that are free, else of the longest unused. There has to be room, and `clear_new`
        zeroes it.
        """
        if not self._free:
            key, block = self._idle.popitem(last=False)
            del self._by_key[key]
            self._free.append(block.number)
        number = self._free.pop()
        self._new.append(number)
        return Block(number, begin)

    def clear_new(self) -> None:
        """Zero the blocks that were handed out since the last call; to be called before any is written or read."""
        if self._new:
            self.kv.clear(self._new)
            self._new.clear()

    def find(self, key: Key) -> Block | None:
        """The block of this key, with one user more; None if there is none."""
        block = self._by_key.get(key)
        if block is not None:
            block.users += 1
            self._idle.pop(key, None)
        return block

    def name(self, block: Block, key: Key) -> None:
        """Let others find a full block by this key. Where there is one of that content already, it stays."""
        if (other := self._by_key.get(key)) is not None:
            block.serial = other.serial
            return
        block.key, block.serial = key, next(self._serials)
        self._by_key[key] = block

    def release(self, blocks: Sequence[Block]) -> None:
        """A text needs its blocks no more; ends go before what they continue."""
        for block in reversed(blocks):
            block.users -= 1
            if block.users == 0 and block.key is None:
                self._free.append(block.number)
            elif block.users == 0 and block.key is not None:
                self._idle[block.key] = block

    def reset(self) -> None:
        """Keep nothing: all blocks are free, whoever had them."""
        self._free = list(reversed(range(self.size)))
        self._new.clear()
        self._by_key.clear()
        self._idle.clear()


def most_memory(device: torch.device, beside: int = 1) -> int:
    """Bytes that a cache takes there at most, unless others are set; so many engines share the device.

    What is free has to do for activations, too: a base may leave less than a quarter of its card.
    """
    whole = machine.available(device)
    held = machine.held_alone() if device.type == "cpu" else machine.held(device)  # pages of files can make room
    return int(min(SHARE * whole, OF_FREE * (whole - held)) / beside)


def cache_for(model: AdaptedModel, rows: int, memory: int | None) -> BlockCache:
    """A cache of so many bytes, by default what the rows' texts can need, up to `most_memory`.

    It is never above twice that: a prefix that takes no positions may be as long as the text.

    Raises HalkaError for less than two blocks.
    """
    base: Any = model.base
    stack = stack_of(model)
    size = KVBlocks.bytes_of(stack.shape, base.dtype)
    limit = stack.limit or POSITIONS
    most = -(-max(limit, rows * min(limit, POSITIONS)) // SIZE) + 1  # virtual tokens end in a block of theirs
    if memory is None:
        memory = most_memory(base.device)
    else:
        most *= 2
    if memory < 2 * size:
        raise HalkaError(f"memory holds at least two blocks of keys and values, {2 * size:,} bytes, not {memory:,}")
    return BlockCache(KVBlocks(min(memory // size, most), stack.shape, base.dtype, base.device))
