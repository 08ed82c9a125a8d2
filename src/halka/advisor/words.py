"""The advisor's vocabulary: what choices, conditions and probes are called, and evidence put into sentences."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, get_args

from halka.advisor.evidence import (
    Cleanliness,
    Evidence,
    Fit,
    Learnability,
    Option,
    ProbeName,
    Strength,
    Subject,
    best_condition,
)
from halka.evaluation.metrics import Score
from halka.report.intervals import finite
from halka.report.units import count, learning_rate, listed, percent, size, step_time
from halka.util.text import one_line, plural

Choice = Literal["prompt", "rag", "peft", "peft+rag", "full", "data", "base"]
"""What can be advised, the cheapest first."""


class Names(NamedTuple):
    """What a choice is called in a table, and as the advice."""

    short: str
    title: str


CHOICES: dict[Choice, Names] = {
    "prompt": Names("prompting", "prompting suffices"),
    "rag": Names("retrieval (RAG)", "retrieval (RAG)"),
    "peft": Names("PEFT", "parameter-efficient fine-tuning (PEFT)"),
    "peft+rag": Names("PEFT and retrieval", "PEFT and retrieval together"),
    "full": Names("full fine-tuning", "full fine-tuning or continued pre-training on raw text"),
    "data": Names("more or better data", "more or better data first"),
    "base": Names("a better base", "a better base"),
}
TRAINED: tuple[Choice, ...] = ("peft", "peft+rag", "full")
assert tuple(CHOICES) == get_args(Choice)

CONDITIONS = {
    "closed": "question alone",
    "examples": "with examples",
    "documents": "with passages",
    "both": "with both",
}
TRIVIAL = {"majority": "most frequent answer", "copy": "copy of the question"}
PARTS = {"all": "all tokens", "form": "form", "content": "content"}
PROBE_TITLES: dict[ProbeName, str] = {
    "strength": "The base without training",
    "knowledge": "What examples and passages add",
    "learnability": "Pilot training runs",
    "fit": "Memory and time on the hardware",
    "cleanliness": "Defects in the data",
}
PROBES = tuple(PROBE_TITLES)
UNKNOWN = "–"
MOST = 8  # places of defects that are named


# ── figures ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def known(score: Score | None) -> Score | None:
    """The score, if it and its interval are finite."""
    if score is None or None in (finite(score.value), finite(score.low), finite(score.high)):
        return None
    return score


def share(score: Score | None) -> str:
    """A score with its interval: 61 % (57 % to 66 %)."""
    return _with_interval(score, percent)


def loss(score: Score | None) -> str:
    """A loss with its interval: 1.21 (1.15 to 1.27)."""
    return _with_interval(score, "{:.2f}".format)


def _with_interval(score: Score | None, text: Callable[[float], str]) -> str:
    if (score := known(score)) is None:
        return UNKNOWN
    return f"{text(score.value)} ({text(score.low)} to {text(score.high)})"


def option_row(option: Option) -> tuple[str, ...]:
    """A way of training in a table: method, how, memory, fits, largest batch, a step, on disk, served."""
    seconds = finite(option.step_seconds)
    return (
        one_line(option.method),
        how_trained(option) or "as it is",
        size(option.memory),
        UNKNOWN if option.fits is None else "yes" if option.fits else "no",
        UNKNOWN if option.largest_batch is None else str(option.largest_batch),
        UNKNOWN if seconds is None else step_time(seconds),
        size(option.stored),
        size(option.served),
    )


# ── names ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def sentence(text: str) -> str:
    """The text with a capital and a full stop."""
    line = one_line(text)
    return f"{line[:1].upper()}{line[1:]}{'' if line.endswith(('.', '!', '?')) else '.'}" if line else ""


def metric_of(subject: Subject) -> str:
    return one_line(subject.metric).replace("_", " ")


def about(subject: Subject) -> str:
    """What the evidence is about, in a line."""
    parts = (
        f"{one_line(subject.base)}, {count(subject.parameters)} parameters",
        f"{one_line(subject.data)}, {plural(subject.train, 'training example')} and {subject.held_out} held out",
        plural(subject.documents, "document") if subject.documents else "no documents",
        f"metric {metric_of(subject)}",
        f"{subject.tasks} tasks" if subject.tasks > 1 else "",
        f"target {percent(subject.target)}" if subject.target is not None else "",
    )
    return "; ".join(filter(None, parts))


def how_trained(option: Option) -> str:
    """What an option does to need less memory: on nf4, with checkpointing; empty for none of these."""
    quantised = f"on {one_line(option.quantize)}" if option.quantize else ""
    return ", ".join(filter(None, (quantised, "with checkpointing" if option.checkpointing else "")))


def settings(values: Mapping[str, Any]) -> str:
    """Settings in a line: r 8, alpha 16; mappings within are joined to them."""
    parts = []
    for name, value in values.items():
        label = one_line(name).replace("_", " ")
        if isinstance(value, Mapping):
            parts += [settings(value)] if value else []
        elif isinstance(value, list | tuple):
            parts.append(f"{label} {' '.join(map(one_line, value))}")
        else:
            number = finite(value)
            rate = number is not None and isinstance(value, float) and 0 < abs(number) < 0.01
            parts.append(f"{label} {learning_rate(number) if rate and number else one_line(value)}")
    return ", ".join(parts)


# ── evidence in sentences ───────────────────────────────────────────────────────────────────────────────────────────


def missing(evidence: Evidence) -> list[str]:
    """What could not be measured or used, as sentences; a reason that several probes share is given once."""
    reasons = {name: "it was not run" for name in PROBES if getattr(evidence, name) is None} | dict(evidence.missing)
    probes: dict[str, list[str]] = {}
    for name, title in PROBE_TITLES.items():
        if name in reasons:
            probes.setdefault(one_line(reasons[name]), []).append(title)
    lines = []
    for reason, titles in probes.items():
        names = listed([f"{title[:1].lower()}{title[1:]}" for title in titles])
        lines.append(sentence(f"not measured: {names} ({reason.rstrip('.')})"))
    others = ((name, reason) for name, reason in reasons.items() if name not in PROBES)
    return [*lines, *(sentence(reason if name in reason else f"{name}: {reason}") for name, reason in others)]


def time(evidence: Evidence) -> list[str]:
    """The minutes that probes took of those they had, and what was cut to keep them, as sentences."""
    if evidence.time is None:
        return []
    spent = evidence.time.minutes
    names = {"base": "timing", "learnability": "the pilot"}
    parts = [f"{names.get(name, name)} {minutes:.1f}" for name, minutes in spent.items()]
    took = f"the probes of the base took {sum(spent.values()):.1f} of {evidence.time.budget:g} minutes"
    cuts = [f"cut for time: {cut}" for cut in evidence.time.cuts]
    return [*map(sentence, [*([f"{took}: {listed(parts)}"] if parts else []), *cuts])]


def trivial_answer(strength: Strength) -> str:
    """The best answer that needs no model, with its score: the most frequent answer scores 61 % (52 % to 70 %)."""
    name = best_condition(strength.trivial)
    return f"the {TRIVIAL[name]} scores {share(strength.trivial[name])}"


def best_trials(learnability: Learnability) -> str:
    """The trials with the lowest loss, with and without passages, in a sentence each."""
    sentences = [best_trial(learnability, passages=passages) for passages in (False, True)]
    return " ".join(filter(None, sentences)) or "No trial ended with a finite loss."


def best_trial(learnability: Learnability, *, passages: bool) -> str:
    """The trial with the lowest loss in a sentence; empty where none has a finite loss."""
    trial = learnability.best(passages=passages)
    if trial is None or known(trial.loss) is None:
        return ""
    further = f", extrapolated to {loss(trial.expected)} for a longer run" if known(trial.expected) else ""
    scored = f"; it scores {share(trial.score)}" if known(trial.score) else ""
    group = "with passages" if passages else "of the small adapters" if learnability.full else "of all trials"
    return (
        f"Lowest held-out loss {group}: {one_line(trial.name)} with {loss(trial.loss)} after {trial.steps} steps"
        f"{further}{scored}."
    )


def agreement(learnability: Learnability) -> str:
    """How far trials agree, in a sentence; empty where answers are not labels."""
    if learnability.agreement is None:
        return ""
    each_other, labels = learnability.agreement
    return f"Cohen's kappa of the trials: {each_other:.2f} with each other, {labels:.2f} with the labels."


def failures(learnability: Learnability) -> str:
    """The trials that were left out, with the reasons, in a sentence; empty where all ended."""
    return sentence(f"left out: {'; '.join(learnability.failed)}") if learnability.failed else ""


def trained_with(values: Mapping[str, Any], examples: int) -> str:
    """Training settings in a line, with the number of epochs over so many examples."""
    line, steps = settings(values), values.get("steps")
    if steps is None or not examples:
        return line
    epochs = steps * values.get("batch_size", 1) * values.get("accumulate", 1) / examples
    return f"{line} ({epochs:.1f} epochs over {plural(examples, 'example')})"


def cleanliness(evidence: Evidence) -> str:
    """Defects of the data in a sentence; empty where nobody looked for them."""
    defects, subject = evidence.cleanliness, evidence.subject
    if defects is None:
        return ""
    held_out = max(defects.held_out, subject.held_out)
    return (
        f"Of {plural(subject.train, 'training example')}, {defects.repeated} are repeated and {defects.contradictory} "
        f"contradict another; of {held_out} held out, {defects.leaked} have a question that is in the training data; "
        f"{plural(defects.answers, 'different answer')}."
    )


def places(defects: Cleanliness) -> list[str]:
    """Where some of the defects are: a line for each kind."""
    lines = []
    for kind, where in defects.places.items():
        more = f" and {len(where) - MOST} more" if len(where) > MOST else ""
        if where:
            lines.append(f"{one_line(kind).capitalize()}: {', '.join(map(one_line, where[:MOST]))}{more}.")
    return lines


def fit(result: Fit) -> str:
    """Which methods fit into the memory, and how, in a sentence."""
    size_of_batch = f"a batch of {result.batch_size} × {result.length} tokens"
    if result.memory is None:
        return f"With {size_of_batch}; the size of the memory is not known."
    plain = [one_line(option.method) for option in result.options if option.fits and not how_trained(option)]
    parts = [f"{listed(plain)} {'fit' if len(plain) > 1 else 'fits'}"] if plain else []
    parts += [
        f"{one_line(option.method)} fits {how_trained(option)}"
        for option in result.options
        if option.fits and how_trained(option)
    ]
    parts += [f"{one_line(option.method)} {_too_large(option)}" for option in result.options if option.fits is False]
    memory = f"In {size(result.memory)} of {one_line(result.device)}, with {size_of_batch}"
    return f"{memory} and {size(result.process)} for the process: {'; '.join(parts) or 'nothing fits'}."


def _too_large(option: Option) -> str:
    how = f" {how_trained(option)}" if how_trained(option) else ""
    if option.largest_batch is None:
        return f"does not fit{how}"
    return f"fits{how} only with batches of {option.largest_batch}" if option.largest_batch else "does not fit at all"
