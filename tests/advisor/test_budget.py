"""The advisor's time, without waiting: plans fit any data and machine, cuts come in order, what is late ends."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from halka.advisor.budget import (
    EVALUATING,
    FULL,
    PLANNED,
    TRIALS,
    Budget,
    Costs,
    PilotConfig,
    WorkPlan,
    affordable,
    differences,
    plans,
)
from halka.advisor.evidence import BOTH, CLOSED, CONDITIONS, DOCUMENTS, EXAMPLES
from halka.advisor.pilot import Pace

MINUTES = st.floats(1, 30)
SPEED = st.floats(1e-5, 1.0)  # seconds a token: from a GPU to a base that is far too large
LENGTH = st.integers(8, 8000)


def full_plan(*, documents: bool, held_out: int = 48, rows: int = 8, full: bool = True) -> WorkPlan:
    trials = PilotConfig((*TRIALS, *([FULL] if full else []))).all_trials(documents=documents)
    asked = CONDITIONS if documents else (CLOSED, EXAMPLES)
    return WorkPlan(held_out, asked, 3 if documents else 0, trials, rows)


@st.composite
def shapes(draw: st.DrawFn) -> tuple[WorkPlan, Costs]:
    """Short and long prompts, with documents and without, on slow and fast machines."""
    documents, token, new = draw(st.booleans()), draw(SPEED), draw(st.integers(1, 512))
    closed = draw(LENGTH)
    tokens = {CLOSED: closed, EXAMPLES: closed * 5}
    if documents:
        tokens |= {DOCUMENTS: closed + draw(LENGTH), BOTH: closed * 3 + draw(LENGTH)}
    losses = {name: token * length for name, length in tokens.items()}
    answers = {name: seconds + token * new * draw(st.floats(1, 32)) for name, seconds in losses.items()}
    costs = Costs(losses, answers, {name: float(length) for name, length in tokens.items()}, 3 if documents else 0)
    return full_plan(documents=documents, held_out=draw(st.integers(1, 48)), full=draw(st.booleans())), costs


@given(shape=shapes(), minutes=MINUTES)
def test_what_is_planned_fits_into_the_time(shape, minutes):
    full, costs = shape
    plan = affordable(full, costs, 60 * minutes)
    assert costs.seconds(plan) <= 60 * minutes
    assert set(differences(full, plan)) == changed(full, plan)  # what is cut is said


def changed(full: WorkPlan, plan: WorkPlan) -> set[str]:
    numbers = ("held_out", "passages", "rows", "steps", "evaluations")
    names = {name for name in numbers if getattr(full, name) != getattr(plan, name)}
    names |= {*full.conditions} - {*plan.conditions}
    return names | {trial.name for trial in full.trials if trial not in plan.trials}


@given(shape=shapes(), minutes=MINUTES, more=st.floats(1, 10))
def test_more_time_cuts_no_more(shape, minutes, more):
    full, costs = shape
    in_order = [*plans(full)]
    less, longer = (affordable(full, costs, 60 * time) for time in (minutes, minutes * more))
    assert in_order.index(longer) <= in_order.index(less)
    slower = Costs({name: 2 * seconds for name, seconds in costs.losses.items()}, costs.answers, costs.tokens, 3)
    assert in_order.index(affordable(full, slower, 60 * minutes)) >= in_order.index(less)


@given(shape=shapes())
def test_the_last_plan_takes_nothing_so_that_one_always_fits(shape):
    full, costs = shape
    assert [costs.seconds(plan) for plan in plans(full)][-1] == 0


@pytest.mark.parametrize("documents", [False, True])
def test_the_least_important_is_cut_first(documents):
    full = full_plan(documents=documents)
    in_order: list[str] = []
    for plan in plans(full):
        in_order += sorted(changed(full, plan) - {*in_order})
    trials = ["full fine-tuning", "bottleneck", "LoRA, a quarter of the data", "LoRA, half of the data"]
    first = ["held_out", "steps", "evaluations", *trials, "LoRA, higher rate", "rows"]
    with_documents = [BOTH, "passages", "LoRA with passages", "LoRA", DOCUMENTS]
    assert in_order == [*first, *(with_documents if documents else ["LoRA"]), EXAMPLES, CLOSED]


def test_few_held_out_examples_and_steps_are_kept_until_trials_are_gone():
    full = full_plan(documents=True)
    for plan in plans(full):
        if len(plan.trials) > 2:
            assert plan.held_out >= 16
            assert plan.steps >= 12
        assert plan.held_out >= 8
        assert plan.steps >= 6
    assert all(plan.held_out == 5 for plan in plans(replace(full, held_out=5)))  # no more are there


def test_fewer_passages_make_prompts_shorter():
    costs = Costs({DOCUMENTS: 4.0}, {DOCUMENTS: 8.0}, {CLOSED: 100.0, DOCUMENTS: 400.0}, passages=3)
    three, one = (WorkPlan(10, (DOCUMENTS,), passages) for passages in (3, 1))
    assert costs.seconds(three) == 120
    assert costs.seconds(one) == pytest.approx(60)  # 200 tokens of 400


def test_a_trials_step_has_as_many_rows_as_its_tokens_allow():
    long = Costs({CLOSED: 1.0}, {}, {CLOSED: 700.0}, batch_tokens=2048, training={CLOSED: 3.0})
    assert long.step(TRIALS[0], WorkPlan(8, (), rows=8)) == 6.0
    assert long.step(TRIALS[0], WorkPlan(8, (), rows=1)) == 3.0
    assert long.step(FULL, WorkPlan(8, (), rows=1)) == 6.0


# ── while it runs ───────────────────────────────────────────────────────────────────────────────────────────────────


class Clock:
    """Time passes as work is done."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def done(budget: Budget, clock: Clock, seconds: float, end: int, table: dict[str, float], **options) -> list[range]:
    """The portions that are done, if an example takes so many seconds."""

    def working() -> Iterator[range]:
        for portion in budget.portions(table, "work", 0, end, **options):
            clock.now += seconds * len(portion)
            yield portion

    with budget.running("probe"):
        return [*working()]


