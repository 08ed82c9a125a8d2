"""`Metric`: counts for each answer, and how their sums over all answers become the score."""

from __future__ import annotations

import hashlib
import inspect
import math
import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
Counts = Mapping[Hashable, float]
Sums = Mapping[Hashable, FloatArray]


@dataclass(frozen=True)
class Metric:
    """A measure of answers against their references, kept as sufficient statistics.

    `per_item(prediction, references)` gives the named counts of one answer; a count it does not name is 0.
    `aggregate(sums)` turns the counts' sums into scores: every sum has shape (R,), one entry for each
    sample of items, and so has the result, NaN where a sample leaves the score undefined. Since a sample's
    sums are all that a score needs, corpus measures (BLEU, F1) can be resampled exactly.
    """

    name: str
    meaning: str
    per_item: Callable[[str, Sequence[str]], Counts]
    aggregate: Callable[[Sums], FloatArray]
    range: tuple[float, float] = (0.0, 1.0)
    higher_is_better: bool = True

    @classmethod
    def mean(
        cls,
        name: str,
        meaning: str,
        value: Callable[[str, Sequence[str]], float],
        range: tuple[float, float] = (0.0, 1.0),
        higher_is_better: bool = True,
    ) -> Metric:
        """The mean over items of `value(prediction, references)`."""
        return cls(
            name,
            meaning,
            per_item=lambda prediction, references: {
                "sum": float(value(prediction, references)),
                "items": 1.0,
            },
            aggregate=lambda sums: sums["sum"] / sums["items"],
            range=range,
            higher_is_better=higher_is_better,
        )

    def code(self) -> str:
        """Twelve letters of a hash of its functions' source, and of the functions and constants that they name."""
        waiting: list[object] = [self.per_item, self.aggregate]
        sources: dict[object, str] = {}
        while waiting:
            value = waiting.pop()
            if isinstance(value, partial):
                waiting += [value.func, *value.args, *value.keywords.values()]
            elif isinstance(value, str | int | float | tuple | re.Pattern):
                sources[repr(value)] = repr(value)
            elif inspect.isfunction(function := inspect.unwrap(value)) and function not in sources:  # pyright: ignore
                used = inspect.getclosurevars(function)
                waiting += [*used.nonlocals.values(), *used.globals.values()]
                sources[function] = _source(function)
        return hashlib.sha256(repr(sorted(sources.values())).encode()).hexdigest()[:12]


def _source(function: Callable[..., object]) -> str:
    """A function's source; of Halka's own, and of one that was typed into an interpreter, its name."""
    if function.__module__ == __name__:
        return function.__qualname__
    try:
        return inspect.getsource(function)
    except OSError:
        return function.__qualname__


def ratio(above: FloatArray, below: FloatArray, empty: float = math.nan) -> FloatArray:
    """above / below, and `empty` where below is 0; all of shape (R,)."""
    return np.divide(above, below, out=np.full(np.shape(below), empty), where=below > 0)
