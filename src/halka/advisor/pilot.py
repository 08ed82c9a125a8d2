"""Probe: what the base learns of the data in a short time, by whom best, and whether more data would help.

Several small adapters are trained side by side in shared passes: two families, two learning rates, and less of the
data; with documents also one that is shown passages. Their held-out curves are extrapolated.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from halka.advisor.agreement import agreement, doubted, labels_said, of_few_kinds
from halka.advisor.conditions import CLOSED, DOCUMENTS
from halka.advisor.evidence import Learnability, Trial
from halka.advisor.questions import Questions
from halka.advisor.statistics import extrapolated, interval
from halka.advisor.thresholds import FARTHER
from halka.core import described
from halka.data.batches import plan as batched
from halka.evaluation.metrics import mean_of
from halka.methods import build_method
from halka.training import Job, TrainConfig, as_tokens, train_many
from halka.training.run_folder import METRICS
from halka.util.errors import TrainingError
from halka.util.files import write_text

Progress = Callable[[str], None]
LEAST_STEPS, MOST_STEPS = 12, 48
EVALUATIONS = 6
BATCH_TOKENS = 2048  # of a trial's batch: passages make prompts long, and all trials' batches are in memory at once
RAISED = 4  # the second learning rate, as a multiple of the method's own


@dataclass(frozen=True)
class Plan:
    """One trial before it is run: `share` of the training examples, at `rate` times the method's own learning rate."""

    name: str
    method: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    rate: float = 1.0
    share: float = 1.0
    passages: bool = False


LORA = {"rank": 16}
PLANS = (
    Plan("LoRA", "lora", LORA),
    Plan("LoRA, higher rate", "lora", LORA, rate=RAISED),
    Plan("LoRA, half of the data", "lora", LORA, rate=RAISED, share=0.5),
    Plan("LoRA, a quarter of the data", "lora", LORA, rate=RAISED, share=0.25),
    Plan("bottleneck", "bottleneck", rate=2),
)
ALL_WEIGHTS = Plan("full fine-tuning", "full")
WITH_PASSAGES = Plan("LoRA with passages", "lora", LORA, rate=RAISED, passages=True)


def learnability(
    questions: Questions,
    seconds: float,
    *,
    batch_size: int = 8,
    checkpointing: bool = False,
    plans: Sequence[Plan] = PLANS,
    owned: int | None = None,
    folder: Path | None = None,
    progress: Progress = lambda _: None,
) -> Learnability:
    """Train the trials for about `seconds`, ask them the held-out examples, and follow their curves farther.

    batch_size      examples that a trial sees in a step, fewer where they are long
    checkpointing   recompute activations: for where the trials together would not fit
    plans           the trials; one with passages is added where there are documents
    owned           how many examples there are, those that are not asked here among them; these if not given

    With a folder a run that was stopped goes on where it was. Trials that fail are left out.
    Raises TrainingError where all do.
    """
    started = time.perf_counter()
    plans = [*plans, *([WITH_PASSAGES] if questions.find is not None else [])]
    made = partial(_job, questions, batch_size=batch_size, checkpointing=checkpointing)
    steps = _steps(questions, plans, made, batch_size, seconds, folder)
    adapters = {f"pilot-{number}": plan for number, plan in enumerate(plans)}
    jobs: list[Job] = []
    failed: dict[str, Exception] = {}
    try:
        for name, plan in adapters.items():
            try:
                jobs.append(made(name, plan, steps, folder))
            except ValueError as error:  # this base refuses the method
                failed[name] = error
        curves, stopped = _trained(questions, jobs, progress)
        failed |= stopped
        left = {name: plan for name, plan in adapters.items() if name not in failed}
        for name, error in failed.items():
            progress(f"{adapters[name].name} is left out: {error}")
        if not left:
            raise TrainingError(str(next(iter(failed.values()))))
        progress(f"asking {len(left)} adapters")
        said = _said(questions, left)
        trials = [
            _trial(questions, adapters[job.name], job, curves[job.name], said[job.name])
            for job in jobs
            if job.name in left
        ]
    finally:
        for name in adapters.keys() & questions.model.adapters.keys():
            questions.model.remove(name)
    closed = [said[name] for name, plan in left.items() if not plan.passages and plan.share == 1]
    return Learnability(
        batch_size=batch_size,
        seconds=time.perf_counter() - started,
        trials=tuple(trials),
        times=FARTHER,
        **_with_more(trials, owned or len(questions.train)),
        **_agreed(questions, closed),
    )


