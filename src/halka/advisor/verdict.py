"""The verdict: thresholds, the score expected of each choice, and the rules that pick one. All functions are pure.

Methods that the hardware cannot train, not even with one example a batch, are left out before the rules. Where trivial
answers are all right and no target is named, it is "data": nothing can score above them. Else:

1. Nothing is useful: the best score is not far enough above trivial answers (`minimum_score`), or misses the target.
   Then: "base" if the hardware can train nothing; "data" if more examples still lower the loss; the best trained choice
   if the pilot was too short (its curve still falls by `STILL_LEARNING`); "data" if there are under `FEW_EXAMPLES`;
   "peft" if nothing was trained yet; else "base".
2. The target is reached: the cheapest choice that reaches it (`CHOICES` is ordered by cost).
3. More or better data promise `DATA_GAIN` above all else: "data".
4. Otherwise a choice is good within `TOLERANCE` of the best score and above trivial answers, unless another good one
   has less than `LOSS_RATIO` of its loss (what is nearly all right stays good). The cheapest good choice is taken.
5. With under `FEW_EXAMPLES`, "data" replaces rule 4's choice unless that is nearly all right, or retrieval, which needs
   no examples, or the hardware can train nothing, which more of them would not change: there is no learning curve over
   so few.

The confidence is the share of draws from the scores' intervals in which the same choice is made.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from halka.advisor.evidence import Evidence, Learnability, Strength, Trial, best_condition
from halka.advisor.statistics import drawn, shared_deviations
from halka.advisor.words import CHOICES, CONDITIONS, TRAINED, Choice
from halka.evaluation.metrics import Score

# ── thresholds ──────────────────────────────────────────────────────────────────────────────────────────────────────
# Each with its source. "Development cases" are those of benchmarks/advisor.py on which thresholds were set; the others
# were held aside.

TOLERANCE = 0.08  # of score; development cases: what 64 test items cannot tell apart
DATA_GAIN = 0.12  # of score; development cases: gathering data costs people's time, training does not
LOSS_RATIO = 0.5  # development case tofu: a few answers are right by luck, all their tokens are not
USEFUL_GAIN = 0.1  # of score above the best trivial answer; a convention
USEFUL_SHARE = 0.5  # of what the best trivial answer leaves, where that is less than twice `USEFUL_GAIN`; a convention
FEW_EXAMPLES = 50  # where guidance on fine-tuning begins; set after a case held aside (few_lamps)
STILL_LEARNING = 1 / 3  # of the loss, expected of a longer run; set after a case held aside (snips)
DATA_HELPS = 0.1  # of the loss, expected of more examples: equal trials differ by so much on the development cases
# Kappa by which trials agree more with each other than with the labels; half way between the development cases' noisy
# intents (0.49) and their emotions and places (0.05, -0.02).
NOISY_LABELS = 0.25

GAP = 0.8  # factor on the confidence for each thing that was not measured; a convention
RULE_OF_THUMB = 0.5  # factor on the confidence where a rule of thumb decided; a convention
HIGH, MEDIUM = 0.85, 0.65  # confidence that is called so; a convention

# From where on a reason is given:
FEW_HELD_OUT = 30  # the interval of a share is wider than 0.35 with fewer (binomial, at one half)
VISIBLE_FALL = 0.1  # of a loss: twice the width of a typical interval on 32 examples
RETRIEVED = 0.6  # share of answers in the retrieved passages below which retrieval is the weak part; a convention
LEAKED = 0.05  # share of held-out examples that are in the training data; a convention

DRAWS = 2000


# ── expected scores ─────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Prospect:
    """What a choice is expected to score (0 to 1, with its 95 % interval), how that is known, and the answers' loss.

    values   of each held-out answer that the score was measured on; empty if it was not
    """

    choice: Choice
    score: Score
    how: str
    loss: Score | None = None
    values: tuple[float, ...] = ()


def trainable(evidence: Evidence) -> Evidence:
    """The evidence without trials of methods that the hardware cannot train, not even with one example a batch."""
    if evidence.learnability is None:
        return evidence
    trials = tuple(trial for trial in evidence.learnability.trials if trial not in too_large(evidence))
    return replace(evidence, learnability=replace(evidence.learnability, trials=trials))


def too_large(evidence: Evidence) -> tuple[Trial, ...]:
    """Trials whose method does not fit the hardware even with one example a batch."""
    fit, learned = evidence.fit, evidence.learnability
    if fit is None or learned is None:
        return ()
    options = ((trial, fit.option(trial.method, passages=trial.passages)) for trial in learned.trials)
    return tuple(trial for trial, option in options if option is not None and option.largest_batch == 0)


def prospects(evidence: Evidence) -> tuple[Prospect, ...]:
    """Of each choice that there is evidence for, the cheapest first."""
    return (*_without_training(evidence), *_with_training(evidence))


def _without_training(evidence: Evidence) -> Iterator[Prospect]:
    strength, knowledge = evidence.strength, evidence.knowledge
    if strength is not None:
        condition = best_condition(strength.scores)
        values = strength.values.get(condition, ())
        yield Prospect("prompt", strength.scores[condition], _measured(condition), strength.losses[condition], values)
    if knowledge is not None and knowledge.scores:
        condition = best_condition(knowledge.scores)
        values, loss = knowledge.values.get(condition, ()), knowledge.losses[condition]["all"]
        yield Prospect("rag", knowledge.scores[condition], _measured(condition), loss, values)


def _with_training(evidence: Evidence) -> Iterator[Prospect]:
    """From the trials' scores, and from how much further their losses will fall."""
    strength, learned = evidence.strength, evidence.learnability
    if learned is None:
        return
    gain = _score_per_nat(strength, learned)
    tuned, shown, full = learned.best(), learned.best(passages=True), learned.full
    if tuned is not None and tuned.score is not None:
        yield Prospect("peft", _on_all_examples(tuned, learned, gain), _extrapolated(tuned), tuned.loss, tuned.values)
    choices: tuple[tuple[Choice, Trial | None], ...] = (("peft+rag", shown), ("full", full))
    for choice, trial in choices:
        if trial is not None and trial.score is not None:
            yield Prospect(choice, _trained_longer(trial, gain), _extrapolated(trial), trial.loss, trial.values)
    if tuned is not None and tuned.score is not None:
        yield from _with_more_data(strength, learned, tuned, gain)


