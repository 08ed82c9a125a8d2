"""Statistics of the probes: values of answers, intervals of losses, learning curves, agreement of labels."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from statistics import mean

import numpy as np
from numpy.typing import NDArray

from halka.data.metric import Metric
from halka.evaluation.metrics import Score, find_metric
from halka.evaluation.text_metrics import as_label
from halka.rag.prompt import CITATION
from halka.util.errors import HalkaError

Array = NDArray[np.float64]

HORIZON = 4
"""Curves are extrapolated to so many times the steps, or examples; a convention."""
RISE = 3
"""A curve rises if it ends above its lowest point by so many times its noise; a convention."""

EXPONENTS = np.geomspace(0.05, 2.0, 96)
LEVELS = (np.arange(400) + 0.5) / 400
DRAWS = 4000
LONGEST_LABEL = 80  # characters; "balance_not_updated_after_cheque_or_cash_deposit" has 48
CITED = re.compile(
    rf"(\s*{CITATION.pattern})+(?=\s*\.?\s*$)"
)  # citations at an answer's end, before or after its full stop


# ── answers ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def answer_values(
    metric: str, texts: Sequence[str], references: Sequence[Sequence[str]], *, passages: bool = False
) -> tuple[float, ...]:
    """Each answer's own score by the metric, scaled to 0 to 1, higher is better; a corpus metric is taken per answer.

    passages   whether the prompts held passages: citations at an answer's end are ignored then, unless the references
               have such marks themselves

    Raises HalkaError for an unknown metric.
    """
    measure = find_metric(metric)
    low, high = measure.range
    values = []
    for text, accepted in zip(texts, references, strict=True):
        if passages and not any(map(CITATION.search, accepted)):
            text = CITED.sub("", text).strip()
        value = _value(measure, text, accepted)
        share = (value - low) / (high - low) if np.isfinite(value) else 0.0
        values.append(min(1.0, max(0.0, share if measure.higher_is_better else 1 - share)))
    return tuple(values)


def is_scored(metric: str, references: Sequence[str]) -> bool:
    """Whether the metric says anything of an answer to the item: an accepted answer without its field, say, has none.

    Raises HalkaError for an unknown metric.
    """
    return bool(np.isfinite(_value(find_metric(metric), references[0], references)))


def _value(metric: Metric, text: str, references: Sequence[str]) -> float:
    """The metric of one answer alone; NaN where it is undefined."""
    counts = metric.per_item(text, references)
    return float(metric.aggregate({key: np.array([float(count)]) for key, count in counts.items()})[0])


# ── intervals ───────────────────────────────────────────────────────────────────────────────────────────────────────


def mean_interval(values: Sequence[float], weights: Sequence[int], seed: int = 0, resamples: int = 1000) -> Score:
    """The weighted mean with its 95 % percentile bootstrap over items (Efron, 1979), in the unit of `values`.

    For losses, `values[i]` is example i's mean per token in nats and `weights[i]` its number of tokens, 1 or more:
    whole examples are resampled, because tokens of one answer are not independent.

    Where every resample gives the same value (one item, or equal values) the bootstrap cannot see the spread. As in
    `score`, up to 1 - 0.05^(1/n) of all items may then differ from those seen, here each by the value itself or by 1,
    whichever is larger; `low` is not below 0 where no value is.

    Raises HalkaError for no values, and for values that are not finite.
    """
    value, weight = np.asarray(values, dtype=np.float64), np.asarray(weights, dtype=np.float64)
    if not len(value) or not np.isfinite(value).all():
        raise HalkaError("a weighted mean needs at least one value, and finite ones: leave the other items out")
    n, average = len(value), float(np.average(value, weights=weight))
    items_RN = np.random.default_rng(seed).integers(n, size=(resamples, n))
    means_R = (value * weight)[items_RN].sum(axis=1) / weight[items_RN].sum(axis=1)
    low, high = (float(end) for end in np.quantile(means_R, [0.025, 0.975]))
    if math.isclose(low, high, abs_tol=1e-12):
        margin = (1 - 0.05 ** (1 / n)) * max(abs(average), 1.0)
        low, high = max(average - margin, 0.0 if value.min() >= 0 else -math.inf), average + margin
    return Score(average, min(low, average), max(high, average), n)


def mean_loss(answers: Sequence[Array]) -> Score:
    """The mean loss per token with its interval, from the token losses of each answer that has tokens."""
    losses = [losses for losses in answers if len(losses)]
    return mean_interval([float(own.mean()) for own in losses], [len(own) for own in losses])


def shared_deviations(values: Sequence[Sequence[float]], draws: int, rng: np.random.Generator) -> list[Array]:
    """How far each score deviates from the measured one, in standard deviations: per score (draws,).

    `values` are those of the answers that each score was measured on. Scores measured on the same questions share the
    resampled questions, so that luck with easy ones favours none. Others, and those whose answers all have one value,
    deviate independently.
    """
    asked = max(map(len, values))
    questions = rng.integers(max(1, asked), size=(draws, asked))
    deviations = []
    for own in values:
        deviation = rng.standard_normal(draws)
        if len(own) == asked and len({*own}) > 1:
            means = np.array(own)[questions].mean(axis=1)
            deviation = (means - means.mean()) / means.std()
        deviations.append(deviation)
    return deviations


def drawn(score: Score, deviation: float) -> float:
    """A value of the interval, taken as normal on either side; at least 0."""
    side = score.high - score.value if deviation > 0 else score.value - score.low
    return max(0.0, score.value + deviation * side / 1.96)


# ── learning curves ─────────────────────────────────────────────────────────────────────────────────────────────────


def extrapolate(points: Sequence[tuple[float, float]], at: float, noise: float = 0.0, seed: int = 0) -> Score | None:
    """The loss to expect at `at`, which is not before the last point; `math.inf` is the curve's limit.

    `points` are (steps or examples, loss) in any order, possibly several at one x; `noise` is the standard deviation of
    a point's loss, 0 if unknown. `n` is the number of points. Returns None for fewer than two different x.

    The curve is L(x) = a + b·x^(-c) with a, b ≥ 0 and c from 0.05 to 2: the form of learning curves over data (Hestness
    et al., 2017, arXiv:1712.00409), and one of those used for curves over steps (Domhan et al., 2015). No single fit is
    trusted: value, low and high are quantiles (50, 2.5 and 97.5 %) of curves drawn in proportion to how well they fit,
    log c uniform, so that few points and a long way to `at` widen the interval. It is an interval of the curve: a
    further point would have its noise on top. The value is at most the last point plus noise. Unknown noise is
    estimated from neighbouring points or, under five points, as a twentieth of the loss's range.

    A curve that ends above its lowest point by `RISE` times the noise is rising (overfitting) and is no power law:
    training would stop at the lowest point, so that one is expected, and `high` is at least the last point.

    Raises HalkaError for an x that is not above 0, a loss or noise that is negative or not finite, and an `at` before
    the last point.
    """
    x, y = _columns(points, at, noise)
    if len(np.unique(x)) < 2:
        return None
    spread = _spread(x, y, noise)
    last, best = float(y[x == x[-1]].mean()), float(y.min())
    if _rises(x, y, spread):
        return Score(best, max(best - 2 * spread, 0.0), max(last, best + 2 * spread), len(y))
    drawn = _draw_curves(x, y, at, spread, 8 if noise else 1, np.random.default_rng(seed))
    low, value, high = (float(quantile) for quantile in np.quantile(drawn, [0.025, 0.5, 0.975]))
    value = min(value, last + spread)
    return Score(value, min(low, value), high, len(y))


def lowest_before_rising(points: Sequence[tuple[float, float]]) -> float | None:
    """The x at which a curve is lowest, if it rises after that (see `extrapolate`); None where it may still fall.

    A point at 0, before the first step, is left out. Raises HalkaError as `extrapolate` does.
    """
    x, y = _columns([point for point in points if point[0] > 0], math.inf, 0.0)
    if len(np.unique(x)) < 2 or not _rises(x, y, _spread(x, y, 0.0)):
        return None
    return float(x[y.argmin()])


def _columns(points: Sequence[tuple[float, float]], at: float, noise: float) -> tuple[Array, Array]:
    """x and loss, both (P,), sorted by x."""
    x, y = np.array(sorted(points), dtype=np.float64).reshape(-1, 2).T
    if not (np.isfinite(x).all() and (x > 0).all() and np.isfinite(y).all() and (y >= 0).all()):
        raise HalkaError(f"{list(points)}: every point needs an x above 0 and a finite loss: leave the others out")
    if not (math.isfinite(noise) and noise >= 0):
        raise HalkaError(f"noise is {noise}: give a standard deviation in the loss's unit, or 0 if it is unknown")
    if len(x) and not at >= x[-1]:
        raise HalkaError(f"{at:g} lies before the curve's last point, {x[-1]:g}: leave out the points past it")
    return x, y


def _spread(x: Array, y: Array, noise: float) -> float:
    """The noise, known or estimated; at least the width of the grid's cells."""
    return max(noise or _scatter(x, y), float(y.max()) / len(LEVELS), 1e-9)


