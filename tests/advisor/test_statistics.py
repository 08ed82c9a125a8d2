"""Intervals of losses and of curves' ends hold the truth about as often as they say; Cohen's kappa by hand."""

from __future__ import annotations

import math
import random
from itertools import pairwise

import numpy as np
import pytest

from halka.advisor.statistics import are_labels, extrapolate, kappa, lowest_before_rising, mean_interval

DRAWS = 200


def power_law(rng):
    """A curve as learning curves are: its first point is at 10."""
    a, b = rng.uniform(0.2, 2.0), rng.uniform(0.5, 2.5)
    c = math.exp(rng.uniform(math.log(0.1), math.log(1.5)))
    return lambda x: a + (0 if math.isinf(x) else b * (x / 10) ** -c)


def seen(curve, places, noise, rng):
    return [(x, max(curve(x) + rng.normal(0, noise), 0.0)) for x in places]


# ---- interval ----


def test_the_mean_is_a_token_s_not_an_example_s():
    losses, tokens = [1.0, 4.0], [30, 10]
    found = mean_interval(losses, tokens)
    assert found.value == pytest.approx((30 + 40) / 40)
    assert (found.low, found.high, found.n) == (1.0, 4.0, 2)
    assert mean_interval(losses, [1, 1]).value == pytest.approx(2.5)


def test_the_interval_of_a_mean_holds_the_truth():
    held = 0
    for draw in range(DRAWS):
        rng = np.random.default_rng(draw)
        tokens = rng.integers(1, 20, 40)
        losses = rng.gamma(4.0, 0.5, 40)  # their mean is 2
        found = mean_interval(losses.tolist(), tokens.tolist(), seed=draw, resamples=300)
        held += found.low <= 2.0 <= found.high
        assert found.high - found.low < 1.5
    assert held >= 0.88 * DRAWS


def test_one_item_is_no_certainty_and_many_alike_are_some():
    one, many = mean_interval([2.0], [1]), mean_interval([2.0] * 100, [1] * 100)
    assert (one.value, one.n) == (2.0, 1)
    assert one.low == pytest.approx(0.1)
    assert one.high == pytest.approx(3.9)
    assert 1.9 < many.low < 2.0 < many.high < 2.1
    nothing = mean_interval([0.0], [1])
    assert nothing.low == 0.0
    assert nothing.high == pytest.approx(0.95)
    below = mean_interval([-0.2], [1])
    assert below.low < -1 < 0 < below.high, "one item gives no sign"


@pytest.mark.parametrize(("values", "weights"), [([], []), ([math.nan], [1])])
def test_what_has_no_mean_is_refused(values, weights):
    with pytest.raises(ValueError, match="weight"):
        mean_interval(values, weights)


# ---- extrapolated ----


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize(
    ("places", "noise", "width"),
    [
        (10 * 2.0 ** np.arange(3), 0.02, (0.5, 2.0)),
        (10 * 2.0 ** np.arange(5), 0.02, (0.3, 1.5)),
        (10.0 * np.arange(1, 11), 0.02, (0.25, 1.5)),
    ],
)
@pytest.mark.parametrize("far", [4, math.inf])
def test_the_interval_holds_the_truth_and_is_not_absurdly_wide(places, noise, width, known, far):
    """The starting point lies 0.5 to 2.5 above the end, 1.5 in the median."""
    held, widths = 0, []
    for draw in range(DRAWS):
        rng = np.random.default_rng(draw)
        curve = power_law(rng)
        at = float(places[-1]) * far
        found = extrapolate(seen(curve, places.tolist(), noise, rng), at, noise if known else 0.0)
        assert found.low <= found.value <= found.high
        held += found.low <= curve(at) <= found.high
        widths.append(found.high - found.low)
    assert held >= 0.85 * DRAWS
    assert np.median(widths) < width[math.isinf(far)]