def _measured(condition: str) -> str:
    return f"measured, {CONDITIONS[condition]}"


def _extrapolated(trial: Trial) -> str:
    return f"{trial.name} after {trial.steps} steps, extrapolated"


def _score_per_nat(strength: Strength | None, learned: Learnability) -> float:
    """The score gained per nat of held-out loss, at least 0: least squares over the trials and the base."""
    points = [(trial.loss.value, trial.score.value) for trial in learned.trials if trial.score and not trial.passages]
    if strength is not None:
        points.append((strength.losses["closed"].value, strength.scores["closed"].value))
    if len(points) < 2:
        return 0.0
    x, y = (sum(point[axis] for point in points) / len(points) for axis in (0, 1))
    spread = sum((loss - x) ** 2 for loss, _ in points)
    return max(0.0, -sum((loss - x) * (score - y) for loss, score in points) / spread) if spread > 1e-9 else 0.0


def _trained_longer(trial: Trial, gain: float) -> Score:
    """The trial's score after the steps to which its loss was extrapolated."""
    assert trial.score is not None
    return trial.score if trial.expected is None else _moved(trial.score, trial.loss, trial.expected, gain)


def _on_all_examples(tuned: Trial, learned: Learnability, gain: float) -> Score:
    """The trial's score, extrapolated to all examples that the user has: it may have reached a part of them."""
    score, whole = _trained_longer(tuned, gain), _whole(learned)
    return score if learned.owned is None or whole is None else _moved(score, whole.loss, learned.owned, gain)


