"""What each choice is expected to score, measured or told ahead by its curve, and the bar that it has to reach."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from halka.advisor.advice import Prospect
from halka.advisor.conditions import best_asked
from halka.advisor.evidence import Evidence, Learnability, Strength, Trial
from halka.advisor.thresholds import FALLING, NOISY
from halka.evaluation.metrics import Score


@dataclass(frozen=True)
class Bar:
    """What the choices have to reach.

    needed    the score below which nothing is of use; `trivial` of it is what needs no model
    target    the score that was asked for, if one was
    falling   whether the loss still falls with more examples
    learning  whether a trial's curve still falls much
    examples  how many there are to train on
    trainable whether the hardware can train anything
    """

    needed: float
    trivial: float = 0.0
    target: float | None = None
    falling: bool = False
    learning: bool = False
    examples: int | None = None
    trainable: bool = True


def trainable(evidence: Evidence) -> Evidence:
    """The same without the trials of methods that the hardware cannot train, not even one example at a time."""
    if evidence.learnability is None:
        return evidence
    trials = tuple(each for each in evidence.learnability.trials if each not in too_large(evidence))
    return replace(evidence, learnability=replace(evidence.learnability, trials=trials))


def too_large(evidence: Evidence) -> tuple[Trial, ...]:
    """The trials that are left out so."""
    fit, learned = evidence.fit, evidence.learnability
    if fit is None or learned is None:
        return ()
    options = ((each, fit.option(each.method, passages=each.passages)) for each in learned.trials)
    return tuple(each for each, option in options if option is not None and option.largest_batch == 0)


def prospects(evidence: Evidence) -> tuple[Prospect, ...]:
    """Those that the evidence tells of, the cheapest first."""
    return tuple(_prospects(evidence))


def _prospects(evidence: Evidence) -> Iterator[Prospect]:
    strength, knowledge, learned = evidence.strength, evidence.knowledge, evidence.learnability
    if strength is not None:
        condition = best_asked(strength.scores)
        loss = strength.losses[condition]
        values = strength.values.get(condition, ())
        yield Prospect("prompt", strength.scores[condition], f"measured, {_how(condition)}", loss, values)
    if knowledge is not None and knowledge.scores:
        condition = best_asked(knowledge.scores)
        loss = knowledge.losses[condition]["all"]
        values = knowledge.values.get(condition, ())
        yield Prospect("rag", knowledge.scores[condition], f"measured, {_how(condition)}", loss, values)
    if learned is None:
        return
    gain = _slope(strength, learned)
    tuned = learned.best()
    if tuned is not None and tuned.score is not None:
        yield Prospect("peft", _of_all(tuned, learned, gain), _trial(tuned), tuned.loss, tuned.values)
    if (shown := learned.best(passages=True)) is not None and shown.score is not None:
        yield Prospect("peft+rag", _further(shown, gain), _trial(shown), shown.loss, shown.values)
    full = [each for each in learned.trials if each.method == "full"]
    if full and full[0].score is not None:
        yield Prospect("full", _further(full[0], gain), _trial(full[0]), full[0].loss, full[0].values)
    if tuned is not None and tuned.score is not None:
        yield from _data(strength, learned, tuned, gain)


def _how(condition: str) -> str:
    return {"closed": "zero-shot", "examples": "with examples in the prompt", "documents": "with passages"}.get(
        condition, "with passages and examples"
    )


def _trial(trial: Trial) -> str:
    return f"{trial.name} after {trial.steps} steps, its curve followed"


def _slope(strength: Strength | None, learned: Learnability) -> float:
    """The score that a nat less of held-out loss brings, at least 0: least squares over the trials and the base."""
    points = [(each.loss.value, each.score.value) for each in learned.trials if each.score and not each.passages]
    if strength is not None:
        points.append((strength.losses["closed"].value, strength.scores["closed"].value))
    if len(points) < 2:
        return 0.0
    x, y = (sum(each[axis] for each in points) / len(points) for axis in (0, 1))
    spread = sum((loss - x) ** 2 for loss, _ in points)
    return max(0.0, -sum((loss - x) * (score - y) for loss, score in points) / spread) if spread > 1e-9 else 0.0


def _further(trial: Trial, gain: float) -> Score:
    """The trial's score, with what its loss is expected to fall yet."""
    assert trial.score is not None
    return trial.score if trial.expected is None else _moved(trial.score, trial.loss, trial.expected, gain)


def _of_all(tuned: Trial, learned: Learnability, gain: float) -> Score:
    """The trial's score on all examples that there are, of which it may have seen a part."""
    score, whole = _further(tuned, gain), _whole(learned)
    return score if learned.owned is None or whole is None else _moved(score, whole.loss, learned.owned, gain)


def _moved(score: Score, loss: Score, later: Score, gain: float) -> Score:
    """The score where the loss falls from one to the other; the interval has the curve's uncertainty on top."""
    rise = max(0.0, gain * (loss.value - later.value))
    more = max(0.0, gain * (loss.value - later.low)) - rise
    less = rise - max(0.0, gain * (loss.value - later.high))
    value = min(1.0, score.value + rise)
    low, high = max(0.0, score.low + rise - less), min(1.0, score.high + rise + more)
    return Score(value, min(low, value), max(high, value), score.n)


def _data(strength: Strength | None, learned: Learnability, tuned: Trial, gain: float) -> Iterator[Prospect]:
    """What more, or cleaner, examples promise."""
    if is_noisy(strength, learned):
        score = _of_all(tuned, learned, gain)
        assert learned.agreement is not None
        value = max(score.value, learned.agreement[0])  # beyond chance, and so no more than the share that agree
        yield Prospect("data", Score(value, score.low, 1.0, score.n), "labels mended: as far as trials agree")
        return
    whole = _whole(learned)
    if learned.more is not None and whole is not None:
        moved = _moved(_further(tuned, gain), whole.loss, learned.more, gain)
        how = f"{learned.times} times the examples, by the curve over their number"
        yield Prospect("data", moved, how, values=tuned.values)


def _whole(learned: Learnability) -> Trial | None:
    """The trial on all of the data, where the curve over their number has its last point."""
    parts = [each for each in learned.trials if each.method == "lora" and not each.passages]
    return max(parts, key=lambda each: (each.examples, each.lr), default=None)


def falls_with_data(learned: Learnability) -> bool:
    """Whether more examples than there are lower the held-out loss by more than trials differ among themselves."""
    whole = _whole(learned)
    if learned.more is None or whole is None:
        return False
    return learned.more.value < (1 - FALLING) * (learned.owned or whole.loss).value


def still_learns(learned: Learnability, share: float) -> bool:
    """Whether the best trial is expected to lose that share of its loss yet, if it goes on."""
    trials = [learned.best(), learned.best(passages=True), *(each for each in learned.trials if each.method == "full")]
    return any(
        each is not None and each.expected is not None and each.expected.value < (1 - share) * each.loss.value
        for each in trials
    )


def is_noisy(strength: Strength | None, learned: Learnability) -> bool:
    """Whether trials agree with each other far better than with the labels, and have learned more than to guess."""
    if learned.agreement is None or learned.agreement[0] - learned.agreement[1] <= NOISY:
        return False
    best = max((each.score.value for each in learned.trials if each.score is not None), default=0.0)
    return strength is None or best > max(each.value for each in strength.trivial.values())


def by_choice(found: Sequence[Prospect]) -> dict[str, Prospect]:
    return {each.choice: each for each in found}