def test_work_is_timed_and_ends_where_the_time_does():
    clock, table = Clock(), {"work": 1.0}
    budget = Budget(100.0, clock)
    ranges = done(budget, clock, 4.0, 100, table, reserve=20.0)
    assert [index for portion in ranges for index in portion] == [*range(ranges[-1].stop)]  # in order, none twice
    assert table["work"] == 4.0
    assert 76 <= clock.now <= 80
    assert budget.left == pytest.approx(100 - clock.now)


def test_the_first_examples_come_before_other_work():
    clock = Clock()
    assert done(Budget(100.0, clock), clock, 5.0, 16, {"work": 5.0}, reserve=90.0)[-1].stop == 2
    clock.now = 0.0
    assert done(Budget(100.0, clock), clock, 5.0, 16, {"work": 5.0}, reserve=90.0, first=8)[-1].stop == 8
    clock.now = 0.0
    assert done(Budget(100.0, clock), clock, 5.0, 4, {"work": 5.0}, reserve=90.0, first=8)[-1].stop == 4  # are all
    clock.now = 0.0
    assert done(Budget(30.0, clock), clock, 5.0, 16, {"work": 5.0}, reserve=20.0, first=8)[-1].stop == 6  # in its time


def test_answers_do_not_wait_for_a_long_pilot():
    """Its steps are estimated before one is timed; what they turn out to take is cut from them."""
    costs = Costs({CLOSED: 0.1}, {CLOSED: 0.5}, training={CLOSED: 1.0})
    plan = WorkPlan(16, (CLOSED, EXAMPLES), trials=TRIALS[:2], rows=8, steps=48, evaluations=6)
    clock = Clock()
    budget = Budget(100.0, clock, costs=costs, planned=plan)
    reserve = budget.reserve(CLOSED, answers=True)
    assert reserve == pytest.approx(costs.seconds(replace(plan, steps=12, evaluations=3), {CLOSED}) / PLANNED)
    assert reserve < 100 - 16 * 0.5 < costs.seconds(plan, {CLOSED})
    assert done(budget, clock, 0.5, 16, costs.answers, reserve=reserve)[-1].stop == 16
    budget.planned = replace(plan, steps=6, evaluations=2)  # is no longer than planned
    assert budget.reserve(CLOSED, answers=True) == pytest.approx(costs.seconds(budget.planned, {CLOSED}) / PLANNED)


