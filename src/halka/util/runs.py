"""How stacks share out the runs of a line: each edits its short ones in one go, and every long one by its own part."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from halka.util.products import ShortRuns, short_runs
from halka.util.transfer import numbers

SHORT = 16  # tokens of a run up to which it shares a product with others: a longer one is work enough for its own


class StackRows(NamedTuple):
    """The rows of a stack, and whether they have several parts."""

    rows: tuple[int, ...]
    several_parts: bool


class Together(NamedTuple):
    """The short runs of a stack.

    tokens  where they are in the line
    runs    of all the stack's rows, empty for those whose runs are long
    """

    tokens: slice | Tensor
    runs: ShortRuns


class Shares(NamedTuple):
    """Who edits which tokens of a line.

    together  of each stack; None of one that has no two short runs
    alone     the rows whose parts edit by themselves, and where their runs are
    pieces    what the line becomes: pieces of its own (0), and of what was edited, in the order of these two (1, 2, …)
    """

    together: tuple[Together | None, ...]
    alone: tuple[tuple[int, slice], ...]
    pieces: tuple[tuple[int, slice], ...]

    def joined(self, line: Tensor, edited: Sequence[Tensor]) -> Tensor:
        """The line (N, …) with what was edited in its place."""
        sources = (line, *edited)
        own = [sources[which][piece] for which, piece in self.pieces]
        return own[0] if len(own) == 1 else torch.cat(own)


class Span(NamedTuple):
    """Neighbouring tokens of the line that are edited.

    start, stop  where they are in the line
    source       what has them once they are edited, as in `Shares.pieces`; `at`: where they start there
    """

    start: int
    stop: int
    source: int
    at: int


@lru_cache(maxsize=32)
def shares_of(runs: tuple[int, ...], stacks: tuple[StackRows, ...], device: torch.device) -> Shares:
    """How stacks of these rows share out runs of so many tokens, on a device: one answer for all modules of a pass."""
    ends = [*accumulate(runs)]
    together, alone = list[Together | None](), list[tuple[int, slice]]()
    spans = [Span(0, 0, 0, 0)]
    for rows, several_parts in stacks:
        short = [row for row in rows if 0 < runs[row] <= SHORT]
        if not several_parts or len(short) < 2:
            short = []
        alone += [(row, slice(ends[row] - runs[row], ends[row])) for row in rows if runs[row] and row not in short]
        if not short:
            together.append(None)
            continue
        places = [place for row in short for place in range(ends[row] - runs[row], ends[row])]
        in_turn = places[-1] - places[0] + 1 == len(places)
        tokens = slice(places[0], places[-1] + 1) if in_turn else numbers(tuple(places), device)
        together.append(Together(tokens, short_runs(tuple(runs[row] if row in short else 0 for row in rows), device)))
        source, done = sum(it is not None for it in together), 0
        for row in short:
            spans.append(Span(ends[row] - runs[row], ends[row], source, done))
            done += runs[row]
    first = 1 + sum(it is not None for it in together)
    spans += [Span(own.start, own.stop, first + number, 0) for number, (_, own) in enumerate(alone)]
    return Shares(tuple(together), tuple(alone), tuple(_pieces(sorted(spans), ends[-1])))


def _pieces(spans: list[Span], tokens: int) -> list[tuple[int, slice]]:
    """The pieces of a line of so many tokens, of which these spans were edited: neighbours of one source as one."""
    pieces = list[tuple[int, slice]]()
    for before, span in pairwise([*spans, Span(tokens, tokens, 0, tokens)]):
        edited = slice(span.at, span.at + span.stop - span.start)
        for source, piece in ((0, slice(before.stop, span.start)), (span.source, edited)):
            if piece.start == piece.stop:
                continue
            if pieces and pieces[-1][0] == source and pieces[-1][1].stop == piece.start:
                piece = slice(pieces.pop()[1].start, piece.stop)
            pieces.append((source, piece))
    return pieces
