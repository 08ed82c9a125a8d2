"""The best learning rate of a method in a sweep, between the rates that were tried, with its interval over seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import mean, stdev

from halka.report.intervals import T_975, Interval
from halka.report.rows import Measurement, is_done, number

Losses = Mapping[int, Mapping[float, float]]
"""One method's validation losses, by seed and learning rate."""


def losses_of(runs: Sequence[Measurement]) -> dict[int, dict[float, float]]:
    """One method's validation losses, by seed and learning rate."""
    losses: dict[int, dict[float, float]] = {}
    for run in runs:
        rate, loss, seed = number(run, "lr"), number(run, "validation_loss"), number(run, "seed")
        if is_done(run) and rate and loss is not None and seed is not None:
            losses.setdefault(int(seed), {})[rate] = loss
    return losses


def best_rates(losses: Losses) -> dict[int, float]:
    """By seed, where a parabola through the rate that is best in the mean and its neighbours is lowest.

    The parabola is of the loss over the rate's logarithm. It counts as lowest at most as far beyond a neighbour as that
    is from the middle. Where the best in the mean is an edge of those tried, it is the best of every seed.
    """
    rates, best = rates_of(losses), best_rate(losses)
    if at_edge(losses):
        return dict.fromkeys(losses, best)
    near = rates[rates.index(best) - 1 :][:3]
    return {seed: _lowest(near, [tried[rate] for rate in near]) for seed, tried in losses.items()}


def at_edge(losses: Losses) -> bool:
    """Whether the best in the mean is the lowest or the highest rate tried: the best of all is then not known."""
    rates = rates_of(losses)
    return best_rate(losses) in (rates[0], rates[-1])


def rates_of(losses: Losses) -> list[float]:
    """The rates that every seed has tried, in order."""
    return sorted(set.intersection(*map(set[float], losses.values())))


def best_rate(losses: Losses) -> float:
    """Of the rates that every seed has tried, the one with the lowest mean loss."""
    return min(rates_of(losses), key=lambda rate: mean(tried[rate] for tried in losses.values()))


def _lowest(rates: Sequence[float], losses: Sequence[float]) -> float:
    x0, x1, x2 = map(math.log, rates)
    y0, y1, y2 = losses
    left, right = (y1 - y0) / (x1 - x0), (y2 - y1) / (x2 - x1)
    bend = (right - left) / (x2 - x0)
    downhill = x1 if y0 == y2 else math.copysign(math.inf, y0 - y2)
    lowest = (x0 + x1) / 2 - left / (2 * bend) if bend > 0 else downhill
    return math.exp(min(max(lowest, 2 * x0 - x1), 2 * x2 - x1))


def over_seeds(values: Sequence[float]) -> Interval:
    """The mean with Student's 95 % interval; without bounds where there is one value."""
    if len(values) == 1:
        return Interval(values[0], -math.inf, math.inf)
    half = T_975[min(len(values) - 2, 29)] * stdev(values) / math.sqrt(len(values))
    return Interval(mean(values), mean(values) - half, mean(values) + half)


def rate_ratio(one: Losses, other: Losses) -> Interval:
    """The best rate of `one` divided by that of `other`, seed by seed: the geometric mean with its interval."""
    mine, theirs = map(best_rates, _paired(one, other))
    logs = over_seeds([math.log(mine[seed] / theirs[seed]) for seed in mine])
    return Interval(*(math.exp(min(value, 700.0)) for value in (logs.value, logs.low, logs.high)))


def loss_gaps(one: Losses, other: Losses) -> dict[int, float]:
    """By seed, the loss of `one` less that of `other`, each at the rate that is best in its mean."""
    mine, theirs = _paired(one, other)
    best, beside = best_rate(mine), best_rate(theirs)
    return {seed: mine[seed][best] - theirs[seed][beside] for seed in mine}


def _paired(one: Losses, other: Losses) -> tuple[Losses, Losses]:
    """The losses of the seeds that both have."""
    seeds = sorted(one.keys() & other.keys())
    return {seed: one[seed] for seed in seeds}, {seed: other[seed] for seed in seeds}
