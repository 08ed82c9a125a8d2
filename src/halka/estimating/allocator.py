"""A model of glibc's malloc: how many bytes a CPU process holds, which is more than its tensors need.

malloc maps large pieces as pages of their own and returns them to the system when they are freed. Smaller pieces share
a heap, which shrinks at its end only: a hole below stays with the process. The size from which a piece is large grows
with the pieces that were freed, up to 32 MB (mallopt(3)), until training sets it (`machine.returning_memory`).

Torch asks for aligned pieces. So a hole has no room for a piece of its own size, and the bytes that are left over in
front of each piece are used by small objects for a while: until these are freed, the holes beside them do not merge.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from contextlib import contextmanager

from halka.util.machine import LARGE, RETURNED, TRIMMED

PAGE, ALIGNED, HEADER, SPARE = 4096, 64, 16, 96
FIRST_THRESHOLD = 128 * 1024
TOP_PAD = 128 * 1024
LIFE = 8  # pieces taken or freed, on average, while a small object lives; fitted to measured peaks
STEP = 7919  # a prime, so that all lengths of life come in turn


class AllocatorModel:
    """Hands out places: negative for pages of their own, else offsets on the heap. `held` is what the process holds."""

    def __init__(self, life: int = LIFE) -> None:
        self.held, self._life = 0, life
        self._threshold, self._trim, self._follows = FIRST_THRESHOLD, FIRST_THRESHOLD, True
        self._top = 0  # where the last piece ends
        self._end = 0  # where the heap does
        self._pieces: dict[int, int] = {}  # place -> size
        self._holes: list[tuple[int, int]] = []  # size and start, sorted
        self._starts: dict[int, int] = {}  # of holes: start -> size
        self._ends: dict[int, int] = {}  # of holes: end -> start
        self._pages = 0  # how many pieces were pages of their own
        self._time = self._objects = 0  # pieces taken or freed; small objects
        self._dying: dict[int, list[int]] = {}  # when -> places of small objects

    @contextmanager
    def returning(self) -> Iterator[None]:
        """Within the block the thresholds are those that `machine.returning_memory` sets."""
        self._threshold, self._trim, self._follows = RETURNED, TRIMMED, False
        try:
            yield
        finally:
            self._threshold, self._trim = LARGE, 2 * LARGE

    def take(self, size: int) -> int:
        """The place of a piece of `size` bytes: in the smallest hole that has room for it, else at the heap's end."""
        self._tick()
        size = -(-(size + HEADER) // ALIGNED) * ALIGNED
        if size + SPARE >= self._threshold:
            size = -(-(size + SPARE) // PAGE) * PAGE
            self._pages += 1
            self._pieces[-self._pages] = size
            self.held += size
            return -self._pages
        index = bisect_left(self._holes, (size + SPARE, -1))
        if index < len(self._holes):
            room, place = self._holes[index]
            self._forget(place, room)
            if room > size + ALIGNED:
                self._hole(place + ALIGNED + size, room - ALIGNED - size)
        else:
            place = self._top
            self._top += ALIGNED + size
            if self._top + SPARE > self._end:
                self.held += self._top + SPARE + TOP_PAD - self._end
                self._end = self._top + SPARE + TOP_PAD
        self._object(place)
        self._pieces[place + ALIGNED] = size
        return place + ALIGNED

    def free(self, place: int) -> None:
        self._tick()
        self._free(place)

    def _free(self, place: int) -> None:
        size = self._pieces.pop(place)
        if place < 0:
            self.held -= size
            if self._follows and self._threshold < size <= LARGE:
                self._threshold, self._trim = size, 2 * size
            return
        if (before := self._ends.get(place)) is not None:
            size += self._starts[before]
            self._forget(before, self._starts[before])
            place = before
        if (after := self._starts.get(place + size)) is not None:
            self._forget(place + size, after)
            size += after
        if place + size < self._top:
            self._hole(place, size)
            return
        self._top = place
        if self._end - self._top > self._trim + TOP_PAD:
            self.held -= self._end - self._top - TOP_PAD
            self._end = self._top + TOP_PAD

    def _object(self, place: int) -> None:
        """Place a small object in front of a piece."""
        self._pieces[place] = ALIGNED
        self._objects += 1
        self._dying.setdefault(self._time + 1 + self._objects * STEP % (2 * self._life), []).append(place)

    def _tick(self) -> None:
        self._time += 1
        for place in self._dying.pop(self._time, ()):
            self._free(place)

    def _hole(self, start: int, size: int) -> None:
        insort(self._holes, (size, start))
        self._starts[start], self._ends[start + size] = size, start

    def _forget(self, start: int, size: int) -> None:
        del self._holes[bisect_left(self._holes, (size, start))]
        del self._starts[start], self._ends[start + size]
