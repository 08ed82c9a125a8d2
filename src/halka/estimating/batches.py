"""The largest batch that fits: the most rows whose tensors do, and back from there until all that is held does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from halka.core import Method
from halka.estimating.dry_runs import Memory, Setup, rehearse

MOST = 4096  # rows that are tried
BY_SLOPE = 6  # tries; after them halves
FEW = 16  # of fewer than twice as many rows each is tried on the way back


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
    """Rows of that length with which a step stays within `room` bytes, where one more does not; up to `most`, or to the
    setup's own where those are more.

    What tensors need grows with the rows: the most whose tensors fit are looked for first, and on a GPU that is all.
    What a CPU's heap holds beyond it goes up and down. So one goes back until all fits: of few rows, each is tried.

    memory     that of the setup's own rows, if it is known
    progress   is told the rows of each batch before it is tried
    """
    most = max(most, setup.rows)
    known = {} if memory is None else {setup.rows: memory}

    def needs(rows: int) -> Memory:
        if rows not in known:
            if progress is not None:
                progress(rows)
            known[rows] = rehearse(config, method, replace(setup, rows=rows), gpu=gpu).memory
        return known[rows]

    own = needs(setup.rows)
    tensors = {0: own.weights + own.gradients + own.optimizer}
    if tensors[0] > room:
        return 0
    tensors |= {rows: each.total - each.allocator for rows, each in known.items()}
    while (rows := _next(tensors, room, most)) is not None:
        tensors[rows] = needs(rows).total - needs(rows).allocator
    most = max(rows for rows, need in tensors.items() if need <= room and rows <= most)
    return _back(lambda rows: needs(rows).total, known, most, room, tensors[most] - tensors[0]) if most else 0


def _next(tensors: Mapping[int, int], room: int, most: int) -> int | None:
    """The rows to try next: where the line through the two nearest to the room meets it, if that is where it can be,
    else where that through the most that fit and the least that do not does; None where all is known.
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


def _back(needs: Callable[[int], int], known: Mapping[int, Memory], most: int, room: int, grown: int) -> int:
    """The first rows from `most` down that fit. One goes by half of what is over: `grown` is what `most` need.

    By no more than a part of the rows either, so that what is held may go down and up on the way.
    """
    rows, above = most, most + 1
    while rows and (over := needs(rows) - room) > 0:
        fits = max((each for each, found in known.items() if each < rows and found.total <= room), default=0)
        by_half = over * most // (2 * max(1, grown))
        above, rows = rows, max(fits, rows - max(1, min(by_half, rows // FEW)))
    while above - rows > 1:
        between = (rows + above) // 2
        rows, above = (between, above) if needs(between) <= room else (rows, between)
    return rows