def test_ten_exact_points_tell_the_end():
    points = [(x, 1.0 + 2.0 * x**-0.5) for x in range(10, 110, 10)]
    found = extrapolate(points, 1000)
    assert found.value == pytest.approx(1.0 + 2.0 * 1000**-0.5, abs=0.01)
    assert found.high - found.low < 0.05
    assert found.n == 10
    assert extrapolate(points, math.inf).value == pytest.approx(1.0, abs=0.05)


def test_two_points_tell_a_range():
    found = extrapolate([(10, 3.0), (20, 2.5)], 80)
    for c in (0.1, 0.5, 1.0, 1.9):
        for a in (0.0, 1.0):
            b = 0.5 / (10**-c - 20**-c)
            level = 3.0 - b * 10**-c
            if level >= a:
                assert found.low <= level + b * 80**-c <= found.high
    assert found.high - found.low > 0.4


def test_less_than_two_places_tell_nothing():
    assert extrapolate([], 10) is None
    assert extrapolate([(10, 3.0)], 20) is None
    assert extrapolate([(10, 3.0), (10, 2.9)], 20) is None


def test_distance_and_few_points_widen():
    points = [(10 * 2**k, 1.0 + 2.0 * 2 ** (-0.5 * k)) for k in range(6)]
    widths = [(e := extrapolate(points, at, 0.02)).high - e.low for at in (320, 640, 1280, 5000, math.inf)]
    assert all(near < far for near, far in pairwise(widths))
    widths = [(e := extrapolate(points[6 - kept :], 1280, 0.02)).high - e.low for kept in (6, 4, 3, 2)]
    assert all(more < fewer for more, fewer in pairwise(widths))


def test_what_falls_is_not_expected_to_rise():
    """Above the last point by the noise at most, and a value farther off is no higher."""
    for draw in range(50):
        rng = np.random.default_rng(draw)
        points = sorted(seen(power_law(rng), [10, 20, 40, 80, 160], 0.05, rng))
        if points[-1][1] > min(y for _, y in points) + 0.15:
            continue
        values = [extrapolate(points, at, 0.05).value for at in (200, 2000, math.inf)]
        assert values[0] <= points[-1][1] + 0.05
        assert values == sorted(values, reverse=True)


@pytest.mark.parametrize("noise", [0.0, 0.02])
def test_of_a_rising_tail_the_best_is_expected(noise):
    points = [(10, 3.0), (20, 2.0), (30, 1.5), (40, 1.3), (50, 1.4), (60, 1.6), (70, 1.9)]
    found = extrapolate(points, math.inf, noise)
    assert found.value == 1.3
    assert 1.0 < found.low < 1.3
    assert found.high >= 1.9


def test_a_tail_within_the_noise_does_not_rise():
    points = [(10, 3.0), (20, 2.0), (40, 1.50), (80, 1.30), (160, 1.33)]
    assert extrapolate(points, 640, 0.02).high < 1.5
    assert extrapolate(points, 640, 0.02).value < 1.33
    assert extrapolate(points, 640, 0.005).value == 1.30


@pytest.mark.parametrize("level", [0.0, 2.0])
def test_a_flat_curve_stays(level):
    found = extrapolate([(x, level) for x in (10, 20, 30, 40)], 160, 0.01)
    assert found.value == pytest.approx(level, abs=0.03)
    assert found.low - 0.01 <= level <= found.high + 0.01


def test_order_is_nothing_and_the_same_comes_out_again():
    points = [(10, 3.0), (20, 2.5), (40, 2.2), (40, 2.1)]
    assert extrapolate(points, 100, 0.05) == extrapolate(points[::-1], 100, 0.05)
    assert extrapolate(points, 100, 0.05).value == pytest.approx(extrapolate(points, 100, 0.05, 1).value, abs=0.03)


