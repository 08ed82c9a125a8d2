"""The pilot: short training runs side by side, which tell what training brings, with which method, and with more data.

All small adapters share forward passes. They differ in method, learning rate and number of examples; with documents one
more is trained on prompts with passages. Their held-out curves are extrapolated.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from halka.advisor.budget import EVALUATING, Budget, OutOfTimeError, PilotConfig, TrialPlan, WorkPlan, differences
from halka.advisor.evidence import Learnability, Trial
from halka.advisor.probed_base import ProbedBase, Report, TokenLosses
from halka.advisor.statistics import (
    HORIZON,
    agreement,
    are_labels,
    extrapolate,
    mean_loss,
)
from halka.evaluation.metrics import Score, mean_of
from halka.methods import build_method, described
from halka.models.rates import own_rate
from halka.training import Job, Observer, TrainConfig, as_tokens, batch_plan, train_many
from halka.training.run_folder import METRICS
from halka.util.errors import HalkaError, TrainingError
from halka.util.files import write_text

Curve = Sequence[tuple[int, float]]
"""(step, held-out loss)."""


def learnability(
    base: ProbedBase,
    budget: Budget,
    *,
    config: PilotConfig,
    batch_size: int = 8,
    checkpointing: bool = False,
    owned: int | None = None,
    folder: Path | None = None,
    progress: Report = lambda _: None,
) -> Learnability:
    """Train the trials that there is time for, generate their held-out answers, and extrapolate their curves.

    batch_size      examples of a step, fewer where they are long
    checkpointing   recompute activations, to need less memory
    owned           all training examples that the user has, of which the base may be given a part

    With a folder, an interrupted pilot resumes. Trials that fail are left out; raises TrainingError if all do,
    OutOfTimeError where there is no time for any.
    """
    started = budget.clock()
    trials = config.all_trials(documents=base.retrieve is not None)
    full = WorkPlan(len(base.held_out), (), base.passages, trials, batch_size, config.steps)
    pilot = _Pilot(base, budget, full, config, checkpointing, folder).planned()
    base, adapters = pilot.base, {f"pilot-{number}": plan for number, plan in enumerate(pilot.plan.trials)}
    jobs: dict[str, Job] = {}
    failed: dict[str, Exception] = {}
    try:
        for name, plan in adapters.items():
            try:
                jobs[name] = pilot.job(name, plan, pilot.plan.steps, folder)
            except HalkaError as error:  # the method cannot be used on this base
                failed[name] = error
        curves, stopped = pilot.train([*jobs.values()], progress)
        failed |= stopped
        remaining = {name: plan for name, plan in adapters.items() if name not in failed}
        for name, error in failed.items():
            progress(f"{adapters[name].name} failed: {error}")
        if not remaining:
            raise TrainingError(str(next(iter(failed.values()))))
        progress(f"answers of {len(remaining)} adapters")
        losses, answers = pilot.losses(remaining), pilot.answers(remaining)
        results = [
            pilot.trial(jobs[name], plan, curves[name], losses[name], answers[name]) for name, plan in remaining.items()
        ]
    finally:
        for name in adapters.keys() & base.model.adapters.keys():
            base.model.remove(name)
    budget.cut("steps of the pilot", max(trial.steps for trial in results), pilot.plan.steps)
    whole = [answers[name] for name, plan in remaining.items() if not plan.passages and plan.share == 1]
    examples = owned or len(base.train)
    expected, more = _over_data(results, examples)
    kappas, suspects = _agreement(base, whole)
    return Learnability(
        batch_size=pilot.plan.rows,
        seconds=budget.clock() - started,
        trials=tuple(results),
        times=HORIZON,
        more=more,
        agreement=kappas,
        suspects=suspects,
        examples=examples,
        owned=expected,
        failed=tuple(f"{adapters[name].name}: {error}" for name, error in failed.items()),
    )


class Pace(Observer):
    """Ends the trials with the steps that there is time for, the evaluation and answers after them included."""

    def __init__(self, budget: Budget, plan: WorkPlan):
        self.budget, self.reserve = budget, budget.costs.evaluation(plan) + budget.costs.closing(plan)
        self.begun, self.last, self.step, self.done = 0.0, plan.steps, 0, 0

    def last_step(self, step: int, steps: int) -> int:
        if step != self.step:  # the first of the trials that make it
            now, left = self.budget.clock(), self.budget.left - self.reserve
            if self.done:  # the first step also prepares what the others use
                one = (now - self.begun) / self.done
                self.last = min(self.last, step + int(min(max(0.0, left) / one, steps)) if one > 0 else steps)
            else:
                self.begun, self.last = now, self.last if left > 0 else step
            self.step, self.done = step, self.done + 1
        return self.last


@dataclass(frozen=True)
class _Pilot:
    """What all trials share."""

    base: ProbedBase
    budget: Budget
    plan: WorkPlan
    config: PilotConfig
    checkpointing: bool
    folder: Path | None

    def planned(self) -> _Pilot:
        """The pilot that there is time for, after timing steps; a resumed one is as it was planned first.

        Raises OutOfTimeError where there is no time for a trial.
        """
        budget, full, saved = self.budget, self.plan, None if self.folder is None else self.folder / "steps.json"
        if saved is not None and saved.exists():
            numbers = json.loads(saved.read_text(encoding="utf-8"))
            names = numbers.pop("trials")
            trials = tuple(trial for trial in full.trials if trial.name in names)
            plan = replace(full, **numbers, trials=trials)
            budget.cuts |= differences(full, plan)
            return self._with(plan)
        plan = budget.plan(full)
        if plan.trials:
            self._with(plan).time_steps()
            plan = budget.plan(full)
        if not plan.trials:
            one = budget.costs.step(full.trials[0], plan)
            raise OutOfTimeError(f"a training step takes about {one:.1f} s and {max(0.0, budget.left):.0f} s are left")
        budget.cuts |= differences(full, plan)
        if saved is not None:
            numbers = {name: getattr(plan, name) for name in ("held_out", "rows", "steps", "evaluations")}
            write_text(saved, json.dumps(numbers | {"trials": [trial.name for trial in plan.trials]}) + "\n")
        return self._with(plan)

    def _with(self, plan: WorkPlan) -> _Pilot:
        return replace(self, plan=plan, base=self.base.first(plan.held_out))

    def time_steps(self) -> None:
        """Train the first trial, and the one with passages, for some steps, to know what the last of them takes."""
        model, costs, clock = self.base.model, self.budget.costs, self.budget.clock
        for number, trial in enumerate(self.plan.trials):
            if number and not trial.passages:
                continue
            begun, ended, steps = clock(), clock(), 1 if number else 2
            try:
                job = replace(self.job("timed", trial, steps, None), validation=())
                for _ in train_many(model, [job]):
                    begun, ended = ended, clock()
            except HalkaError:  # reported when the trial is to be trained
                continue
            finally:
                if "timed" in model.adapters:
                    model.remove("timed")
            if (estimate := costs.step(trial, self.plan)) > 0:
                costs.training[trial.condition] = costs.training_of(trial) * (ended - begun) / estimate

    def job(self, name: str, plan: TrialPlan, steps: int, folder: Path | None) -> Job:
        """Add the plan's adapter to the model; returns what trains it. Raises HalkaError if the base refuses it."""
        base = self.base
        base.model.add(name, build_method(plan.method, dict(plan.fields)))
        every = max(1, steps // self.plan.evaluations)
        config = TrainConfig(
            lr=self.rate(name, plan),
            steps=steps,
            batch_size=self.plan.rows,
            batch_tokens=self.config.batch_tokens,
            checkpointing=self.checkpointing,
            evaluate_every=every,
            save_every=None if folder is None else every,
        )
        train = [base.prompt(example, plan.condition) for example in base.train[: self.count(plan)]]
        held_out = [base.tokens(prompt) for prompt in base.prompts(plan.condition)]
        return Job(name, train, config, held_out, None if folder is None else folder / name)

    def count(self, plan: TrialPlan) -> int:
        """Training examples that a trial is given: with passages those that its steps reach, as retrieving is slow."""
        count = plan.count(len(self.base.train))
        return min(count, self.plan.steps * self.budget.costs.rows(plan, self.plan)) if plan.passages else count

    def train(self, jobs: Sequence[Job], progress: Report) -> tuple[dict[str, Curve], dict[str, TrainingError]]:
        """Each job's held-out curve, and the errors. A resumed pilot's earlier points are read from its folder."""
        curves: dict[str, dict[int, float]] = {job.name: {} for job in jobs}
        failed: dict[str, TrainingError] = {}
        steps_of_all = train_many(self.base.model, jobs, observe=Pace(self.budget, self.plan))
        with closing(steps_of_all):  # interrupted here, it leaves a checkpoint
            for steps in steps_of_all:
                latest = None
                for name, step in steps.items():
                    if isinstance(step, TrainingError):
                        failed[name] = step
                        continue
                    latest = step
                    if step.validation is not None:
                        curves[name][step.step] = step.validation
                if latest is not None:
                    progress(f"training {len(jobs)} adapters: step {latest.step} of {latest.steps}")
        for job in jobs:
            metrics = None if job.folder is None else Path(job.folder) / METRICS
            if metrics is not None and metrics.exists():
                lines = map(json.loads, metrics.read_text(encoding="utf-8").splitlines())
                curves[job.name] |= {
                    line["step"]: line["validation"] for line in lines if line["validation"] is not None
                }
        return {name: sorted(curve.items()) for name, curve in curves.items()}, failed

    def losses(self, adapters: Mapping[str, TrialPlan]) -> dict[str, Score]:
        """Each trained adapter's held-out loss, of as many examples as there is time for."""
        base, budget, costs, scores = self.base, self.budget, self.budget.costs, dict[str, Score]()
        for name, plan in adapters.items():
            later = tuple(trial for other, trial in adapters.items() if other not in (*scores, name))
            reserve = costs.evaluation(replace(self.plan, trials=later)) + costs.answering(self.plan.trials, self.plan)
            losses, condition, total = list[TokenLosses](), plan.condition, len(base.held_out)
            for portion in budget.portions(costs.losses, condition, 0, total, reserve, EVALUATING):
                losses += base.losses(name, [base.prompt(base.held_out[index], condition) for index in portion])
            budget.cut(f"losses of {plan.name}", len(losses), total)
            scores[name] = mean_loss([own for _, own in losses])
        return scores

    def answers(self, adapters: Mapping[str, TrialPlan]) -> dict[str, list[str]]:
        """Each adapter's answers, of as many held-out examples as there is time for; all adapters share batches."""
        base, total, texts = self.base, len(self.base.held_out), {name: list[str]() for name in adapters}
        one = {"": self.budget.costs.answering([*adapters.values()], replace(self.plan, held_out=1))}
        done = 0
        for portion in self.budget.portions(one, "", 0, total):
            prompts = [base.prompt(base.held_out[i], plan.condition) for plan in adapters.values() for i in portion]
            answers = iter(base.answers([name for name in adapters for _ in portion], prompts))
            for own in texts.values():
                own += islice(answers, len(portion))
            done = portion.stop
        self.budget.cut("answers of the pilot's adapters", done, total)
        return texts

    def rate(self, name: str, plan: TrialPlan) -> float:
        """The learning rate of the plan's adapter, which the model has as `name`."""
        return own_rate(self.base.model, name) * plan.rate

    def trial(self, job: Job, plan: TrialPlan, curve: Curve, loss: Score, answers: Sequence[str]) -> Trial:
        """The result of a finished job."""
        base, (steps, _) = self.base, curve[-1]
        batches = batch_plan(base.model, as_tokens(base.model, job.examples, job.config, job.name), job.config)
        values = base.values(answers, plan.condition)
        adapter = base.model.adapter(job.name)
        method = described(adapter.method)
        return Trial(
            name=plan.name,
            method=method["name"],
            fields=method["fields"],
            lr=self.rate(job.name, plan),
            examples=self.count(plan),
            seen=sum(map(len, batches[:steps])),
            rows=_rows(sum(map(len, batches)), len(batches), self.plan.rows),
            passages=plan.passages,
            steps=steps,
            parameters=adapter.count(),
            curve=tuple(curve),
            loss=loss,
            expected=extrapolate([*curve], HORIZON * steps),
            score=mean_of(values),
            values=values,
        )


def _rows(examples: int, batches: int, most: int) -> int:
    """The batch size with as many steps an epoch as the pilot's batches make, which have fewer long examples."""
    return most if batches < 2 else min(most, math.ceil(examples / (batches - 1)) - 1)


def _over_data(trials: Sequence[Trial], owned: int) -> tuple[Score | None, Score | None]:
    """The losses expected from all `owned` examples, and from `HORIZON` times as many, by the curve over data size.

    None where no trial reached twice as many as another: then there is no curve. The first is None as well where the
    trials reached all examples.
    """
    loras = [trial for trial in trials if trial.method == "lora" and not trial.passages]
    whole = max((trial.examples for trial in loras), default=0)
    rates = {trial.lr for trial in loras if trial.examples < whole}
    points = [(float(trial.reached), trial.loss.value) for trial in loras if trial.lr in rates]
    sizes = sorted(size for size, _ in points)
    if not sizes or sizes[-1] < 2 * sizes[0]:
        return None, None
    return extrapolate(points, owned) if owned > sizes[-1] else None, extrapolate(points, HORIZON * owned)


def _agreement(
    base: ProbedBase, predictions: Sequence[Sequence[str]]
) -> tuple[tuple[float, float] | None, tuple[str, ...]]:
    """Kappas of trials on all examples with each other and with the labels; places where all contradict the label."""
    examples = (*base.train, *base.held_out)
    if len(predictions) < 2 or not are_labels([example.answers[0] for example in examples]):
        return None, ()
    labels = [answer for example in examples for answer in example.answers]
    asked = base.held_out[: len(predictions[0])]
    kappas, mistakes = agreement(predictions, [example.answers for example in asked], labels)
    places = [example.where or f"held-out example {number}" for number, example in enumerate(base.held_out, start=1)]
    return kappas, tuple(places[index] for index in mistakes)
