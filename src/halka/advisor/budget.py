"""The advisor's time: the work that there is, what it costs on this machine with these data, and the plan that fits.

The plan is the first of `plans` that fits into the seconds that are left; each of them does one thing less than the one
before, the least important first. Work is timed as it is done (`Budget.portions`), and what is late ends early.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from halka.advisor.evidence import BOTH, CLOSED, DOCUMENTS, EXAMPLES, Condition
from halka.advisor.words import CONDITIONS

Clock = Callable[[], float]
"""Seconds that pass, from any beginning."""

PLANNED = 0.9  # share of the time that is planned; the rest is for what takes longer
PORTION = 0.05  # share of the time after which the clock is read again
FEW, FEWEST = 16, 8  # held-out examples, before and after more important things are cut
SHORT, SHORTEST = 12, 6  # steps, likewise
CURVE, SHORT_CURVE = 6, 3  # evaluations of a trial, with which its curve is extrapolated
ROWS = (4, 2)  # examples a step, where there is no time for more
LEVELS = 12  # of held-out examples and steps above the few and the short

# Before it is timed, work is estimated from the base's losses and answers:
TRAINING = 4.0  # a training step in losses: forward, twice as much back, the adapter
EVALUATING, ANSWERING = 1.3, 1.5  # with an adapter, in what it takes without
FULL_STEP = 2.0  # a step of full fine-tuning in steps of an adapter


class OutOfTimeError(Exception):
    """There is no time for a probe; the message says what it would take."""


# ── the work ────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class TrialPlan:
    """A trial before it runs: `share` of the training examples, at `rate` times the learning rate where none is set."""

    name: str
    method: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    rate: float = 1.0
    share: float = 1.0
    passages: bool = False

    @property
    def condition(self) -> Condition:
        return "documents" if self.passages else "closed"

    def count(self, examples: int) -> int:
        """How many of the training examples it is given."""
        return max(1, round(self.share * examples))


LORA = {"rank": 16}
LOW, HIGH = 0.5, 2  # learning rates, as multiples of that where none is set
TRIALS = (
    TrialPlan("LoRA", "lora", LORA, rate=LOW),
    TrialPlan("LoRA, higher rate", "lora", LORA, rate=HIGH),
    TrialPlan("LoRA, half of the data", "lora", LORA, rate=HIGH, share=0.5),
    TrialPlan("LoRA, a quarter of the data", "lora", LORA, rate=HIGH, share=0.25),
    TrialPlan("bottleneck", "bottleneck"),
)
"""The most important first: where time is short the last ones are left out. A curve over data needs the higher rate.

