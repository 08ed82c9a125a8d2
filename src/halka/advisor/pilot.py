"""The pilot: short training runs side by side, which tell what training brings, with which method, and with more data.

All small adapters share forward passes. They differ in method, learning rate and number of examples; with documents one
more is trained on prompts with passages. Their held-out curves are extrapolated.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from halka.advisor.evidence import Condition, Learnability, Trial
from halka.advisor.probed_base import ProbedBase, Report
from halka.advisor.statistics import (
    HORIZON,
    agreement,
    are_labels,
    extrapolate,
    mean_loss,
)
from halka.evaluation.metrics import Score, mean_of
from halka.methods import build_method, described, method_named
from halka.training import Job, TrainConfig, as_tokens, batch_plan, train_many
from halka.training.run_folder import METRICS
from halka.util.errors import HalkaError, TrainingError
from halka.util.files import write_text

EVALUATIONS = 6  # of the held-out loss, in a trial


@dataclass(frozen=True)
class TrialPlan:
    """A trial before it runs: `share` of the training examples, at `rate` times the method's default learning rate."""

    name: str
    method: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    rate: float = 1.0
    share: float = 1.0
    passages: bool = False

    @property
    def condition(self) -> Condition:
        return "documents" if self.passages else "closed"

    @property
    def lr(self) -> float:
        return method_named(self.method).lr * self.rate

    def count(self, base: ProbedBase) -> int:
        """Training examples that it is given."""
        return max(1, round(self.share * len(base.train)))


LORA = {"rank": 16}
RATE = 4  # the higher learning rate of LoRA, as a multiple of the default
TRIALS = (
    TrialPlan("LoRA", "lora", LORA),
    TrialPlan("LoRA, higher rate", "lora", LORA, rate=RATE),
    TrialPlan("LoRA, half of the data", "lora", LORA, rate=RATE, share=0.5),
    TrialPlan("LoRA, a quarter of the data", "lora", LORA, rate=RATE, share=0.25),
    TrialPlan("bottleneck", "bottleneck", rate=2),
)
FULL = TrialPlan("full fine-tuning", "full")
WITH_PASSAGES = TrialPlan("LoRA with passages", "lora", LORA, rate=RATE, passages=True)


@dataclass(frozen=True)
class PilotConfig:
    """What the pilot trains.

    trials         the runs; `WITH_PASSAGES` is added where there are documents
    least_steps, most_steps   of each run, whatever the time allows
    batch_tokens   limits a run's batch; the batches of all runs are in memory at once
    """

    trials: tuple[TrialPlan, ...] = TRIALS
    least_steps: int = 12
    most_steps: int = 48
    batch_tokens: int = 2048


def learnability(
    base: ProbedBase,
    seconds: float,
    *,
    config: PilotConfig = PilotConfig(),
    batch_size: int = 8,
    checkpointing: bool = False,
    owned: int | None = None,
    folder: Path | None = None,
    progress: Report = lambda _: None,
) -> Learnability:
    """Train the trials for about `seconds`, generate their held-out answers, and extrapolate their curves.

    batch_size      examples of a step, fewer where they are long
    checkpointing   recompute activations, to need less memory
    owned           all training examples that the user has, of which the base may be given a part

    With a folder, an interrupted pilot resumes. Trials that fail are left out; raises TrainingError if all do.
    """
    started = time.perf_counter()
    pilot = _Pilot(base, config, batch_size, checkpointing, folder)
    plans = [*config.trials, *([WITH_PASSAGES] if base.retrieve is not None else [])]
    steps = pilot.steps(plans, seconds)
    adapters = {f"pilot-{number}": plan for number, plan in enumerate(plans)}
    jobs: dict[str, Job] = {}
    failed: dict[str, Exception] = {}
    try:
        for name, plan in adapters.items():
            try:
                jobs[name] = pilot.job(name, plan, steps, folder)
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
        answers = pilot.answers(remaining)
        trials = [pilot.trial(plan, jobs[name], steps, curves[name], answers[name]) for name, plan in remaining.items()]
    finally:
        for name in adapters.keys() & base.model.adapters.keys():
            base.model.remove(name)
    whole = [answers[name] for name, plan in remaining.items() if not plan.passages and plan.share == 1]
    examples = owned or len(base.train)
    expected, more = _over_data(trials, examples)
    kappas, suspects = _agreement(base, whole)
    return Learnability(
        batch_size=batch_size,
        seconds=time.perf_counter() - started,
        trials=tuple(trials),
        times=HORIZON,
        more=more,
        agreement=kappas,
        suspects=suspects,
        examples=examples,
        owned=expected,
    )