def _moved(score: Score, loss: Score, later: Score, gain: float) -> Score:
    """The score when the loss falls from one to the other; the extrapolation's uncertainty widens the interval."""
    rise = max(0.0, gain * (loss.value - later.value))
    more = max(0.0, gain * (loss.value - later.low)) - rise
    less = rise - max(0.0, gain * (loss.value - later.high))
    value = min(1.0, score.value + rise)
    low, high = max(0.0, score.low + rise - less), min(1.0, score.high + rise + more)
    return Score(value, min(low, value), max(high, value), score.n)


def _with_more_data(strength: Strength | None, learned: Learnability, tuned: Trial, gain: float) -> Iterator[Prospect]:
    """With corrected labels if those are noisy, else with more examples."""
    if noisy_labels(strength, learned):
        score = _on_all_examples(tuned, learned, gain)
        assert learned.agreement is not None
        value = max(score.value, learned.agreement[0])  # beyond chance, so at most the share of equal answers
        yield Prospect("data", Score(value, score.low, 1.0, score.n), "with corrected labels: as far as trials agree")
        return
    whole = _whole(learned)
    if learned.more is not None and whole is not None:
        score = _moved(_trained_longer(tuned, gain), whole.loss, learned.more, gain)
        yield Prospect("data", score, f"learning curve at {learned.times} times the examples", values=tuned.values)


def _whole(learned: Learnability) -> Trial | None:
    """The LoRA given all examples, the last point of the learning curve over data size."""
    loras = [trial for trial in learned.trials if trial.method == "lora" and not trial.passages]
    return max(loras, key=lambda trial: (trial.examples, trial.lr), default=None)


def data_helps(learned: Learnability) -> bool:
    """Whether more examples than there are lower the held-out loss by more than equal trials differ."""
    whole = _whole(learned)
    if learned.more is None or whole is None:
        return False
    return learned.more.value < (1 - DATA_HELPS) * (learned.owned or whole.loss).value


def still_learning(learned: Learnability) -> bool:
    """Whether a longer run of a best trial is expected to lower its loss by `STILL_LEARNING`."""
    return any(
        trial is not None
        and trial.expected is not None
        and trial.expected.value < (1 - STILL_LEARNING) * trial.loss.value
        for trial in (learned.best(), learned.best(passages=True), learned.full)
    )


def noisy_labels(strength: Strength | None, learned: Learnability) -> bool:
    """Whether trials agree far more with each other than with the labels, and score above trivial answers."""
    if learned.agreement is None or learned.agreement[0] - learned.agreement[1] <= NOISY_LABELS:
        return False
    best = max((trial.score.value for trial in learned.trials if trial.score is not None), default=0.0)
    return strength is None or best > strength.best_trivial


# ── the rules ───────────────────────────────────────────────────────────────────────────────────────────────────────

Rule = Literal[
    "trivial", "hardware", "useless", "learning", "few", "untried", "target", "data", "loss", "best", "cheapest"
]
"""The rule that made a choice; `reasons.WHY` has its sentence."""


@dataclass(frozen=True)
class Criteria:
    """What the rules consider besides expected scores.

    minimum    the score below which nothing is useful
    trivial    the best score of answers that need no model
    target     the score that suffices, if the user named one
    data_helps, still_learning   whether more examples, or a longer run, lower the loss much
    examples   training examples that the user has
    trainable  whether the hardware can train anything
    """

    minimum: float
    trivial: float = 0.0
    target: float | None = None
    data_helps: bool = False
    still_learning: bool = False
    examples: int | None = None
    trainable: bool = True

    @classmethod
    def of(cls, evidence: Evidence) -> Criteria:
        target, learned, strength = evidence.subject.target, evidence.learnability, evidence.strength
        trivial = 0.0 if strength is None else strength.best_trivial
        options = () if evidence.fit is None else evidence.fit.options
        return cls(
            minimum=minimum_score(trivial) if target is None else target,
            trivial=trivial,
            target=target,
            data_helps=learned is not None and data_helps(learned),
            still_learning=learned is not None and still_learning(learned),
            examples=evidence.subject.train,
            trainable=not options or any(option.largest_batch != 0 for option in options),
        )


