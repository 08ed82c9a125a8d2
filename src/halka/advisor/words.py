"""What the advisor's terms are called, and what its evidence says in sentences: for the page and for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from halka.evaluation.metrics import Score
from halka.report.intervals import finite
from halka.report.units import count, duration, learning_rate, listed, percent, plural, size
from halka.util.text import one_line

CHOICES = {
    "prompt": ("prompting", "prompting suffices"),
    "rag": ("retrieval (RAG)", "retrieval (RAG)"),
    "peft": ("PEFT", "parameter-efficient fine-tuning (PEFT)"),
    "peft+rag": ("PEFT and retrieval", "PEFT and retrieval together"),
    "full": ("full fine-tuning", "full fine-tuning or continued pre-training"),
    "data": ("more or better data", "more or better data first"),
    "base": ("a better base", "a better base"),
}
"""What can be advised, the cheapest first: in few letters, and as it is said to whoever asks."""

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
    return CHOICES[name][0] if name in CHOICES else one_line(name)


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


def sentence(text: Any) -> str:
    """A text with a capital and a full stop."""
    told = one_line(text)
    return f"{told[:1].upper()}{told[1:]}{'' if told.endswith(('.', '!', '?')) else '.'}" if told else ""


def missing(advice: Any, evidence: Any) -> list[str]:
    """What was not there to be looked at, each thing once, in sentences."""
    why = {name: "this was not probed" for name in PROBES if getattr(evidence, name) is None} | dict(evidence.missing)
    probes: dict[str, list[str]] = {}
    for name in PROBES:
        if name in why:
            probes.setdefault(one_line(why[name]), []).append(PROBES[name])
    told = []
    for each, names in probes.items():
        first, *rest = names
        subject = listed([first, *(f"{name[:1].lower()}{name[1:]}" for name in rest)])
        told.append(sentence(f"{subject} {'were' if rest else 'was'} not looked at: {each}"))
    told += [sentence(each if name in each else f"{name}: {each}") for name, each in why.items() if name not in PROBES]
    known_already = {f"{name}: {each}" for name, each in evidence.missing.items()}
    return [*told, *(sentence(each) for each in advice.missing if each not in known_already)]


def way(option: Any) -> str:
    """What a way of training does to need less: on nf4, with checkpointing; empty for a method as it is."""
    parts = [f"on {one_line(option.quantize)}" if option.quantize else ""]
    parts += ["with checkpointing" if option.checkpointing else ""]
    return ", ".join(filter(None, parts))


def how_trained(option: Any) -> str:
    """A way of training, beside its method."""
    return way(option) or "as it is"


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
            told.append(f"{_setting(name)} {' '.join(map(one_line, value))}")
        else:
            number = finite(value)
            rate = number is not None and isinstance(value, float) and 0 < abs(number) < 0.01
            told.append(f"{_setting(name)} {learning_rate(number) if rate and number else one_line(value)}")
    return ", ".join(told)


def _setting(name: str) -> str:
    return one_line(name).replace("_", " ")


def best_trials_said(learnability: Any) -> str:
    """The trials with the lowest loss, with and without passages, in a sentence each."""
    told = [best_trial_said(learnability, passages=passages) for passages in (False, True)]
    return " ".join(filter(None, told)) or "No trial ended with a loss."


def best_trial_said(learnability: Any, *, passages: bool) -> str:
    """The trial with the lowest loss in a sentence; empty where none has a loss."""
    trial = learnability.best(passages=passages)
    if trial is None or known(trial.loss) is None:
        return ""
    further = f", and would come to {loss(trial.expected)}" if known(trial.expected) else ""
    scored = f"; it scores {share(trial.score)}" if known(trial.score) else ""
    reached = f"comes to a loss of {loss(trial.loss)} after {trial.steps} steps"
    shown = " with passages" if trial.passages else ""
    full = any(each.method == "full" and each.passages == passages for each in learnability.trials)
    small = " of the small adapters" if full else ""
    return f"{one_line(trial.name)} learns best{shown}{small}: it {reached}{further}{scored}."


def trained_with(advice: Any, evidence: Any) -> str:
    """The settings in a line, and how often training sees every example with them."""
    told, given = settings(advice.settings), advice.settings
    steps, train = given.get("steps"), evidence.subject.train
    if steps is None or not train:
        return told
    times = steps * given.get("batch_size", 1) * given.get("accumulate", 1) / train
    return f"{told}: every one of {plural(train, 'example')} is seen {times:.1f} times"


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
    held_out = max(found.held_out, subject.held_out)
    return (
        f"Of {plural(subject.train, 'training example')}, {found.repeated} repeated and {found.contradictory} "
        f"contradictory; of {held_out} held out, {found.leaked} with a question that stands in the training "
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
    """Which methods fit, and in which way, in a sentence."""
    batch = f"a batch of {fit.batch_size} × {fit.length} tokens"
    if fit.memory is None:
        return f"With {batch}; how much memory there is, is not known."
    plain = [one_line(each.method) for each in fit.options if each.fits and not way(each)]
    told = [f"{listed(plain)} {'fit as they are' if len(plain) > 1 else 'fits as it is'}"] if plain else []
    told += [f"{one_line(each.method)} fits {way(each)}" for each in fit.options if each.fits and way(each)]
    told += [f"{one_line(each.method)} does not fit{_smaller(each)}" for each in fit.options if each.fits is False]
    there = f"Into the {size(fit.memory)} of {one_line(fit.device)}, with {batch}"
    return f"{there} and {size(fit.process)} that the process holds beside it: {'; '.join(told) or 'nothing fits'}."


def _smaller(option: Any) -> str:
    how = f" {way(option)}" if way(option) else ""
    if option.largest_batch is None:
        return how
    return f"{how}, but for batches of {option.largest_batch}" if option.largest_batch else ", not even one example"
