"""`Metric`: counts for each answer, and how their sums over all answers become the score."""

from __future__ import annotations

import hashlib
import inspect
import math
import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import CodeType

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
Counts = Mapping[Hashable, float]
Sums = Mapping[Hashable, FloatArray]
CONSTANTS = str | bytes | int | float | complex | None | re.Pattern
COLLECTIONS = dict | list | set | frozenset | tuple


@dataclass(frozen=True)
class Metric:
    """A measure of answers against their references, kept as sufficient statistics.

    `per_item(prediction, references)` gives the named counts of one answer; a count it does not name is 0, and
    an answer whose counts are all 0 is not one of the items that an interval is based on.
    `aggregate(sums)` turns the counts' sums into scores: every sum has shape (R,), one entry for each
    sample of items, and so has the result, NaN where a sample leaves the score undefined. Since a sample's
    sums are all that a score needs, corpus measures (BLEU, F1) can be resampled exactly.
    `reads(names)` are those of the counts' names that `aggregate` reads, by default all.
    """

    name: str
    meaning: str
    per_item: Callable[[str, Sequence[str]], Counts]
    aggregate: Callable[[Sums], FloatArray]
    range: tuple[float, float] = (0.0, 1.0)
    higher_is_better: bool = True
    reads: Callable[[Sequence[Hashable]], Sequence[Hashable]] = list

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
        """Twelve letters of a hash of its functions' source, and of the functions, constants and collections they name.

        Left out is what they reach otherwise: through modules, classes and other objects, and as parameters' defaults.
        """
        waiting: list[object] = [self.per_item, self.aggregate]
        sources: dict[object, str] = {}
        while waiting:
            value = waiting.pop()
            if isinstance(value, partial):
                waiting += [value.func, *value.args, *value.keywords.values()]
            elif isinstance(value, CONSTANTS | COLLECTIONS):
                text = repr(_plain(value, waiting))
                sources[text] = text
            elif inspect.isfunction(function := inspect.unwrap(value)) and function not in sources:  # pyright: ignore
                used = inspect.getclosurevars(function)
                waiting += [*used.nonlocals.values(), *used.globals.values()]
                names = {name for code in _nested(function.__code__) for name in code.co_names}
                waiting += [function.__globals__[name] for name in names & function.__globals__.keys()]
                sources[function] = _source(function)
        return hashlib.sha256(repr(sorted(sources.values())).encode()).hexdigest()[:12]


def _nested(code: CodeType) -> list[CodeType]:
    """The code of comprehensions, lambdas and functions within."""
    inner = [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    return [*inner, *(deeper for own in inner for deeper in _nested(own))]


def _plain(value: object, named: list[object]) -> object:
    """A constant or collection as one whose text is the same in every process.

    Of another object in it there is the name, and it is added to `named`.
    """
    if isinstance(value, dict):
        return [(_plain(key, named), _plain(part, named)) for key, part in value.items()]
    if isinstance(value, set | frozenset):
        return sorted(repr(_plain(part, named)) for part in value)
    if isinstance(value, list | tuple):
        parts = [_plain(part, named) for part in value]
        return parts if isinstance(value, list) else tuple(parts)
    if isinstance(value, CONSTANTS):
        return value
    named.append(value)
    return getattr(value, "__qualname__", type(value).__qualname__)


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