def minimum_score(trivial: float) -> float:
    """The score from which an answer is useful, where trivial answers score `trivial`."""
    return trivial + min(USEFUL_GAIN, USEFUL_SHARE * (1 - trivial))


def choose(
    scores: Mapping[Choice, float], criteria: Criteria, losses: Mapping[Choice, float] | None = None
) -> tuple[Choice, Rule]:
    """The choice, and the rule that made it."""
    now: dict[Choice, float] = {choice: scores[choice] for choice in CHOICES if choice in scores and choice != "data"}
    best = max(now.values(), default=0.0)
    with_data = max(best, scores.get("data", 0.0))
    if criteria.target is None and criteria.trivial >= 1:
        return "data", "trivial"
    few = criteria.examples is not None and criteria.examples < FEW_EXAMPLES
    if with_data < criteria.minimum:  # rule 1 of docs/advise.md
        return _choose_where_nothing_is_useful({name: now[name] for name in TRAINED if name in now}, criteria, few)
    if criteria.target is not None and best >= criteria.target:  # rule 2
        return next(choice for choice, score in now.items() if score >= criteria.target), "target"
    if "data" in scores and (with_data - best > DATA_GAIN or best < criteria.minimum):  # rule 3
        return "data", "data"
    good: list[Choice] = [  # rule 4
        choice
        for choice, score in now.items()
        if score >= best - TOLERANCE and (score > criteria.trivial or score == best)
    ]
    losses = losses or {}
    least = min((losses[choice] for choice in good if choice in losses), default=0.0)
    low_loss: list[Choice] = [
        choice for choice in good if LOSS_RATIO * losses.get(choice, 0.0) <= least or now[choice] >= 1 - TOLERANCE
    ]
    choice = low_loss[0]
    if few and criteria.trainable and choice != "rag" and best < 1 - TOLERANCE:  # rule 5
        return "data", "few"
    if choice != good[0]:
        return choice, "loss"
    return choice, "best" if now[choice] == best else "cheapest"


def _choose_where_nothing_is_useful(
    trained: Mapping[Choice, float], criteria: Criteria, few: bool
) -> tuple[Choice, Rule]:
    """Rule 1; `trained` are the scores of choices with a trial."""
    if not criteria.trainable:
        return "base", "hardware"
    if criteria.data_helps:
        return "data", "useless"
    if criteria.still_learning and trained:
        return max(trained, key=trained.__getitem__), "learning"
    if few:
        return "data", "few"
    return ("base", "useless") if trained else ("peft", "untried")


# ── confidence ──────────────────────────────────────────────────────────────────────────────────────────────────────


def confidence(expected: Sequence[Prospect], choice: Choice, criteria: Criteria) -> float:
    """The share of draws from the intervals in which `choice` is made.

    In a draw all scores are of the same resampled questions; losses are drawn independently.
    """
    rng = np.random.default_rng(0)
    deviations = shared_deviations([prospect.values for prospect in expected], DRAWS, rng)
    losses: list[tuple[Choice, Score, np.ndarray]] = [
        (prospect.choice, prospect.loss, rng.standard_normal(DRAWS))
        for prospect in expected
        if prospect.loss is not None
    ]
    same = 0
    for draw in range(DRAWS):
        scores: dict[Choice, float] = {
            prospect.choice: min(1.0, drawn(prospect.score, deviation[draw]))
            for prospect, deviation in zip(expected, deviations, strict=True)
        }
        drawn_losses: dict[Choice, float] = {name: drawn(loss, deviation[draw]) for name, loss, deviation in losses}
        same += choose(scores, criteria, drawn_losses)[0] == choice
    return same / DRAWS