@pytest.mark.parametrize(
    ("points", "at", "noise", "told"),
    [
        ([(0, 3.0), (10, 2.0)], 20, 0.0, "x above 0"),
        ([(5, math.nan), (10, 2.0)], 20, 0.0, "finite"),
        ([(5, -1.0), (10, 2.0)], 20, 0.0, "finite"),
        ([(5, 3.0), (10, 2.0)], 8, 0.0, "before the curve's last point"),
        ([(5, 3.0), (10, 2.0)], math.nan, 0.0, "before the curve's last point"),
        ([(5, 3.0), (10, 2.0)], 20, -1.0, "noise"),
    ],
)
def test_what_is_no_curve_is_refused(points, at, noise, told):
    with pytest.raises(ValueError, match=told):
        extrapolate(points, at, noise)


@pytest.mark.parametrize(
    ("points", "lowest"),
    [
        ([(10, 1.2), (12, 1.2003)], None),
        ([(12, 1.4), (10, 1.2)], 10),
        ([(0, 1.0), (10, 1.2), (12, 1.15)], None),
        ([(2, 2.0), (4, 1.6), (6, 1.45), (8, 1.5), (10, 1.6), (12, 1.8)], 6),
        ([(12, 1.0)], None),
        ([], None),
    ],
)
def test_a_curve_is_lowest_before_its_end_where_it_rises_by_more_than_noise(points, lowest):
    assert lowest_before_rising(points) == lowest
    real = [point for point in points if point[0] > 0]
    found = extrapolate(real, 100) if len(real) > 1 else None
    if found is not None:
        assert (found.value == min(loss for _, loss in real)) == (lowest is not None)


# ---- agreement of labels ----


def test_a_table_by_hand():
    """20 yes/yes, 5 yes/no, 10 no/yes, 15 no/no: 0.7 seen, 0.5·0.6 + 0.5·0.4 = 0.5 by chance, so 0.4."""
    first = ["yes"] * 25 + ["no"] * 25
    second = ["yes"] * 20 + ["no"] * 5 + ["yes"] * 10 + ["no"] * 15
    assert kappa(first, second) == pytest.approx(0.4)
    assert kappa(second, first) == pytest.approx(0.4)


def test_three_classes_by_hand():
    """2 of 4 seen; by chance (2·1 + 1·2 + 1·1) / 16 = 5/16; so (8 - 5) / (16 - 5)."""
    assert kappa(["a", "a", "b", "c"], ["a", "b", "b", "d"]) == pytest.approx((8 - 4) / (16 - 4))
    assert kappa(["a", "a", "b", "c"], ["a", "b", "b", "a"]) == pytest.approx((8 - 6) / (16 - 6))


def test_the_ends():
    assert kappa(["a", "b"], ["a", "b"]) == 1.0
    assert kappa(["a", "b"], ["b", "a"]) == -1.0


def test_chance_is_about_nothing_however_often_it_agrees():
    rng = random.Random(0)
    first, second = (rng.choices(["a", "b"], [9, 1], k=5000) for _ in range(2))
    assert sum(a == b for a, b in zip(first, second, strict=True)) > 4000
    assert abs(kappa(first, second)) < 0.05


def test_always_the_same_shows_nothing():
    assert kappa(["a"] * 5, ["a"] * 5) == 0.0
    assert kappa(["a"] * 5, ["a", "b", "a", "b", "b"]) == 0.0
    assert kappa(["a"] * 5, ["b"] * 5) == 0.0


def test_spelling_is_no_disagreement():
    assert kappa(["Yes.", " no", "card  lost"], ["yes", "'No'", "Card lost!"]) == 1.0


@pytest.mark.parametrize(("first", "second"), [([], []), (["a"], []), (["a"], ["a", "b"])])
def test_lists_that_do_not_match_are_refused(first, second):
    with pytest.raises(ValueError, match="same questions"):
        kappa(first, second)


def test_labels_are_few_and_short():
    assert are_labels(["yes", "no", "Yes.", "No", "yes", "no"])
    assert are_labels(["balance_not_updated_after_cheque_or_cash_deposit", "refund"] * 3)
    assert not are_labels(["yes", "no", "yes", "no", "maybe", "no"]), "each stands twice on average"
    assert not are_labels(["yes"] * 9), "one kind"
    assert not are_labels([])
    assert not are_labels(["a sentence that goes on for long " * 3, "another one"] * 10)