# ── training ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _steps(
    questions: Questions,
    plans: Sequence[Plan],
    made: Callable[[str, Plan, int, Path | None], Job],
    batch_size: int,
    seconds: float,
    folder: Path | None,
) -> int:
    """As many steps of all trials as fit into the time, as one step tells; as many as before in a run that goes on."""
    known = None if folder is None else folder / "steps.json"
    if known is not None and known.exists():
        return json.loads(known.read_text(encoding="utf-8"))["steps"]
    names = [f"step-{number}" for number in range(len(plans))]
    try:
        jobs = []
        for name, plan in zip(names, plans, strict=True):
            with suppress(ValueError):  # what the base refuses is told when it is to be trained
                jobs.append(replace(made(name, plan, 1, None), validation=()))
        started = time.perf_counter()
        for _ in train_many(questions.model, jobs) if jobs else ():
            pass
    finally:
        for name in {*names} & questions.model.adapters.keys():
            questions.model.remove(name)
    one = time.perf_counter() - started
    evaluations = one * EVALUATIONS * len(questions.held_out) / batch_size / 3  # a forward pass is a third of a step
    steps = min(MOST_STEPS, max(LEAST_STEPS, int((seconds - one - evaluations) / one)))
    if known is not None:
        write_text(known, json.dumps({"steps": steps}) + "\n")
    return steps


