"""Means with 95 % intervals over two sources of variation: seeds and test items.

The rule. A method was trained with S seeds, and every run answered the same n test items.

- seeds: Student's t over the S scores, half-width `t(S - 1) * sd / sqrt(S)`;
- items: each run's bootstrap interval over items, averaged over the S runs. More seeds do not shrink it, because an
  easy or hard test set is easy or hard for every seed;
- together: each side's two half-widths are joined as the root of the sum of their squares (the "method of variance
  estimates recovery", MOVER: Zou and Donner, 2008), so lopsided bootstrap intervals stay lopsided.

The variation that belongs to one seed on one item counts in both parts, so the result errs on the wide side. With
one seed only the items' part is known, and the estimate says so.

Differences and ratios of two methods follow the same rule. Where their runs keep the scores of each drawn set of items
(`draws`: the sets are the same in every run), the items' part is that of the difference, or ratio, itself: what is
hard for one method is often hard for the other. Without, it is as if the methods were independent, which errs on the
wide side. A bootstrap of few items that differ knows of none that differ the other way: the rule of three stands in for
those, so that, as with the sign test, six items are the fewest that tell two methods apart.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import mean, quantiles, stdev
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
class ScoreEstimate:
    """A score's mean over `seeds` runs; `low` and `high` are None where no source of variation was measured.

    `item_part` and `seed_part` are the half-widths that the test items (the wider side) and the seeds contribute, `how`
    says in words what the interval covers. `draws` are the mean scores on each drawn set of items, where all runs have
    them. `rare` is the half-width of what no item shows: with 97.5 % confidence fewer than 1 - 0.025^(1/n) of all items
    are of such a kind.
    """

    value: float
    low: float | None
    high: float | None
    seeds: int
    items: int | None
    item_part: float | None
    how: str
    seed_part: float | None = None
    draws: tuple[float, ...] = field(default=(), repr=False)
    rare: float = 0.0

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


def estimate(scores: Sequence[Mapping[str, Any]], bounds: tuple[float, float]) -> ScoreEstimate | None:
    """A method's runs, each `{"value", "low", "high", "n"}`, as a `ScoreEstimate` by the rule above; None without any.

    A run's `draws` are its scores on each drawn set of items. The interval is kept within `bounds`, the least and
    greatest value that the metric can take.
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
    draws, n = _mean_draws([score.get("draws") or () for score in scores]), min(items, default=None)
    rare = (1 - 0.025 ** (1 / n)) * (bounds[1] - bounds[0]) if n and math.isfinite(bounds[1] - bounds[0]) else 0.0
    return ScoreEstimate(value, low, high, count, n, item, _how(count, seed, item), seed, draws, rare)


def _mean_draws(runs: Sequence[Sequence[float | None]]) -> tuple[float, ...]:
    """The runs' mean score on each drawn set, NaN where one is undefined; none unless every run has as many."""
    if not runs or len({*map(len, runs)}) > 1:
        return ()
    return tuple(mean(math.nan if score is None else score for score in scores) for scores in zip(*runs, strict=True))


def _how(seeds: int, seed: float | None, item: float | None) -> str:
    if seed is not None and item is not None:
        return f"{seeds} seeds and the test items"
    if seed is not None:
        return f"{seeds} seeds, without the test items"
    return "the test items alone (one run)" if item is not None else "no interval measured"


def covered(estimates: Iterable[ScoreEstimate]) -> str:
    """What the intervals cover, in the words of the estimate with the most seeds; nothing where there is none."""
    having = [estimate for estimate in estimates if estimate.interval]
    return max(having, key=lambda estimate: estimate.seeds).how if having else ""


def difference(a: Interval, b: Interval) -> Interval:
    """a - b with its 95 % interval, as if the two were independent (MOVER)."""
    value = a.value - b.value
    return Interval(
        value,
        value - math.hypot(a.value - a.low, b.high - b.value),
        value + math.hypot(a.high - a.value, b.value - b.low),
    )


def gap(a: ScoreEstimate, b: ScoreEstimate) -> Interval | None:
    """a - b of two methods with its 95 % interval; None where one of them has none."""
    if a.interval is None or b.interval is None:
        return None
    items = _quantiles(a, b, operator.sub)
    if items is None:
        return difference(a.interval, b.interval)
    others = math.hypot(a.seed_part or 0.0, b.seed_part or 0.0, max(a.rare, b.rare))
    return _joined(a.value - b.value, items, (others, others))


def share(a: ScoreEstimate, b: ScoreEstimate) -> Interval | None:
    """a / b of two methods with its 95 % interval; None where one of them has none, or the ratio no bounds."""
    whole = ratio(a.interval, b.interval) if a.interval and b.interval else None
    items = _quantiles(a, b, operator.truediv)
    seeds = ratio(_by_seeds(a), _by_seeds(b))
    if whole is None or items is None or seeds is None:
        return whole
    down, up = (abs(end - whole.value) for end in (seeds.low, seeds.high))
    rare = max(a.rare, b.rare) / b.value
    return _joined(whole.value, items, (math.hypot(down, rare), math.hypot(up, rare)))


def apart(a: ScoreEstimate | None, b: ScoreEstimate | None) -> bool:
    """Whether the interval of two estimates' difference excludes zero.

    Of one seed that is a difference on these items: how another seed would score is unknown.
    """
    between = None if a is None or b is None else gap(a, b)
    return between is not None and (between.low > 0 or between.high < 0)


def _quantiles(
    a: ScoreEstimate, b: ScoreEstimate, compare: Callable[[float, float], float]
) -> tuple[float, float] | None:
    """The least and greatest of 95 % of the drawn sets' comparisons; None where the sets are not the same ones."""
    if not a.draws or len(a.draws) != len(b.draws) or a.items != b.items:
        return None
    pairs = [pair for pair in zip(a.draws, b.draws, strict=True) if all(map(math.isfinite, pair))]
    if len(pairs) < len(a.draws) / 2 or (compare is operator.truediv and min(below for _, below in pairs) <= 0):
        return None
    cuts = quantiles((compare(*pair) for pair in pairs), n=40, method="inclusive")
    return cuts[0], cuts[-1]


def _by_seeds(a: ScoreEstimate) -> Interval:
    """The mean with the interval of the seeds alone."""
    half = a.seed_part or 0.0
    return Interval(a.value, a.value - half, a.value + half)


def _joined(value: float, items: tuple[float, float], others: tuple[float, float]) -> Interval:
    """The value with the items' interval and the other sources' half-widths, down and up."""
    down, up = max(value - items[0], 0.0), max(items[1] - value, 0.0)
    return Interval(value, value - math.hypot(down, others[0]), value + math.hypot(up, others[1]))


def ratio(a: Interval, b: Interval) -> Interval | None:
    """a / b with its 95 % interval, as if the two were independent (Donner and Zou, 2012).

    For even-sided intervals this is Fieller's. None where b's interval is so wide that the ratio has no bounds.
    """
    if b.low <= 0 or b.high >= 2 * b.value:
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
