"""Losses with their doubt: the mean of what was seen, and where a curve over steps or examples is going."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from halka.advisor.thresholds import RISING
from halka.data.metric import Counts, Metric
from halka.evaluation.metrics import Score, score
from halka.util.errors import HalkaError

Array = NDArray[np.float64]

EXPONENTS = np.geomspace(0.05, 2.0, 96)
LEVELS = (np.arange(400) + 0.5) / 400
DRAWS = 4000


def interval(
    values: Sequence[float], weights: Sequence[float] | None = None, seed: int = 0, resamples: int = 1000
) -> Score:
    """The weighted mean with its 95 % percentile bootstrap over items (Efron, 1979), in the unit of `values`.

    For losses, `values[i]` is example i's mean a token in nats and `weights[i]` its number of tokens; whole examples
    are drawn, for tokens of one answer are no independent items. `n` counts the items of a weight above 0.

    Where every draw gives the same value (one item, or all alike) the bootstrap cannot see the spread. As in `score`,
    up to 1 - 0.05^(1/n) of all items may then differ from those seen, here each by the value itself or by 1, whichever
    is more; `low` is not below 0 where no value is.

    Raises ValueError for no values, other than one weight a value, values that are not finite, and weights that are
    below 0, not finite or all 0.
    """
    weight = np.ones(len(values)) if weights is None else np.asarray(weights, dtype=np.float64)
    value = np.asarray(values, dtype=np.float64)
    if not len(value) or weight.shape != value.shape:
        raise HalkaError(f"{len(value)} values with {len(weight)} weights; give one or more, and a weight for each")
    if not (np.isfinite(value).all() and np.isfinite(weight).all() and (weight >= 0).all() and weight.any()):
        raise HalkaError("values and weights must be finite, weights 0 or more and not all 0; leave such items out")
    value, weight = value[weight > 0], weight[weight > 0]
    n = len(value)

    def counts(item: str, _: Sequence[str]) -> Counts:
        return {"sum": value[int(item)] * weight[int(item)], "weight": weight[int(item)]}

    ends = (-math.inf, math.inf)
    mean = Metric("mean", "weighted mean", counts, lambda sums: sums["sum"] / sums["weight"], ends)
    found = score([str(item) for item in range(n)], [[""]] * n, [mean], seed, resamples)["mean"]
    if not math.isclose(found.low, found.high, abs_tol=1e-12):
        return found
    margin = (1 - 0.05 ** (1 / n)) * max(abs(found.value), 1.0)
    low = found.value - margin
    return Score(found.value, max(low, 0.0) if value.min() >= 0 else low, found.value + margin, n)


def extrapolated(points: Sequence[tuple[float, float]], at: float, noise: float = 0.0, seed: int = 0) -> Score | None:
    """The loss to expect at `at`, no nearer than the last point; `math.inf` is where the curve ends.

    `points` are (steps or examples, loss) in any order, several at one place too; `noise` is the standard deviation of
    a point's loss, 0 if it is not known. `n` is the number of points; None for points at fewer than two places.

    The curve is L(x) = a + b·x^(-c), a and b 0 or more, c from 0.05 to 2: the form of learning curves over data
    (Hestness et al., 2017, arXiv:1712.00409), and one of those by which curves over steps are extrapolated (Domhan et
    al., 2015). No single fit is believed: value, low and high are quantiles (50, 2.5 and 97.5 %) of curves drawn in
    proportion to how well they fit, c evenly in its logarithm, so that two points tell a range only, and few points
    and distance widen it. They are of the curve; another point would have its noise besides. The value is no more than
    the last point and its noise; noise that is not known is what neighbours tell or, under five points, a twentieth of
    the fall.

    A curve whose last point lies above its best by `RISING` times the noise is rising, as in overfitting, and no power
    law: training would stop at the best, so that is expected, and `high` is at least the last point.

    Raises ValueError for an x that is not above 0, a loss or noise that is below 0 or not finite, and an `at` before
    the last point.
    """
    x, y = _columns(points, at, noise)
    if len(np.unique(x)) < 2:
        return None
    spread = _spread(x, y, noise)
    last, best = float(y[x == x[-1]].mean()), float(y.min())
    if _rises(x, y, spread):
        return Score(best, max(best - 2 * spread, 0.0), max(last, best + 2 * spread), len(y))
    drawn = _drawn(x, y, at, spread, 8 if noise else 1, np.random.default_rng(seed))
    low, value, high = (float(each) for each in np.quantile(drawn, [0.025, 0.5, 0.975]))
    value = min(value, last + spread)
    return Score(value, min(low, value), high, len(y))


def lowest_before_rising(points: Sequence[tuple[float, float]]) -> float | None:
    """Where a curve is lowest, if it rises from there as `extrapolated` tells it; None where it may fall on.

    A point before the first step, at 0, is left out. Raises ValueError as `extrapolated` does.
    """
    x, y = _columns([point for point in points if point[0] > 0], math.inf, 0.0)
    if len(np.unique(x)) < 2 or not _rises(x, y, _spread(x, y, 0.0)):
        return None
    return float(x[y.argmin()])


def _columns(points: Sequence[tuple[float, float]], at: float, noise: float) -> tuple[Array, Array]:
    """x and loss, both (P,), in the order of x."""
    x, y = np.array(sorted(points), dtype=np.float64).reshape(-1, 2).T
    if not (np.isfinite(x).all() and (x > 0).all() and np.isfinite(y).all() and (y >= 0).all()):
        raise HalkaError(f"{list(points)} has points that are no steps above 0 with a finite loss; leave them out")
    if not (math.isfinite(noise) and noise >= 0):
        raise HalkaError(f"noise is {noise}; it is a standard deviation in the loss's unit, and 0 if it is not known")
    if len(x) and not at >= x[-1]:
        raise HalkaError(f"{at:g} lies before the curve's last point, {x[-1]:g}; leave out the points past it")
    return x, y


def _spread(x: Array, y: Array, noise: float) -> float:
    """The noise, if it is known; no curve is a power law more closely than a cell of the grid is wide."""
    return max(noise or _scatter(x, y), float(y.max()) / len(LEVELS), 1e-9)


def _rises(x: Array, y: Array, spread: float) -> bool:
    """Whether it ends above its best by more than noise."""
    return bool(y[x == x[-1]].mean() > y.min() + RISING * spread)


def _scatter(x: Array, y: Array) -> float:
    """The noise by how far points lie off the line through their neighbours (Gasser et al., 1986), by the median."""
    if len(x) < 5:
        return float(np.ptp(y)) / 20
    t = np.log(x)
    wide = t[2:] - t[:-2]
    left = np.where(wide > 0, (t[2:] - t[1:-1]) / np.where(wide > 0, wide, 1.0), 0.5)
    off = y[1:-1] - left * y[:-2] - (1 - left) * y[2:]
    return 1.4826 * float(np.median(np.abs(off) / np.sqrt(1 + left**2 + (1 - left) ** 2)))


def _drawn(x: Array, y: Array, at: float, noise: float, known: int, rng: np.random.Generator) -> Array:
    """Values of the curve at `at`, (DRAWS,): cells of the grid by their fit, b about its best for the cell.

    The noise's size is open, too: `known` points that lie off by `noise` stand beside the real ones (Student's t).
    """
    levels_A = LEVELS * y.max()
    z_CP = (x / x[0]) ** -EXPONENTS[:, None]
    rest_AP = y - levels_A[:, None]
    zz_C1 = (z_CP**2).sum(axis=1, keepdims=True)
    zr_CA = z_CP @ rest_AP.T
    b_CA = np.maximum(zr_CA / zz_C1, 0.0)
    squares_CA = np.maximum((rest_AP**2).sum(axis=1) - 2 * b_CA * zr_CA + b_CA**2 * zz_C1, 0.0) + known * noise**2
    degrees = len(x) - 1 + known
    log_CA = -0.5 * np.log(zz_C1) - 0.5 * degrees * np.log(squares_CA)
    share_CA = np.exp(log_CA - log_CA.max())
    cell = rng.choice(share_CA.size, DRAWS, p=share_CA.ravel() / share_CA.sum())
    c, level = np.divmod(cell, len(LEVELS))
    a = levels_A[level] + (rng.random(DRAWS) - 0.5) * y.max() / len(LEVELS)
    doubt_CA = np.sqrt(squares_CA / degrees / zz_C1)
    b = np.maximum(b_CA.ravel()[cell] + doubt_CA.ravel()[cell] * rng.standard_t(degrees, DRAWS), 0.0)
    return a + b * (0.0 if math.isinf(at) else (at / x[0]) ** -EXPONENTS[c])
