"""A step's passes dealt among ranks: as many for each, of like work; the same examples on any number of ranks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from halka.data.dealing import split, work_of
from halka.data.examples import Item
from halka.training.ranks import Ranks
from halka.training.run import Run

Pass = Mapping[Run, Sequence[Item]]


def own_passes(passes: Sequence[Pass], ranks: Ranks) -> Iterator[tuple[Pass, set[Run]]]:
    """This rank's of a step's passes, which all ranks know; with each, the runs whose loss there is to count nothing.

    Of those of the same runs, as many as can be dealt evenly are dealt whole, the largest first and every other turn in
    reverse; each that is left is split among all ranks. So whole batches stay whole where `accumulate` is a multiple of
    the ranks. A rank that a run has no examples for computes one that counts nothing. So at any time all ranks compute
    with the same adapters: where the base is in parts, what they exchange depends on them.
    """
    if ranks.count == 1:
        for shared in passes:
            yield shared, set()
        return
    alike: dict[frozenset[Run], list[Pass]] = {}
    for shared in passes:
        alike.setdefault(frozenset(shared), []).append(shared)
    for of_runs in alike.values():
        yield from _dealt(of_runs, ranks)


def _dealt(passes: Sequence[Pass], ranks: Ranks) -> Iterator[tuple[Pass, set[Run]]]:
    """This rank's of passes of the same runs."""
    ordered = sorted(passes, key=_work, reverse=True)
    whole = len(passes) // ranks.count * ranks.count
    for turn, start in enumerate(range(0, whole, ranks.count)):
        yield ordered[start + (ranks.count - 1 - ranks.rank if turn % 2 else ranks.rank)], set()
    for shared in ordered[whole:]:
        parts = {
            run: split(items, ranks.count, packed=run.packed)[(ranks.rank + place) % ranks.count]
            for place, (run, items) in enumerate(shared.items())
        }
        idle = {run for run, part in parts.items() if not part}
        yield {run: part or shared[run][:1] for run, part in parts.items()}, idle


def _work(shared: Pass) -> int:
    return sum(work_of(items, packed=run.packed) for run, items in shared.items())