LoRA of rank 16 and the bottleneck are among the best of the light methods on the four sets of docs/evidence.md.
"""
FULL = TrialPlan("full fine-tuning", "full", rate=LOW)
WITH_PASSAGES = TrialPlan("LoRA with passages", "lora", LORA, rate=HIGH, passages=True)


@dataclass(frozen=True)
class PilotConfig:
    """What the pilot trains.

    trials         the runs, the most important first; `WITH_PASSAGES` is added where there are documents
    steps          of each run, fewer where the time is short
    batch_tokens   limits a run's batch; the batches of all runs are in memory at once
    """

    trials: tuple[TrialPlan, ...] = TRIALS
    steps: int = 48
    batch_tokens: int = 2048

    def all_trials(self, *, documents: bool) -> tuple[TrialPlan, ...]:
        """With documents, the trial with passages is the second in importance."""
        return (*self.trials[:1], *([WITH_PASSAGES] if documents else []), *self.trials[1:])


@dataclass(frozen=True)
class WorkPlan:
    """What is done in the time.

    held_out     examples that are asked under each of the conditions, and by each trial
    passages     passages in a prompt
    trials       of the pilot, the most important first, with so many rows (examples) a step, steps and evaluations
    """

    held_out: int
    conditions: tuple[Condition, ...]
    passages: int = 0
    trials: tuple[TrialPlan, ...] = ()
    rows: int = 8
    steps: int = 48
    evaluations: int = CURVE


@dataclass
class Costs:
    """Seconds by the latest timing or, where there is none yet, an estimate. Saved, so that resuming times nothing.

    losses, answers   of a held-out example by the base, by condition
    tokens            of a prompt with its answer, by condition, with `passages` passages
    batch_tokens      the most tokens of a trial's step
    training          a row of a training step in losses of the same prompt, by condition
    """

    losses: dict[str, float] = field(default_factory=dict)
    answers: dict[str, float] = field(default_factory=dict)
    tokens: dict[str, float] = field(default_factory=dict)
    passages: int = 0
    batch_tokens: int = 2048
    training: dict[str, float] = field(default_factory=dict)

    def seconds(self, plan: WorkPlan, done: Collection[str] = ()) -> float:
        """What the plan takes, without the conditions under which the base was asked already."""
        asked = sum(self.asking(condition, plan) for condition in plan.conditions if condition not in done)
        training = plan.steps * sum(self.step(trial, plan) for trial in plan.trials)
        return asked + training + plan.evaluations * self.evaluation(plan) + self.closing(plan)

    def asking(self, condition: Condition, plan: WorkPlan) -> float:
        """Losses and answers of the base to all held-out examples."""
        return plan.held_out * (self._of(self.losses, condition, plan) + self._of(self.answers, condition, plan))

    def step(self, trial: TrialPlan, plan: WorkPlan) -> float:
        """A step of one trial."""
        return self.rows(trial, plan) * self.training_of(trial) * self._of(self.losses, trial.condition, plan)

    def rows(self, trial: TrialPlan, plan: WorkPlan) -> int:
        """The rows of its step: fewer where they are long."""
        length = self._scale(trial.condition, plan) * self.tokens.get(trial.condition, 0.0)
        return min(plan.rows, max(1, int(self.batch_tokens / length))) if length else plan.rows

    def training_of(self, trial: TrialPlan) -> float:
        """A row of its step, in losses."""
        return self.training.get(trial.condition, TRAINING) * (FULL_STEP if trial.method == "full" else 1.0)

    def evaluation(self, plan: WorkPlan) -> float:
        """The held-out losses of all trials."""
        losses = sum(self._of(self.losses, trial.condition, plan) for trial in plan.trials)
        return plan.held_out * EVALUATING * losses

    def answering(self, trials: Sequence[TrialPlan], plan: WorkPlan) -> float:
        """The answers of these trials to all held-out examples."""
        return plan.held_out * ANSWERING * sum(self._of(self.answers, trial.condition, plan) for trial in trials)

    def closing(self, plan: WorkPlan) -> float:
        """What follows the pilot's training: losses and answers of its trials."""
        return self.evaluation(plan) + self.answering(plan.trials, plan)

    def _of(self, costs: dict[str, float], condition: str, plan: WorkPlan) -> float:
        return self._scale(condition, plan) * costs.get(condition, 0.0)

    def _scale(self, condition: str, plan: WorkPlan) -> float:
        """The share of a prompt's tokens that is left with the plan's passages."""
        without = {DOCUMENTS: CLOSED, BOTH: EXAMPLES}.get(condition)
        if without is None or plan.passages >= self.passages or not self.tokens.get(condition):
            return 1.0
        passages = max(0.0, 1 - self.tokens.get(without, 0.0) / self.tokens[condition])
        return 1 - passages * (1 - plan.passages / self.passages)


COUNTED = {
    "held_out": "held-out examples",
    "passages": "passages in a prompt",
    "rows": "examples a training step",
    "steps": "training steps",
    "evaluations": "evaluations of a trial",
}
"""The plan's numbers, as reports call them."""


# ── what is cut, in which order ─────────────────────────────────────────────────────────────────────────────────────


def plans(full: WorkPlan) -> Iterator[WorkPlan]:
    """The full plan, then plans that each cut one thing more.

    In this order: held-out examples to 16 and steps to 12, together; half of the evaluations; trials from the last on
    but for the first and the one with passages; rows a step; prompts with both examples and passages; half of the
    held-out examples and steps again; all passages but one; the trial with passages; the pilot; prompts with passages;
    prompts with examples; all.
    """
    yield (plan := full)
    for level in reversed(range(LEVELS)):
        held_out, steps = _between(FEW, full.held_out, level), _between(SHORT, full.steps, level)
        yield (plan := replace(full, held_out=held_out, steps=steps))
    yield (plan := replace(plan, evaluations=min(SHORT_CURVE, plan.evaluations)))
    for trial in reversed(full.trials[1:]):
        if not trial.passages:
            yield (plan := _without(plan, trial))
    for rows in ROWS:
        yield (plan := replace(plan, rows=min(rows, plan.rows)))
    yield (plan := _unasked(plan, BOTH))
    yield (plan := replace(plan, held_out=min(FEWEST, plan.held_out), steps=min(SHORTEST, plan.steps)))
    if plan.conditions:  # else they were settled before
        yield (plan := replace(plan, passages=min(1, plan.passages)))
    for trial in reversed(plan.trials):
        yield (plan := _without(plan, trial))
    for condition in (DOCUMENTS, EXAMPLES, CLOSED):
        yield (plan := _unasked(plan, condition))


def affordable(full: WorkPlan, costs: Costs, seconds: float, done: Collection[str] = ()) -> WorkPlan:
    """The first plan that takes at most so many seconds; the empty one in the end."""
    plan = full
    for plan in plans(full):
        if costs.seconds(plan, done) <= seconds:
            return plan
    return plan


