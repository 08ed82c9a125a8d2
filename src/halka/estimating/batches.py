"""The largest batch that fits: the most rows whose tensors fit, then fewer until all that the allocator holds fits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from halka.core import Method
from halka.estimating.dry_runs import Memory, Setup, dry_run

MOST = 4096  # rows to try
BY_SLOPE = 6  # tries by interpolation; after them by bisection
FEW = 16  # below twice as many rows, every number of rows is tried on the way back


def largest_batch(
    config: Any,
    method: Method,
    setup: Setup,
    room: int,
    *,
    gpu: bool = True,
    memory: Memory | None = None,
    most: int = MOST,
    progress: Callable[[int], None] | None = None,
) -> int:
    """The most rows, up to `most` (or the setup's own rows), with which a step stays within `room` bytes.

    memory     of the setup's own rows, if it was computed before
    progress   called with the rows of each batch before it is tried
    """

    def needs(rows: int) -> Memory:
        if memory is not None and rows == setup.rows:
            return memory
        if progress is not None:
            progress(rows)
        return dry_run(config, method, replace(setup, rows=rows), gpu=gpu).memory

    return most_rows(needs, setup.rows, room, most)


def most_rows(needs: Callable[[int], Memory], first: int, room: int, most: int = MOST) -> int:
    """The most rows, up to `most` (or `first`), that need at most `room` bytes: `first` is tried first, and none twice.

    The bytes of tensors grow with the rows: the search begins with the most rows whose tensors fit. What the allocator
    holds beyond them goes up and down, so the search goes back from there until all fits; of few rows, it tries each.
    """
    most, memories = max(most, first), dict[int, Memory]()

    def tried(rows: int) -> Memory:
        if rows not in memories:
            memories[rows] = needs(rows)
        return memories[rows]

    own = tried(first)
    tensors = {0: own.weights + own.gradients + own.optimizer}
    if tensors[0] > room:
        return 0
    tensors |= {rows: memory.total - memory.allocator for rows, memory in memories.items()}
    while (rows := _next(tensors, room, most)) is not None:
        tensors[rows] = tried(rows).total - tried(rows).allocator
    most = max(rows for rows, need in tensors.items() if need <= room and rows <= most)
    return _go_back(lambda rows: tried(rows).total, memories, most, room, tensors[most] - tensors[0]) if most else 0


def _next(tensors: Mapping[int, int], room: int, most: int) -> int | None:
    """The rows to try next, None at the end of the search: where the line through the two known points that are nearest
    to `room` meets it, if that is a possible answer, else the line through the last that fits and the first that does
    not, else the middle between these.
    """
    low = max(rows for rows, need in tensors.items() if need <= room)
    high = min((rows for rows, need in tensors.items() if need > room), default=most + 1)
    if high - low <= 1:
        return None
    nearest = sorted(tensors, key=lambda rows: abs(tensors[rows] - room))[:2]
    for near, other in (nearest, (low, high)) if len(tensors) < BY_SLOPE + 2 else ():
        grown = tensors.get(other, tensors[near]) - tensors[near]
        guess = near + (room - tensors[near]) * (other - near) // grown if grown else most
        if low <= guess < high or high > most:
            return min(max(guess, low + 1), high - 1)
    return (low + high) // 2


def _go_back(needs: Callable[[int], int], memories: Mapping[int, Memory], most: int, room: int, grown: int) -> int:
    """The first number of rows from `most` down that fits; `grown` bytes are what `most` rows need.

    A step back is half of what the excess asks for, since the allocator, too, holds less for fewer rows; of few rows it
    is one, since what it holds goes up and down on the way.
    """
    rows, above = most, most + 1
    while rows and (over := needs(rows) - room) > 0:
        fits = max((fewer for fewer, memory in memories.items() if fewer < rows and memory.total <= room), default=0)
        by_half = over * most // (2 * max(1, grown)) if rows >= 2 * FEW else 1
        above, rows = rows, max(fits, rows - max(1, by_half))
    while above - rows > 1:
        between = (rows + above) // 2
        rows, above = (between, above) if needs(between) <= room else (rows, between)
    return rows
