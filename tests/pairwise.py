"""Few cases in which every two values of different dimensions meet once."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def pairwise(
    dimensions: Mapping[str, Sequence[Any]], possible: Callable[[Mapping[str, Any]], bool] = lambda case: True
) -> list[dict[str, Any]]:
    """Cases of one value a dimension, always the same ones; none that is not `possible`.

    Values that can meet in no possible case are left apart. Values must be hashable.
    """
    names, draw = list(dimensions), random.Random(0)
    pairs = {
        ((one, a), (two, b))
        for one, two in itertools.combinations(names, 2)
        for a, b in itertools.product(dimensions[one], dimensions[two])
    }
    left = sorted(pairs, key=repr)
    draw.shuffle(left)
    cases: list[dict[str, Any]] = []
    open_pairs = set(left)
    for pair in left:
        if pair not in open_pairs:
            continue
        candidates = []
        for _ in range(12):
            case = {name: draw.choice(list(dimensions[name])) for name in names} | dict(pair)
            if possible(case):
                met = {both for both in itertools.combinations(case.items(), 2) if both in open_pairs}
                candidates.append((len(met), case, met))
        open_pairs.discard(pair)
        if candidates:
            _, case, met = max(candidates, key=lambda candidate: candidate[0])
            cases.append(case)
            open_pairs -= met
    return cases
