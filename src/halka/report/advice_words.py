"""What the advisor's terms are called, and what its evidence says in sentences: for the page and for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from halka.metrics import Score
from halka.report.intervals import finite
from halka.report.units import count, duration, learning_rate, one_line, percent, plural, size

CHOICES = {
    "prompt": "prompting",
    "rag": "retrieval (RAG)",
    "peft": "PEFT",
    "peft+rag": "PEFT and retrieval",
    "full": "full fine-tuning",
    "data": "more or better data",
    "base": "a better base",
}
"""What can be advised, in few letters, the cheapest first."""

CONDITIONS = {
    "closed": "question alone",
    "examples": "with examples",
    "documents": "with documents",
    "both": "with both",
}
TRIVIAL = {"majority": "commonest answer", "copy": "copy of the question"}
PROBES = {
    "strength": "What the base does without training",
    "knowledge": "What examples and documents add",
    "learnability": "What short training runs learn",
    "fit": "What training takes of the hardware",
    "cleanliness": "What is wrong with the data by itself",
}
NOTHING = "–"


def known(score: Any) -> Score | None:
    """The score, where it and its interval are finite numbers."""
    if score is None or None in (finite(score.value), finite(score.low), finite(score.high)):
        return None
    return score


def share(score: Any) -> str:
    """A score in words: 61 % (57 % to 66 %)."""
    if (found := known(score)) is None:
        return NOTHING
    return f"{percent(found.value)} ({percent(found.low)} to {percent(found.high)})"


def loss(score: Any) -> str:
    """A loss in words: 1.21 (1.15 to 1.27)."""
    return NOTHING if (found := known(score)) is None else f"{found.value:.2f} ({found.low:.2f} to {found.high:.2f})"


def metric_of(subject: Any) -> str:
    return one_line(subject.metric).replace("_", " ")


def by_cost(prospects: Sequence[Any]) -> list[Any]:
    """The prospects, the cheapest first."""
    order = list(CHOICES)
    return sorted(prospects, key=lambda each: order.index(each.choice) if each.choice in order else len(order))


def choice(name: str) -> str:
    return CHOICES.get(name, one_line(name))


def verdict(advice: Any) -> str:
    """What is advised, and how surely."""
    title = one_line(advice.title)
    return f"{title[:1].upper()}{title[1:]}, with {advice.sure} confidence ({percent(advice.confidence)})"


def about(subject: Any) -> str:
    """Whose evidence it is, in a line."""
    return "; ".join(
        part
        for part in (
            f"{one_line(subject.base)}, {count(subject.parameters)} parameters",
            f"{one_line(subject.data)}, {plural(subject.train, 'example')} to train on, {subject.held_out} held out",
            plural(subject.documents, "document") if subject.documents else "no documents",
            f"scored by {metric_of(subject)}",
            f"{subject.tasks} tasks" if subject.tasks > 1 else "",
            f"target {percent(subject.target)}" if subject.target is not None else "",
        )
        if part
    )


def left_out(evidence: Any, name: str) -> str:
    """Why a probe has nothing to show, in a sentence."""
    why = one_line(evidence.missing.get(name) or "this was not probed").rstrip(".")
    return f"{PROBES.get(name, one_line(name))} is left out: {why}."


def how_trained(option: Any) -> str:
    """A way of training, beside its method: on nf4, with checkpointing."""
    parts = [f"on {one_line(option.quantize)}" if option.quantize else ""]
    parts += ["with checkpointing" if option.checkpointing else ""]
    return ", ".join(filter(None, parts)) or "as it is"


def fits(option: Any) -> str:
    return {True: "yes", False: "no"}.get(option.fits, NOTHING)


def step_time(option: Any) -> str:
    seconds = finite(option.step_seconds)
    if seconds is None:
        return NOTHING
    return f"{1000 * seconds:.0f} ms" if seconds < 1 else duration(seconds)


def settings(given: Mapping[str, Any]) -> str:
    """Settings in a line: r 8, alpha 16; those within others beside them."""
    told = []
    for name, value in given.items():
        if isinstance(value, Mapping):
            told += [settings(value)] if value else []
        elif isinstance(value, list | tuple):
            told.append(f"{one_line(name)} {' '.join(map(one_line, value))}")
        else:
            number = finite(value)
            rate = number is not None and isinstance(value, float) and 0 < abs(number) < 0.01
            told.append(f"{one_line(name)} {learning_rate(number) if rate and number else one_line(value)}")
    return ", ".join(told)


def end(trial: Any) -> Score | None:
    """The loss to judge a trial by: what it would come to, where that is known, else what it came to."""
    return known(trial.expected) or known(trial.loss)


def best_trial(learnability: Any) -> Any | None:
    """The trial with the lowest loss of those on most examples; one with passages before one without."""
    most = max((trial.examples for trial in learnability.trials), default=0)
    ended = [
        (found.value, number)
        for number, trial in enumerate(learnability.trials)
        if trial.examples == most and (found := end(trial)) is not None
    ]
    return learnability.trials[min(ended)[1]] if ended else None


def best_trial_said(learnability: Any) -> str:
    """The trial with the lowest loss, in a sentence."""
    trial = best_trial(learnability)
    if trial is None:
        return "No trial ended with a loss."
    further = f", and would come to {loss(trial.expected)}" if known(trial.expected) else ""
    scored = f"; it scores {share(trial.score)}" if known(trial.score) else ""
    reached = f"comes to a loss of {loss(trial.loss)} after {trial.steps} steps"
    return f"{one_line(trial.name)} learns best: it {reached}{further}{scored}."


def agreement_said(learnability: Any) -> str | None:
    if learnability.agreement is None:
        return None
    each_other, given = learnability.agreement
    return (
        f"Beyond chance, two trials agree with each other by {each_other:.2f} and with the given answers by "
        f"{given:.2f} (Cohen's kappa)."
    )


def cleanliness_said(evidence: Any) -> str:
    """What is wrong with the data by itself, in a sentence."""
    found, subject = evidence.cleanliness, evidence.subject
    return (
        f"Of {plural(subject.train, 'training example')}, {found.repeated} repeated and {found.contradictory} "
        f"contradictory; of {subject.held_out} held out, {found.leaked} with a question that stands in the training "
        f"data; {plural(found.answers, 'different answer')}."
    )


def places_said(found: Any, most: int = 8) -> list[str]:
    """Where some of that stands: a line for each kind."""
    told = []
    for name, places in found.places.items():
        more = f" and {len(places) - most} more" if len(places) > most else ""
        if places:
            told.append(f"{one_line(name).capitalize()}: {', '.join(map(one_line, places[:most]))}{more}.")
    return told


def fit_said(fit: Any) -> str:
    """How many ways of training fit, in a sentence."""
    batch = f"a batch of {fit.batch_size} × {fit.length} tokens"
    if fit.memory is None:
        return f"With {batch}; how much memory there is, is not known."
    ok = sum(option.fits is True for option in fit.options)
    return (
        f"{ok} of {plural(len(fit.options), 'way')} of training fit into the {size(fit.memory)} of "
        f"{one_line(fit.device)}, with {batch} and {size(fit.process)} that the process holds beside it."
    )