def differences(full: WorkPlan, plan: WorkPlan) -> dict[str, str]:
    """What the plan leaves out, in a sentence each, by its name."""
    cuts: dict[str, str] = {}
    for name, what in COUNTED.items():
        if (planned := getattr(plan, name)) < (most := getattr(full, name)):
            cuts[name] = f"{planned} of {most} {what}"
    for condition in full.conditions:
        if condition not in plan.conditions:
            cuts[condition] = f"no prompts {CONDITIONS[condition]}"
    for trial in full.trials:
        if trial not in plan.trials:
            cuts[trial.name] = f"no trial of {trial.name}"
    return cuts


def _between(least: int, most: int, level: int) -> int:
    return most if most <= least else least + (most - least) * level // LEVELS


def _without(plan: WorkPlan, trial: TrialPlan) -> WorkPlan:
    return replace(plan, trials=tuple(other for other in plan.trials if other is not trial))


def _unasked(plan: WorkPlan, condition: Condition) -> WorkPlan:
    return replace(plan, conditions=tuple(other for other in plan.conditions if other != condition))


# ── while it runs ───────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Budget:
    """The seconds that probes have, by a clock, and what work costs.

    spent     seconds by probe; those of the one that runs come at its end
    costs     timed as work is done
    done      conditions under which the base was asked, of those that were planned
    cuts      what was left out or ended early, in sentences, by its name
    """

    seconds: float = math.inf
    clock: Clock = time.perf_counter
    spent: dict[str, float] = field(default_factory=dict)
    costs: Costs = field(default_factory=Costs)
    done: set[str] = field(default_factory=set)
    cuts: dict[str, str] = field(default_factory=dict)
    planned: WorkPlan | None = None
    _started: float | None = None

    @contextmanager
    def running(self, probe: str) -> Iterator[None]:
        """A probe runs in the block; other work, such as loading the base, takes nothing of the budget."""
        self._started = self.clock()
        try:
            yield
        finally:
            self.spent[probe] = self.spent.get(probe, 0.0) + self.clock() - self._started
            self._started = None

    @property
    def left(self) -> float:
        running = 0.0 if self._started is None else self.clock() - self._started
        return self.seconds - sum(self.spent.values()) - running

    def plan(self, full: WorkPlan) -> WorkPlan:
        """What of the full plan there is time for."""
        self.planned = affordable(full, self.costs, PLANNED * self.left, self.done)
        return self.planned

    def reserve(self, condition: Condition, *, answers: bool) -> float:
        """The seconds of what is planned after the losses, or the answers, under a condition, with a short pilot.

        Its steps are estimated before one is timed, and are cut first: answers do not wait for more of them. What is
        left by then is planned as all time is, so that a short pilot of all trials fits.
        """
        if self.planned is None:
            return 0.0
        steps, evaluations = min(SHORT, self.planned.steps), min(SHORT_CURVE, self.planned.evaluations)
        short = replace(self.planned, steps=steps, evaluations=evaluations)
        later = self.costs.seconds(short, self.done | {condition}) / PLANNED
        return later + (0.0 if answers else self.planned.held_out * self.costs.answers.get(condition, 0.0))

    def portions(
        self,
        costs: dict[str, float],
        key: str,
        start: int,
        end: int,
        reserve: float = 0.0,
        factor: float = 1.0,
        first: int = 0,
    ) -> Iterator[range]:
        """Ranges of the examples from `start` to `end`, in order, as long as there is time; each is timed while used.

        The first range is never empty. One example takes `factor` times `costs[key]`, which is learned here.

        reserve   seconds to be left for other work, but for the `first` examples, which come before it
        """
        begin = start
        while start < end:
            one = factor * costs.get(key, 0.0)
            count = self._fitting(one, end - start, self.left - reserve)
            if start < first:
                count = max(count, self._fitting(one, min(first, end) - start, self.left))
            if not count and start > begin:
                return
            begun, count = self.clock(), max(1, count)
            yield range(start, start + count)
            costs[key] = (self.clock() - begun) / count / factor
            start += count

    def _fitting(self, one: float, count: int, left: float) -> int:
        """How many of so many examples are worked on before the clock is read again, in the seconds that are left."""
        if left < math.inf and one > 0:
            return max(0, min(count, max(1, int(PORTION * self.seconds / one)), int(left / one)))
        return count if left > 0 else 0

    def cut(self, what: str, done: int, planned: int) -> None:
        """Remember work that was ended early, if it was."""
        if done < planned:
            self.cuts[what] = f"{what} ended early: {done} of {planned}"
        else:
            self.cuts.pop(what, None)
