"""The advice as one HTML file that needs nothing else: what to do, why, and the evidence in plots and tables."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from halka.advisor import pilot_plots as advice_curves
from halka.advisor import plots as advice_plots
from halka.advisor import words
from halka.report.intervals import finite
from halka.report.page import fill, write_page
from halka.report.svg import Plot, drawn
from halka.report.units import count, duration, learning_rate, percent, plural, size
from halka.util.text import one_line


@dataclass(frozen=True)
class Table:
    """A table of words and figures: what it shows, its heads, its lines, and which line is marked."""

    caption: str
    heads: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]
    words: tuple[str, ...] = ()
    marked: int | None = None


@dataclass(frozen=True)
class Probe:
    """What one kind of evidence shows."""

    name: str
    title: str
    sentences: tuple[str, ...] = ()
    plots: tuple[Plot, ...] = ()
    tables: tuple[Table, ...] = ()


def write_advice(
    advice: Any,
    evidence: Any,
    path: str | os.PathLike[str],
    *,
    title: str | None = None,
    command: str | None = None,
) -> Path:
    """Writes the page on an advice to `path`, whole or not at all, and returns the path.

    advice, evidence   of the forms of `halka.advisor`; every number on the page comes from them
    title              the page's title; by default the data and the base
    command            what makes it again

    The same input gives the same bytes. Raises ValueError where `path` is a folder.
    """
    return write_page(path, lambda: render_advice(advice, evidence, title=title, command=command))


def render_advice(advice: Any, evidence: Any, *, title: str | None = None, command: str | None = None) -> str:
    """The page as text; see `write_advice`."""
    subject = evidence.subject
    probes = [_strength(evidence), _learnability(evidence, advice.choice), _fit(evidence), _cleanliness(evidence)]
    return fill(
        "advice.html.j2",
        ["report.css", "advice.css"],
        ["advice.js"],
        package="halka.advisor",
        title=one_line(title or f"Advice for {subject.data} on {subject.base}"),
        headline=f"{words.verdict(advice)}.",
        about=f"{words.about(subject)}.",
        hero=drawn(advice_plots.prospects, advice, evidence),
        prospects=_prospects(advice, evidence),
        reasons=[words.sentence(each.text) for each in advice.reasons],
        change=[words.sentence(each) for each in advice.change],
        missing=words.missing(advice, evidence),
        settings=words.trained_with(advice, evidence),
        commands=["".join(c for c in each if c.isprintable() or c in "\n\t") for each in advice.commands],
        probes=[probe for probe in probes if probe.plots or probe.tables or probe.sentences],
        command=one_line(command) if command else None,
    )


def _prospects(advice: Any, evidence: Any) -> Table | None:
    given = words.by_cost(advice.prospects)
    lines = tuple((words.choice(each.choice), words.share(each.score), one_line(each.how)) for each in given)
    marked = next((i for i, each in enumerate(given) if each.choice == advice.choice), None)
    caption = f"Expected {words.metric_of(evidence.subject)} with 95 % intervals, the cheapest first"
    heads = ("Choice", "Expected", "How that is known")
    return Table(caption, heads, lines, heads[2:], marked) if lines else None


def _strength(evidence: Any) -> Probe:
    strength, knowledge = evidence.strength, evidence.knowledge
    sentences = []
    if strength is not None:
        sentences.append(f"“With examples” has {plural(strength.shots, 'worked example')} in the prompt.")
    if knowledge is not None:
        tokens = [f"{number} of {part}" for part, number in knowledge.tokens.items() if part in ("form", "content")]
        if tokens:
            sentences.append(
                "Tokens of form stand in a quarter of the other answers, too; the rest are content"
                f" ({' and '.join(tokens)} here)."
            )
        if (found := finite(knowledge.found)) is not None:
            sentences.append(f"In {percent(found)} of the examples the passages that were found hold the answer.")
    plots = _drawn(evidence, advice_plots.scores, advice_plots.losses)
    return Probe("strength", words.PROBES["strength"], tuple(filter(None, [" ".join(sentences)])), plots)


def _learnability(evidence: Any, choice: str) -> Probe:
    found, name = evidence.learnability, "learnability"
    if found is None:
        return Probe(name, words.PROBES[name])
    sentences = [
        f"{plural(len(found.trials), 'trial')} in {duration(found.seconds)}, {found.batch_size} examples a batch.",
        words.agreement_said(found) or "",
    ]
    best = found.best(passages=choice == "peft+rag")
    if choice == "full":
        best = next((trial for trial in found.trials if trial.method == "full"), None)
    lines = tuple(
        (
            one_line(trial.name),
            ", ".join(filter(None, (one_line(trial.method), words.settings(trial.own)))),
            learning_rate(trial.lr),
            count(trial.examples),
            "yes" if trial.passages else "no",
            str(trial.steps),
            count(trial.parameters),
            words.loss(trial.loss),
            words.loss(trial.expected),
            words.share(trial.score),
        )
        for trial in found.trials
    )
    heads = ("Trial", "Method", "lr", "Examples", "Passages", "Steps", "Parameters", "Loss", "If it goes on", "Score")
    marked = next((i for i, trial in enumerate(found.trials) if trial is best), None)
    table = Table("Every trial, with 95 % intervals in brackets", heads, lines, ("Method",), marked)
    plots = _drawn(evidence, advice_curves.pilot, advice_curves.pilot_shown, advice_curves.amounts)
    return Probe(name, words.PROBES[name], (" ".join(filter(None, sentences)),), plots, (table,) if lines else ())


def _fit(evidence: Any) -> Probe:
    found, name = evidence.fit, "fit"
    if found is None:
        return Probe(name, words.PROBES[name])
    tasks = plural(found.tasks, "task")
    heads = (
        *("Method", "How", "Parameters", "Memory", "Fits", "Largest batch", "A step"),
        *(f"On disk, {tasks}", f"Serving {tasks}"),
    )
    lines = tuple(
        (
            one_line(option.method),
            words.how_trained(option),
            count(option.trained),
            size(option.memory),
            words.fits(option),
            words.NOTHING if option.largest_batch is None else str(option.largest_batch),
            words.step_time(option),
            size(option.stored),
            size(option.served),
        )
        for option in found.options
    )
    plots = _drawn(evidence, advice_plots.memory)
    caption = f"Each method in the way that fits best; to the memory come {size(found.process)} of the process"
    table = Table(caption, heads, lines, ("How",))
    sentences = () if plots else (words.fit_said(found),)
    return Probe(name, words.PROBES[name], sentences, plots, (table,) if lines else ())


def _cleanliness(evidence: Any) -> Probe:
    found, name = evidence.cleanliness, "cleanliness"
    if found is None:
        return Probe(name, words.PROBES[name])
    return Probe(name, words.PROBES[name], (words.cleanliness_said(evidence), *words.places_said(found)))


def _drawn(evidence: Any, *makers: Any) -> tuple[Plot, ...]:
    plots: Sequence[Plot | None] = [drawn(make, evidence) for make in makers]
    return tuple(plot for plot in plots if plot is not None)