def _rises(x: Array, y: Array, spread: float) -> bool:
    """Whether the curve ends above its lowest point by more than noise."""
    return bool(y[x == x[-1]].mean() > y.min() + RISE * spread)


def _scatter(x: Array, y: Array) -> float:
    """The noise, as the median distance of points from the line through their neighbours (Gasser et al., 1986)."""
    if len(x) < 5:
        return float(np.ptp(y)) / 20
    t = np.log(x)
    wide = t[2:] - t[:-2]
    left = np.where(wide > 0, (t[2:] - t[1:-1]) / np.where(wide > 0, wide, 1.0), 0.5)
    off = y[1:-1] - left * y[:-2] - (1 - left) * y[2:]
    return 1.4826 * float(np.median(np.abs(off) / np.sqrt(1 + left**2 + (1 - left) ** 2)))


def _draw_curves(x: Array, y: Array, at: float, noise: float, prior_points: int, rng: np.random.Generator) -> Array:
    """Values of plausible curves at `at`, (DRAWS,): cells of the (c, a) grid by their fit, b around its best value.

    The noise is uncertain as well: `prior_points` points that are off by `noise` join the real ones (Student's t).
    """
    levels_A = LEVELS * y.max()
    z_CP = (x / x[0]) ** -EXPONENTS[:, None]
    rest_AP = y - levels_A[:, None]
    zz_C1 = (z_CP**2).sum(axis=1, keepdims=True)
    zr_CA = z_CP @ rest_AP.T
    b_CA = np.maximum(zr_CA / zz_C1, 0.0)
    squares_CA = (
        np.maximum((rest_AP**2).sum(axis=1) - 2 * b_CA * zr_CA + b_CA**2 * zz_C1, 0.0) + prior_points * noise**2
    )
    degrees = len(x) - 1 + prior_points
    log_CA = -0.5 * np.log(zz_C1) - 0.5 * degrees * np.log(squares_CA)
    share_CA = np.exp(log_CA - log_CA.max())
    cell = rng.choice(share_CA.size, DRAWS, p=share_CA.ravel() / share_CA.sum())
    c, level = np.divmod(cell, len(LEVELS))
    a = levels_A[level] + (rng.random(DRAWS) - 0.5) * y.max() / len(LEVELS)
    error_CA = np.sqrt(squares_CA / degrees / zz_C1)
    b = np.maximum(b_CA.ravel()[cell] + error_CA.ravel()[cell] * rng.standard_t(degrees, DRAWS), 0.0)
    return a + b * (0.0 if math.isinf(at) else (at / x[0]) ** -EXPONENTS[c])