@dataclass(frozen=True)
class _Pilot:
    """What all trials share."""

    base: ProbedBase
    config: PilotConfig
    batch_size: int
    checkpointing: bool
    folder: Path | None

    def steps(self, plans: Sequence[TrialPlan], seconds: float) -> int:
        """As many steps of all trials as fit into the time, after timing one; a resumed pilot keeps its number."""
        saved = None if self.folder is None else self.folder / "steps.json"
        if saved is not None and saved.exists():
            return json.loads(saved.read_text(encoding="utf-8"))["steps"]
        model, names = self.base.model, [f"step-{number}" for number in range(len(plans))]
        try:
            jobs = []
            for name, plan in zip(names, plans, strict=True):
                with suppress(HalkaError):  # reported when the trial is to be trained
                    jobs.append(replace(self.job(name, plan, 1, None), validation=()))
            started = time.perf_counter()
            for _ in train_many(model, jobs) if jobs else ():
                pass
        finally:
            for name in {*names} & model.adapters.keys():
                model.remove(name)
        one = time.perf_counter() - started
        evaluations = one * EVALUATIONS * len(self.base.held_out) / self.batch_size / 3  # forward: a third of a step
        affordable = int((seconds - one - evaluations) / one)
        steps = min(self.config.most_steps, max(self.config.least_steps, affordable))
        if saved is not None:
            write_text(saved, json.dumps({"steps": steps}) + "\n")
        return steps

    def job(self, name: str, plan: TrialPlan, steps: int, folder: Path | None) -> Job:
        """Add the plan's adapter to the model; returns what trains it. Raises HalkaError if the base refuses it."""
        base = self.base
        base.model.add(name, build_method(plan.method, dict(plan.fields)))
        every = max(1, steps // EVALUATIONS)
        config = TrainConfig(
            lr=plan.lr,
            steps=steps,
            batch_size=self.batch_size,
            batch_tokens=self.config.batch_tokens,
            checkpointing=self.checkpointing,
            evaluate_every=every,
            save_every=None if folder is None else every,
        )
        train = [base.prompt(example, plan.condition) for example in base.train[: plan.count(base)]]
        held_out = [base.tokens(prompt) for prompt in base.prompts(plan.condition)]
        return Job(name, train, config, held_out, None if folder is None else folder / name)

    def train(
        self, jobs: Sequence[Job], progress: Report
    ) -> tuple[dict[str, list[tuple[int, float]]], dict[str, TrainingError]]:
        """Each job's held-out curve, and the errors. A resumed pilot's earlier points are read from its folder."""
        curves: dict[str, dict[int, float]] = {job.name: {} for job in jobs}
        failed: dict[str, TrainingError] = {}
        with closing(train_many(self.base.model, jobs)) as steps_of_all:  # interrupted here, it leaves a checkpoint
            for steps in steps_of_all:
                for name, step in steps.items():
                    if isinstance(step, TrainingError):
                        failed[name] = step
                        continue
                    progress(f"training {len(jobs)} adapters: step {step.step} of {step.steps}")
                    if step.validation is not None:
                        curves[name][step.step] = step.validation
        for job in jobs:
            metrics = None if job.folder is None else Path(job.folder) / METRICS
            if metrics is not None and metrics.exists():
                lines = map(json.loads, metrics.read_text(encoding="utf-8").splitlines())
                curves[job.name] |= {
                    line["step"]: line["validation"] for line in lines if line["validation"] is not None
                }
        return {name: sorted(curve.items()) for name, curve in curves.items()}, failed

    def answers(self, adapters: Mapping[str, TrialPlan]) -> dict[str, list[str]]:
        """Each adapter's answers to the held-out examples; all adapters share batches."""
        prompts = [prompt for plan in adapters.values() for prompt in self.base.prompts(plan.condition)]
        count = len(self.base.held_out)
        texts = self.base.answers([name for name in adapters for _ in range(count)], prompts)
        return {name: texts[number * count : (number + 1) * count] for number, name in enumerate(adapters)}

    def trial(
        self, plan: TrialPlan, job: Job, steps: int, curve: Sequence[tuple[int, float]], answers: Sequence[str]
    ) -> Trial:
        """The result of a finished job."""
        base = self.base
        losses = [loss for _, loss in base.losses(job.name, base.prompts(plan.condition))]
        values = base.values(answers, plan.condition)
        adapter = base.model.adapter(job.name)
        method = described(adapter.method)
        return Trial(
            name=plan.name,
            method=method["name"],
            fields=method["fields"],
            lr=plan.lr,
            examples=plan.count(base),
            seen=_reached(base, job),
            passages=plan.passages,
            steps=steps,
            parameters=adapter.count(),
            curve=tuple(curve),
            loss=mean_loss(losses),
            expected=extrapolate([*curve], HORIZON * steps),
            score=mean_of(values),
            values=values,
        )


def _reached(base: ProbedBase, job: Job) -> int:
    """Examples that a job's steps reach: fewer per step where they are long."""
    items = as_tokens(base.model, job.examples, job.config, job.name)
    batches = batch_plan(base.model, items, job.config)
    return sum(map(len, batches[: job.config.steps]))


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
    kappas, mistakes = agreement(predictions, [example.answers for example in base.held_out], labels)
    places = [example.where or f"held-out example {number}" for number, example in enumerate(base.held_out, start=1)]
    return kappas, tuple(places[index] for index in mistakes)
