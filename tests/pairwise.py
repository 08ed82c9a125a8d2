"""Few cases in which every two values of different dimensions meet once."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

CANDIDATES = 12  # cases of which the one with the most pairs that have not met is taken


def pairwise(
    dimensions: Mapping[str, Sequence[Any]], possible: Callable[[Mapping[str, Any]], bool] = lambda case: True
) -> list[dict[str, Any]]:
    """Cases of one value a dimension, always the same ones; none that is not `possible`.

    Two values are left apart where no case that has both is possible: all of these are looked at before. Values must be
    hashable.
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
        fixed = dict(pair)
        values = [*itertools.product(*([fixed[name]] if name in fixed else dimensions[name] for name in names))]
        draw.shuffle(values)
        drawn = (dict(zip(names, row, strict=True)) for row in values)
        candidates = [
            (case, {both for both in itertools.combinations(case.items(), 2) if both in open_pairs})
            for case in itertools.islice(filter(possible, drawn), CANDIDATES)
        ]
        open_pairs.discard(pair)
        if candidates:
            case, met = max(candidates, key=lambda candidate: len(candidate[1]))
            cases.append(case)
            open_pairs -= met
    return cases
