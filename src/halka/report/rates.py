"""The best learning rate of a method in a sweep, between the rates that were tried, with its interval over seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import mean, stdev

from halka.report.intervals import T_975, Interval
from halka.report.rows import Measurement, is_done, number


def losses_of(runs: Sequence[Measurement]) -> dict[int, dict[float, float]]:
    """One method's validation losses, by seed and learning rate."""
    losses: dict[int, dict[float, float]] = {}
    for run in runs:
        rate, loss, seed = number(run, "lr"), number(run, "validation_loss"), number(run, "seed")
        if is_done(run) and rate and loss is not None and seed is not None:
            losses.setdefault(int(seed), {})[rate] = loss
    return losses


def best_between(losses: Mapping[float, float]) -> float:
    """The rate at which a parabola through the best rate and its neighbours (loss over log rate) is lowest.

    At an edge of those tried, and where a neighbour is as good, it is the best rate itself.
    """
    rates = sorted(losses)
    at = rates.index(min(rates, key=lambda rate: losses[rate]))
    if at in (0, len(rates) - 1):
        return rates[at]
    (x0, x1, x2), (y0, y1, y2) = zip(*((math.log(rate), losses[rate]) for rate in rates[at - 1 : at + 2]), strict=True)
    left, right = (y1 - y0) / (x1 - x0), (y2 - y1) / (x2 - x1)
    bend = (right - left) / (x2 - x0)
    return math.exp((x0 + x1) / 2 - left / (2 * bend)) if bend > 0 else rates[at]


def over_seeds(values: Sequence[float]) -> Interval:
    """The mean with Student's 95 % interval; without bounds where there is one value."""
    if len(values) == 1:
        return Interval(values[0], -math.inf, math.inf)
    half = T_975[min(len(values) - 2, 29)] * stdev(values) / math.sqrt(len(values))
    return Interval(mean(values), mean(values) - half, mean(values) + half)


def rate_ratio(one: Mapping[int, Mapping[float, float]], other: Mapping[int, Mapping[float, float]]) -> Interval:
    """The best rate of `one` divided by that of `other`, seed by seed: the geometric mean with its interval."""
    seeds = sorted(one.keys() & other.keys())
    logs = over_seeds([math.log(best_between(one[seed]) / best_between(other[seed])) for seed in seeds])
    return Interval(*(math.exp(min(value, 700.0)) for value in (logs.value, logs.low, logs.high)))


def loss_gap(one: Mapping[int, Mapping[float, float]], other: Mapping[int, Mapping[float, float]]) -> Interval:
    """The loss of `one` less that of `other`, each at the rate that is best for its mean, seed by seed."""
    seeds = sorted(one.keys() & other.keys())
    best, beside = best_rate(one), best_rate(other)
    return over_seeds([one[seed][best] - other[seed][beside] for seed in seeds])


def best_rate(losses: Mapping[int, Mapping[float, float]]) -> float:
    """Of the rates that every seed has tried, the one with the lowest mean loss."""
    shared = set.intersection(*(set(each) for each in losses.values()))
    return min(sorted(shared), key=lambda rate: mean(each[rate] for each in losses.values()))