# ── agreement of labels ─────────────────────────────────────────────────────────────────────────────────────────────


def are_labels(answers: Sequence[str]) -> bool:
    """Whether answers look like class labels: short, at least two kinds, each three times on average or more.

    They are compared as the metric `accuracy` compares them.
    """
    labels = {as_label(text) for text in answers}
    return 2 <= len(labels) <= len(answers) / 3 and max(map(len, labels)) <= LONGEST_LABEL


def kappa(first: Sequence[str], second: Sequence[str]) -> float:
    """Cohen's kappa (1960) of two lists of labels for the same N questions, compared as `accuracy` compares them.

    1 is full agreement, 0 the agreement by chance of two lists with these frequencies. A list with one label only has
    kappa 0 with any list, itself included (where kappa is 0/0).

    Raises HalkaError for empty lists and for lists of different length.
    """
    if len(first) != len(second) or not first:
        raise HalkaError(f"{len(first)} and {len(second)} answers: give both for the same questions, at least one")
    one, other = [as_label(text) for text in first], [as_label(text) for text in second]
    n = len(one)
    same = sum(a == b for a, b in zip(one, other, strict=True))
    frequencies = Counter(other)
    chance = sum(count * frequencies[label] for label, count in Counter(one).items())  # n² times the probability
    return 0.0 if chance == n * n else (n * same - chance) / (n * n - chance)


def agreement(
    predictions: Sequence[Sequence[str]], accepted: Sequence[Sequence[str]], labels: Sequence[str]
) -> tuple[tuple[float, float], list[int]]:
    """The mean kappas of two or more lists of predictions with each other and with the first accepted answers.

    Besides, the indices at which all lists predict the same label, and not an accepted one. A prediction that is none
    of the `labels` differs from all others.
    """
    names = {*map(as_label, labels)}
    predicted = [
        [text if as_label(text) in names else f"no label {number}.{place}" for place, text in enumerate(texts)]
        for number, texts in enumerate(predictions)
    ]
    each_other = mean(kappa(first, second) for first, second in combinations(predicted, 2))
    with_labels = mean(kappa(own, [answers[0] for answers in accepted]) for own in predicted)
    mistakes = []
    for index, (right, own) in enumerate(zip(accepted, zip(*predicted, strict=True), strict=True)):
        unanimous = {*map(as_label, own)}
        if len(unanimous) == 1 and unanimous.isdisjoint(map(as_label, right)):
            mistakes.append(index)
    return (each_other, with_labels), mistakes
