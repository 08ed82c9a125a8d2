"""Means with 95 % intervals over two sources of variation: seeds and test items.

The rule. A method was trained with S seeds, and every run answered the same n test items.

- seeds: Student's t over the S scores, half-width `t(S - 1) * sd / sqrt(S)`;
- items: each run's bootstrap interval over items, averaged over the S runs. More seeds do not shrink it, because an
  easy or hard test set is easy or hard for every seed;
- together: each side's two half-widths are joined as the root of the sum of their squares (the "method of variance
  estimates recovery", MOVER: Zou and Donner, 2008), so lopsided bootstrap intervals stay lopsided.

The variation that belongs to one seed on one item counts in both parts, so the result errs on the wide side. With
one seed only the items' part is known, and the estimate says so. Differences and ratios of two methods follow the same
rule as if the methods were independent; since they answered the same items they are not quite, which again errs on the
wide side.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

# Student's t, 97.5 % quantile, for 1 to 30 degrees of freedom
T_975 = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Estimate:
    """A score's mean over `seeds` runs; `low` and `high` are None where no source of variation was measured.

    `item_part` is the half-width that the test items contribute (the wider side), `how` says in words what the
    interval covers.
    """

    value: float
    low: float | None
    high: float | None
    seeds: int
    items: int | None
    item_part: float | None
    how: str

    @property
    def interval(self) -> Interval | None:
        """The interval, or None if no source of variation was measured."""
        return None if self.low is None or self.high is None else Interval(self.value, self.low, self.high)


@dataclass(frozen=True)
class Spread:
    """A figure measured in `n` runs: its mean, least and greatest."""

    mean: float
    low: float
    high: float
    n: int


def spread(values: Iterable[float | None]) -> Spread | None:
    """The spread of the values that are not None; None without any."""
    present = [value for value in values if value is not None]
    return Spread(mean(present), min(present), max(present), len(present)) if present else None


def estimate(scores: Sequence[Mapping[str, Any]], bounds: tuple[float, float]) -> Estimate | None:
    """One method's runs, each `{"value", "low", "high", "n"}`, as an `Estimate` by the rule above; None without runs.

    The interval is kept within `bounds`, the least and greatest value that the metric can take.
    """
    scores = [score for score in scores if finite(score.get("value")) is not None]
    if not scores:
        return None
    values = [float(score["value"]) for score in scores]
    value, count = mean(values), len(values)
    sides = [
        (low, high, run)
        for score, run in zip(scores, values, strict=True)
        if (low := finite(score.get("low"))) is not None and (high := finite(score.get("high"))) is not None
    ]
    seed = T_975[min(count - 2, 29)] * stdev(values) / math.sqrt(count) if count > 1 else None
    down = mean(run - low for low, _, run in sides) if sides else None
    up = mean(high - run for _, high, run in sides) if sides else None
    items = [int(n) for score in scores if (n := finite(score.get("n"))) is not None]
    low = high = None
    if seed is not None or down is not None:
        low = max(value - math.hypot(seed or 0.0, down or 0.0), min(bounds[0], value))
        high = min(value + math.hypot(seed or 0.0, up or 0.0), max(bounds[1], value))
    item = None if down is None or up is None else max(down, up)
    return Estimate(value, low, high, count, min(items) if items else None, item, _how(count, seed, item))


def _how(seeds: int, seed: float | None, item: float | None) -> str:
    if seed is not None and item is not None:
        return f"{seeds} seeds and the test items"
    if seed is not None:
        return f"{seeds} seeds, without the test items"
    return "the test items alone (one run)" if item is not None else "no interval measured"


def difference(a: Interval, b: Interval) -> Interval:
    """a - b with its 95 % interval, as if the two were independent (MOVER)."""
    value = a.value - b.value
    return Interval(
        value,
        value - math.hypot(a.value - a.low, b.high - b.value),
        value + math.hypot(a.high - a.value, b.value - b.low),
    )


def apart(a: Estimate | None, b: Estimate | None) -> bool:
    """Whether two estimates differ significantly: the interval of their difference excludes zero."""
    if a is None or b is None or a.interval is None or b.interval is None:
        return False
    gap = difference(a.interval, b.interval)
    return gap.low > 0 or gap.high < 0


def ratio(a: Interval, b: Interval) -> Interval | None:
    """a / b with its 95 % interval, as if the two were independent (Donner and Zou, 2012).

    For even-sided intervals this is Fieller's. None where b's interval is so wide that the ratio has no bounds.
    """
    if a.low < 0 or b.low <= 0 or b.high >= 2 * b.value:
        return None
    product = a.value * b.value
    below = product**2 - a.low * b.high * (2 * a.value - a.low) * (2 * b.value - b.high)
    above = product**2 - a.high * b.low * (2 * a.value - a.high) * (2 * b.value - b.low)
    low = (product - math.sqrt(max(below, 0.0))) / (b.high * (2 * b.value - b.high))
    high = (product + math.sqrt(max(above, 0.0))) / (b.low * (2 * b.value - b.low))
    return Interval(a.value / b.value, low, high)


def finite(value: Any) -> float | None:
    """The value as a float where it is a finite number, else None."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if number and math.isfinite(value) else None
