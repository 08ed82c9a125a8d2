"""A model of torch's allocator on GPUs: how many bytes it cannot give back, which is more than its tensors need.

It asks the driver for segments and hands out blocks of them. A freed block merges with free neighbours in its segment,
and serves the next piece that it has room for; a piece's surplus is split off where it is large enough to be of use.
Segments that are free as a whole are returned before memory runs out, others are not: they are what is counted. Sizes
are those of torch (c10/core/AllocatorConfig.h, c10/cuda/CUDACachingAllocator.cpp).
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass

UNIT = 512  # bytes, of which pieces are multiples
SMALL, SMALL_SEGMENT = 2**20, 2 * 2**20  # pieces up to SMALL share segments of their own
MEDIUM, MEDIUM_SEGMENT = 10 * 2**20, 20 * 2**20  # pieces below MEDIUM share segments of this size
ROUND = 2 * 2**20  # larger pieces have segments that are multiples of it


@dataclass(eq=False)
class Segment:
    """Bytes that the driver gave, how many of them are in use, and whether small pieces share it."""

    size: int
    small: bool
    used: int = 0


class CUDAAllocatorModel:
    """Hands out places. `held` is the bytes of all segments of which something is in use."""

    def __init__(self) -> None:
        self.held = 0
        self._next = 0  # where the next segment begins; segments do not touch
        self._used: dict[int, tuple[int, Segment]] = {}  # blocks by their places
        self._free: dict[int, tuple[int, Segment]] = {}
        self._ends: dict[int, int] = {}  # of free blocks: end -> place
        self._by_size: dict[bool, list[tuple[int, int]]] = {
            True: [],
            False: [],
        }  # size and place of free blocks, sorted

    def take(self, size: int) -> int:
        """The place of a piece of `size` bytes: in the smallest free block that has room, else in a new segment."""
        size = -(-size // UNIT) * UNIT
        small = size <= SMALL
        blocks = self._by_size[small]
        index = bisect_left(blocks, (size, -1))
        if index < len(blocks):
            place = blocks[index][1]
            room, segment = self._forget(place)
        else:
            room = SMALL_SEGMENT if small else MEDIUM_SEGMENT if size < MEDIUM else -(-size // ROUND) * ROUND
            place, segment = self._next, Segment(room, small)
            self._next += room + UNIT
        left = room - size
        if left >= UNIT if small else left > SMALL:
            self._keep(place + size, left, segment)
        else:
            size = room
        self._count(segment, size)
        self._used[place] = size, segment
        return place

    def free(self, place: int) -> None:
        size, segment = self._used.pop(place)
        self._count(segment, -size)
        if (before := self._ends.get(place)) is not None:
            size += self._forget(before)[0]
            place = before
        if place + size in self._free:
            size += self._forget(place + size)[0]
        self._keep(place, size, segment)

    def _count(self, segment: Segment, size: int) -> None:
        before, segment.used = segment.used, segment.used + size
        self.held += segment.size * (bool(segment.used) - bool(before))

    def _keep(self, place: int, size: int, segment: Segment) -> None:
        insort(self._by_size[segment.small], (size, place))
        self._free[place], self._ends[place + size] = (size, segment), place

    def _forget(self, place: int) -> tuple[int, Segment]:
        size, segment = self._free.pop(place)
        del self._ends[place + size]
        blocks = self._by_size[segment.small]
        del blocks[bisect_left(blocks, (size, place))]
        return size, segment