def test_slow_answers_leave_time_for_a_short_pilot_of_all_trials():
    costs = Costs({CLOSED: 0.1}, {CLOSED: 0.5}, training={CLOSED: 1.0})
    plan = WorkPlan(16, (CLOSED,), trials=TRIALS, rows=8, steps=48, evaluations=6)
    clock = Clock()
    budget = Budget(300.0, clock, costs=costs, planned=plan)
    reserve = budget.reserve(CLOSED, answers=True)
    slow = 1.2 * (budget.seconds - reserve) / 16
    assert done(budget, clock, slow, 16, {"work": slow}, reserve=reserve)[-1].stop < 16
    budget.done.add(CLOSED)
    assert budget.plan(plan).trials == TRIALS


def test_without_a_limit_or_a_cost_all_is_done_at_once():
    clock = Clock()
    assert done(Budget(clock=clock), clock, 4.0, 100, {"work": 1.0}) == [range(100)]
    assert done(Budget(10.0, clock), clock, 0.0, 100, {}) == [range(100)]


@given(seconds=st.floats(0.01, 30), estimate=st.floats(0.001, 100), minutes=MINUTES, before=st.floats(0, 1))
def test_work_is_over_by_a_portion_at_most(seconds, estimate, minutes, before):
    """However wrong the estimate is; a single example cannot be divided."""
    clock = Clock()
    budget = Budget(60 * minutes, clock, {"before": before * 60 * minutes})
    ranges = done(budget, clock, seconds, 48, {"work": estimate})
    first = len(ranges[0]) * seconds
    assert budget.seconds - budget.left <= max(budget.seconds, before * budget.seconds + first) * (1 + 1e-9)
    assert len(ranges[0]) == 1 or len(ranges[0]) * estimate <= 0.05 * budget.seconds * (1 + 1e-9)


def test_loading_takes_nothing_of_the_time():
    clock = Clock()
    budget = Budget(60.0, clock, {"strength": 10.0})
    clock.now += 1000
    assert budget.left == 50
    with budget.running("knowledge"):
        clock.now += 5
        assert budget.left == 45
    clock.now += 1000
    assert (budget.left, budget.spent) == (45, {"strength": 10.0, "knowledge": 5.0})


def test_what_ended_early_is_remembered_until_it_is_done():
    budget = Budget()
    budget.cut("answers", 3, 8)
    assert budget.cuts == {"answers": "answers ended early: 3 of 8"}
    budget.cut("answers", 8, 8)
    assert budget.cuts == {}


def trained(budget: Budget, clock: Clock, plan: WorkPlan, seconds: float) -> int:
    """The steps of a pilot of two trials whose steps take so long."""
    pace, step, last = Pace(budget, plan), 0, plan.steps
    while step < last:
        step += 1
        clock.now += seconds
        for _ in range(2):
            last = max(step, min(last, pace.last_step(step, last)))
    return step


def test_a_pilot_whose_steps_are_slow_gets_fewer_and_leaves_time_for_its_answers():
    clock, costs = Clock(), Costs({CLOSED: 1.0}, {CLOSED: 2.0}, {CLOSED: 50.0})
    plan = WorkPlan(4, (), trials=TRIALS[:2], steps=12)
    budget = Budget(100.0, clock, costs=costs)
    reserve = costs.closing(plan) + costs.evaluation(plan)
    assert reserve == pytest.approx(4 * 2 * (2 * EVALUATING + 3))
    with budget.running("learnability"):
        assert trained(budget, clock, plan, 3.0) == 12
    clock.now, budget.spent = 0.0, {}
    with budget.running("learnability"):
        steps = trained(budget, clock, plan, 7.0)
    assert 2 <= steps < 12
    assert 7 * steps <= 100 - reserve
    budget.spent = {"before": 99.0}
    with budget.running("learnability"):
        assert trained(budget, clock, plan, 7.0) == 1