def _job(
    questions: Questions,
    name: str,
    plan: Plan,
    steps: int,
    folder: Path | None,
    *,
    batch_size: int,
    checkpointing: bool,
) -> Job:
    """What trains a plan's adapter, which is in the model then."""
    method = build_method(plan.method, dict(plan.fields))
    questions.model.add(name, method)
    every = max(1, steps // EVALUATIONS)
    return Job(
        name,
        [questions.put(each, _condition(plan)) for each in questions.train[: _count(questions, plan)]],
        TrainConfig(
            lr=method.lr * plan.rate,
            steps=steps,
            batch_size=batch_size,
            batch_tokens=BATCH_TOKENS,
            checkpointing=checkpointing,
            evaluate_every=every,
            save_every=None if folder is None else every,
        ),
        [questions.whole(questions.put(each, _condition(plan))) for each in questions.held_out],
        None if folder is None else folder / name,
    )


def _condition(plan: Plan) -> str:
    return DOCUMENTS if plan.passages else CLOSED


def _count(questions: Questions, plan: Plan) -> int:
    return max(1, round(plan.share * len(questions.train)))


def _trained(
    questions: Questions, jobs: Sequence[Job], progress: Progress
) -> tuple[dict[str, list[tuple[int, float]]], dict[str, TrainingError]]:
    """Each job's held-out curve, and what went wrong. What an earlier go has done is read from its folder."""
    curves: dict[str, dict[int, float]] = {job.name: {} for job in jobs}
    failed: dict[str, TrainingError] = {}
    with closing(train_many(questions.model, jobs)) as steps_of_all:  # stopped here, it leaves a checkpoint
        for told in steps_of_all:
            for name, step in told.items():
                if isinstance(step, TrainingError):
                    failed[name] = step
                    continue
                progress(f"training {len(jobs)} adapters: step {step.step} of {step.steps}")
                if step.validation is not None:
                    curves[name][step.step] = step.validation
    for job in jobs:
        metrics = None if job.folder is None else Path(job.folder) / METRICS
        if metrics is not None and metrics.exists():
            steps = map(json.loads, metrics.read_text(encoding="utf-8").splitlines())
            curves[job.name] |= {step["step"]: step["validation"] for step in steps if step["validation"] is not None}
    return {name: sorted(curve.items()) for name, curve in curves.items()}, failed


# ── what came of it ─────────────────────────────────────────────────────────────────────────────────────────────────


def _said(questions: Questions, adapters: Mapping[str, Plan]) -> dict[str, list[str]]:
    """What each adapter answers to the held-out examples; all of them share batches."""
    asked = [questions.put(each, _condition(plan)) for plan in adapters.values() for each in questions.held_out]
    count = len(questions.held_out)
    texts = questions.answers([name for name in adapters for _ in range(count)], asked)
    return {name: texts[number * count : (number + 1) * count] for number, name in enumerate(adapters)}


def _trial(
    questions: Questions, plan: Plan, job: Job, curve: Sequence[tuple[int, float]], said: Sequence[str]
) -> Trial:
    asked = [questions.put(each, _condition(plan)) for each in questions.held_out]
    read = [losses for _, losses in questions.losses(job.name, asked)]
    loss = interval([each.mean() for each in read], [len(each) for each in read])
    values = questions.values(said, _condition(plan))
    method = described(questions.model.adapter(job.name).method)
    assert job.config.lr is not None
    assert job.config.steps is not None
    return Trial(
        name=plan.name,
        method=method["name"],
        fields=method["fields"],
        lr=job.config.lr,
        examples=_count(questions, plan),
        seen=_seen(questions, job),
        passages=plan.passages,
        steps=job.config.steps,
        parameters=questions.model.adapter(job.name).count(),
        curve=tuple(curve),
        loss=loss,
        expected=extrapolated([*curve], FARTHER * job.config.steps),
        score=mean_of(values),
        values=values,
    )


def _seen(questions: Questions, job: Job) -> int:
    """How many of its examples a job's steps came to: fewer a step where they are long."""
    lengths = [len(each) for each in as_tokens(questions.model, job.examples, job.config, job.name)]
    batches = batched(lengths, seed=job.config.seed, epoch=0, **job.config.limits())
    return sum(map(len, batches[: job.config.steps]))


def _with_more(trials: Sequence[Trial], owned: int) -> dict[str, Any]:
    """The losses of all examples that there are, and of more, as trials tell that saw different numbers of them.

    Nothing where the most is less than twice the least: short trials see the same number, whatever they are given.
    """
    loras = [each for each in trials if each.method == "lora" and not each.passages]
    whole = max((each.examples for each in loras), default=0)
    rates = {each.lr for each in loras if each.examples < whole}
    points = [(float(each.seen or each.examples), each.loss.value) for each in loras if each.lr in rates]
    places = sorted(place for place, _ in points)
    if not places or places[-1] < 2 * places[0]:
        return {"examples": owned}
    return {
        "examples": owned,
        "owned": extrapolated(points, owned) if owned > places[-1] else None,
        "more": extrapolated(points, FARTHER * owned),
    }


def _agreed(questions: Questions, said: Sequence[Sequence[str]]) -> dict[str, Any]:
    """How far trials on all of the data agree with each other and with what is given, and whom they doubt together."""
    every = [each for one in (*questions.train, *questions.held_out) for each in one.answers]
    if len(said) < 2 or not of_few_kinds([each.answers[0] for each in (*questions.train, *questions.held_out)]):
        return {}
    answers = [each.answers for each in questions.held_out]
    places = [each.where or f"held-out example {number}" for number, each in enumerate(questions.held_out, start=1)]
    return {
        "agreement": agreement(labels_said(said, every), [each[0] for each in answers]),
        "suspects": tuple(places[index] for index in doubted(labels_said(said, every), answers)),
    }
