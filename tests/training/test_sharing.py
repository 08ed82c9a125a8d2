"""A step's passes dealt among ranks: every example counts once, whole batches stay whole where they can."""

from __future__ import annotations

import pytest

import halka
from halka.training import Ranks, TrainConfig
from halka.training.job import EncodedJob
from halka.training.run import Run
from halka.training.sharing import own_passes
from training_for_tests import items, model_for


@pytest.fixture(scope="module")
def run() -> Run:
    return Run(model_for(halka.LoRA(rank=2)), EncodedJob("a", [*items(12)], TrainConfig(batch_size=3)))


@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("passes", [1, 2, 3, 4, 5])
def test_every_example_counts_once_and_ranks_make_as_many_passes(run: Run, passes: int, count: int):
    step = [{run: items(3, seed=seed)} for seed in range(passes)]
    dealt = [[*own_passes(step, Ranks(rank, count))] for rank in range(count)]
    assert len({len(own) for own in dealt}) == 1
    counted = [item.ids for own in dealt for shared, idle in own for item in shared[run] if run not in idle]
    assert sorted(counted) == sorted(item.ids for shared in step for item in shared[run])
    whole = [shared for own in dealt for shared, _ in own if shared in step]
    assert len(whole) >= passes // count * count


def test_ranks_make_passes_of_the_same_runs_at_a_time(run: Run):
    other = Run(run.model, EncodedJob("a", run.items, run.config))
    step = [{run: items(9)}, {other: items(2)}, {run: items(1), other: items(1)}, {other: items(3), run: items(3)}]
    dealt = [[{*shared} for shared, _ in own_passes(step, Ranks(rank, 2))] for rank in range(2)]
    assert dealt[0] == dealt[1] == [{run}, {other}, {run, other}]


def test_a_rank_without_examples_makes_a_pass_that_counts_nothing(run: Run):
    ((first, counts), (second, idle)) = (next(own_passes([{run: items(1)}], Ranks(rank, 2))) for rank in range(2))
    assert first[run] == second[run]
    assert (counts, idle) == (set(), {run})
