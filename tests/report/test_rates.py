"""The best rate between those tried, and what two methods' sweeps say of each other, seed by seed."""

from __future__ import annotations

import math

import pytest

from halka.report.rates import at_edge, best_rate, best_rates, loss_gaps, losses_of, over_seeds, rate_ratio


def bowl(best: float, rates: tuple[float, ...], floor: float = 0.1) -> dict[float, float]:
    """Losses of a parabola over the logarithm of the rate, lowest at `best`."""
    return {rate: floor + 0.05 * math.log(rate / best) ** 2 for rate in rates}


@pytest.mark.parametrize("best", [1.2e-3, 2e-3, 2.7e-3])
def test_the_best_rate_lies_between_those_tried(best):
    for rates in ((5e-4, 1e-3, 2e-3, 4e-3), (3e-4, 1e-3, 2e-3, 8e-3)):
        assert best_rates({0: bowl(best, rates)}) == {0: pytest.approx(best)}


def test_at_an_edge_the_best_rate_is_the_edge():
    lower = {0: bowl(1e-4, (1e-3, 2e-3, 4e-3))}
    assert (best_rates(lower), at_edge(lower)) == ({0: 1e-3}, True)
    level = {0: {1e-3: 0.1, 2e-3: 0.1, 4e-3: 0.1}}
    assert (best_rates(level), at_edge(level)) == ({0: 1e-3}, True)
    assert not at_edge({0: bowl(2e-3, (1e-3, 2e-3, 4e-3))})


def test_a_seeds_best_rate_may_lie_a_step_beyond_those_around_the_best_in_the_mean():
    rates = (1e-3, 2e-3, 4e-3)
    losses = {seed: bowl(2e-3, rates) for seed in range(4)}
    losses |= {4: bowl(8e-4, rates), 5: dict(zip(rates, (0.1, 0.112, 0.115), strict=True))}
    assert best_rates(losses) == pytest.approx({**dict.fromkeys(range(4), 2e-3), 4: 8e-4, 5: 5e-4})


def test_a_ratio_is_of_seeds_and_its_interval_holds_them():
    one = {0: bowl(2e-3, (1e-3, 2e-3, 4e-3)), 1: bowl(2.2e-3, (1e-3, 2e-3, 4e-3)), 2: bowl(1e-3, (1e-3, 2e-3))}
    other = {0: bowl(2e-4, (1e-4, 2e-4, 4e-4)), 1: bowl(2e-4, (1e-4, 2e-4, 4e-4))}
    ratio = rate_ratio(one, other)
    assert ratio.value == pytest.approx(math.sqrt(10 * 11))
    assert ratio.low < 10 < 11 < ratio.high


def test_a_gap_is_at_each_ones_best_rate():
    one = {seed: bowl(2e-3, (1e-3, 2e-3), floor=0.3 + seed / 100) for seed in (0, 1, 2)}
    other = {seed: bowl(1e-3, (1e-3, 2e-3), floor=0.1 + seed / 100) for seed in (0, 1, 2)}
    assert loss_gaps(one, other) == pytest.approx({0: 0.2, 1: 0.2, 2: 0.2})


def test_the_best_rate_is_one_that_every_seed_has_tried():
    assert best_rate({0: {1e-3: 0.3, 2e-3: 0.2, 4e-3: 0.1}, 1: {1e-3: 0.3, 2e-3: 0.2}}) == 2e-3


def test_one_seed_has_no_bounds():
    alone = over_seeds([0.5])
    assert (alone.value, alone.low, alone.high) == (0.5, -math.inf, math.inf)


def test_losses_are_of_finished_runs_with_a_finite_loss():
    runs = [
        {"status": "done", "lr": 1e-3, "seed": 0, "validation_loss": 0.5},
        {"status": "done", "lr": 2e-3, "seed": 0, "validation_loss": None},
        {"status": "failed", "lr": 4e-3, "seed": 0},
        {"status": "done", "lr": 1e-3, "seed": 1, "validation_loss": 0.4},
    ]
    assert losses_of(runs) == {0: {1e-3: 0.5}, 1: {1e-3: 0.4}}
