"""The advice for people: `write_advice` makes one self-contained HTML file, `to_terminal` what rich prints."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from halka.advisor import pilot_plots, plots, words
from halka.advisor.advice import Advice, advised_trial
from halka.advisor.evidence import Evidence, Fit, Learnability, ProbeName, Trial
from halka.advisor.reasons import Reason, gaps
from halka.advisor.verdict import Prospect, trainable
from halka.report.intervals import finite
from halka.report.page import fill, write_page
from halka.report.svg import Plot, drawn
from halka.report.units import count, duration, learning_rate, percent, size
from halka.util.text import JOINERS, columns, one_line, plural

if TYPE_CHECKING:
    from rich import table as rich_table
    from rich.console import RenderableType


def _missing(evidence: Evidence) -> list[str]:
    return [*words.missing(evidence), *_sentences(gaps(evidence))]


def _sentences(reasons: Sequence[Reason]) -> list[str]:
    return [words.sentence(reason.text) for reason in reasons]


def _prospect_row(prospect: Prospect) -> tuple[str, str, str]:
    return words.CHOICES[prospect.choice].short, words.share(prospect.score), one_line(prospect.how)


# ── the page ────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Table:
    """A table: its caption, heads and lines; which columns hold text, and which line is marked."""

    caption: str
    heads: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]
    words: tuple[str, ...] = ()
    marked: int | None = None


@dataclass(frozen=True)
class Probe:
    """A section of the page: what one kind of probe measured."""

    name: ProbeName
    sentences: tuple[str, ...] = ()
    plots: tuple[Plot, ...] = ()
    tables: tuple[Table, ...] = ()

    @property
    def title(self) -> str:
        return words.PROBE_TITLES[self.name]


def write_advice(advice: Advice, evidence: Evidence, path: str | os.PathLike[str]) -> Path:
    """Write the page to `path`, whole or not at all, and return the path.

    The same input gives the same bytes. Raises HalkaError where `path` is a folder.
    """
    return write_page(path, lambda: render_advice(advice, evidence))


def render_advice(advice: Advice, evidence: Evidence) -> str:
    """The page as text; see `write_advice`."""
    subject = evidence.subject
    probes = [
        Probe("strength", _base_sentences(evidence), _drawn(evidence, plots.scores, plots.losses)),
        _learnability(evidence, advice),
        _fit(evidence),
        _cleanliness(evidence),
    ]
    return fill(
        "advice.html.j2",
        ["report.css", "advice.css"],
        ["advice.js"],
        package="halka.advisor",
        title=one_line(f"Advice for {subject.data} on {subject.base}"),
        headline=advice.headline,
        about=f"{words.about(subject)}.",
        hero=drawn(plots.prospects, advice, evidence),
        prospects=_prospects(advice, evidence),
        reasons=_sentences(advice.reasons),
        change=_sentences(advice.change),
        missing=_missing(evidence),
        time=words.time(evidence),
        settings=words.trained_with(advice.settings, subject.train),
        commands=["".join(c for c in line if c.isprintable() or c in f"\n\t{JOINERS}") for line in advice.commands],
        probes=[probe for probe in probes if probe.plots or probe.tables or probe.sentences],
    )


def _drawn(evidence: Evidence, *makers: Callable[[Evidence], plots.Drawing | None]) -> tuple[Plot, ...]:
    return tuple(plot for maker in makers if (plot := drawn(maker, evidence)) is not None)


def _prospects(advice: Advice, evidence: Evidence) -> Table | None:
    lines = tuple(map(_prospect_row, advice.prospects))
    marked = next((index for index, prospect in enumerate(advice.prospects) if prospect.choice == advice.choice), None)
    caption = f"Expected {words.metric_of(evidence.subject)} with 95 % intervals, the cheapest choice first"
    heads = ("Choice", "Expected", "How that is known")
    return Table(caption, heads, lines, heads[2:], marked) if lines else None


def _base_sentences(evidence: Evidence) -> tuple[str, ...]:
    strength, knowledge, sentences = evidence.strength, evidence.knowledge, []
    if strength is not None:
        shots = plural(strength.shots, "worked example")
        sentences.append(f"“With examples” has {shots} in the prompt, or as many as the context has room for.")
    if knowledge is not None:
        tokens = [f"{number} of {part}" for part, number in knowledge.tokens.items() if part in ("form", "content")]
        if tokens:
            sentences.append(
                "Form are the tokens that a quarter of the other answers contain, too; content are the others "
                f"({' and '.join(tokens)} here)."
            )
        if (retrieved := finite(knowledge.found)) is not None:
            sentences.append(f"In {percent(retrieved)} of the examples the retrieved passages contain the answer.")
    return (" ".join(sentences),) if sentences else ()


def _learnability(evidence: Evidence, advice: Advice) -> Probe:
    learned = evidence.learnability
    if learned is None:
        return Probe("learnability")
    sentences = [
        f"{plural(len(learned.trials), 'trial')} in {duration(learned.seconds)}, "
        f"at most {learned.batch_size} examples a step.",
        words.agreement(learned),
        words.failures(learned),
    ]
    makers = (pilot_plots.pilot, pilot_plots.pilot_with_passages, pilot_plots.data_sizes)
    tables = (_trials(learned, advised_trial(trainable(evidence), advice.choice)),) if learned.trials else ()
    return Probe("learnability", (" ".join(filter(None, sentences)),), _drawn(evidence, *makers), tables)


def _trials(learned: Learnability, advised: Trial | None) -> Table:
    lines = tuple(
        (
            one_line(trial.name),
            ", ".join(filter(None, (one_line(trial.method), words.settings(trial.settings)))),
            learning_rate(trial.lr),
            count(trial.examples),
            "yes" if trial.passages else "no",
            str(trial.steps),
            count(trial.parameters),
            words.loss(trial.loss),
            words.loss(trial.expected),
            words.share(trial.score),
        )
        for trial in learned.trials
    )
    heads = ("Trial", "Method", "lr", "Examples", "Passages", "Steps", "Parameters", "Loss", "Extrapolated", "Score")
    marked = next((index for index, trial in enumerate(learned.trials) if trial is advised), None)
    return Table("Every trial, with 95 % intervals in brackets", heads, lines, ("Method",), marked)


def _fit(evidence: Evidence) -> Probe:
    fit = evidence.fit
    if fit is None:
        return Probe("fit")
    drawings = _drawn(evidence, plots.memory)
    sentences = () if drawings else (words.fit(fit),)
    return Probe("fit", sentences, drawings, (_options(fit),) if fit.options else ())


def _options(fit: Fit) -> Table:
    tasks = plural(fit.tasks, "task")
    heads = (
        *("Method", "How", "Parameters", "Memory", "Fits", "Largest batch", "A step"),
        *(f"On disk, {tasks}", f"Serving {tasks}"),
    )
    rows = [(words.option_row(option), count(option.trained)) for option in fit.options]
    lines = tuple((*row[:2], parameters, *row[2:]) for row, parameters in rows)
    caption = f"Each method in the first way that fits; the process takes {size(fit.process)} besides"
    return Table(caption, heads, lines, ("How",))


def _cleanliness(evidence: Evidence) -> Probe:
    defects = evidence.cleanliness
    sentences = () if defects is None else (words.cleanliness(evidence), *words.places(defects))
    return Probe("cleanliness", sentences)


# ── the terminal ────────────────────────────────────────────────────────────────────────────────────────────────────


def to_terminal(advice: Advice, evidence: Evidence) -> list[RenderableType]:
    """The advice and its evidence as lines and tables that rich prints one below the other."""
    commands = "\n".join(f"  {command}" for command in advice.commands)
    sections: list[tuple[str, Sequence[RenderableType | None]]] = [
        ("Expected", [_prospect_table(advice)]),
        ("Why", [_points(_sentences(advice.reasons))]),
        ("What would change it", [_points(_sentences(advice.change))]),
        ("Missing", [_points(_missing(evidence))]),
        ("Evidence", [_condition_table(evidence), _points(_evidence_lines(evidence)), _fit_table(evidence.fit)]),
        ("Time", [_points(words.time(evidence))]),
        ("Settings", [_points([words.trained_with(advice.settings, evidence.subject.train)])]),
        ("Run next", [commands or None]),
    ]
    return [
        advice.headline,
        _grid([(f"  {words.about(evidence.subject)}",)]),
        *(line for title, contents in sections for line in _titled(title, contents)),
    ]


def _titled(title: str, contents: Sequence[RenderableType | None]) -> Iterator[RenderableType]:
    """The contents below a title; nothing without contents."""
    present = [content for content in contents if content is not None]
    if present:
        yield from ("", f"{title}:", *present)


def _points(lines: Iterable[str]) -> rich_table.Table | None:
    """Lines that wrap beside a dash; None without a line."""
    rows = [("  -", one_line(line)) for line in lines if line]
    return _grid(rows) if rows else None


def _grid(rows: Iterable[Sequence[str]]) -> rich_table.Table:
    from rich.table import Table

    table = Table.grid(padding=(0, 1, 0, 0))
    for row in rows:
        table.add_row(*row)
    return table


def _prospect_table(advice: Advice) -> rich_table.Table | None:
    table = columns("  choice", "expected score", "how that is known")
    for prospect in advice.prospects:
        name, *rest = _prospect_row(prospect)
        table.add_row(f"{'>' if prospect.choice == advice.choice else ' '} {name}", *rest)
    return table if table.row_count else None


def _evidence_lines(evidence: Evidence) -> Iterator[str]:
    if evidence.strength is not None:
        if evidence.strength.trivial:
            yield words.sentence(f"without a model, {words.trivial_answer(evidence.strength)}")
        yield f"A unigram model of the answers has a loss of {evidence.strength.unigram:.2f}."
    if evidence.learnability is not None:
        yield words.best_trials(evidence.learnability)
        yield words.agreement(evidence.learnability)
        yield words.failures(evidence.learnability)
    yield words.cleanliness(evidence)
    if evidence.fit is not None:
        yield words.fit(evidence.fit)


def _condition_table(evidence: Evidence) -> rich_table.Table | None:
    """The base's losses and scores under each condition."""
    losses, scores = evidence.losses, evidence.scores
    parts = [part for part in words.PARTS if any(part in by_part for by_part in losses.values())]
    heads = [f"loss, {words.PARTS[part]}" for part in parts]
    table = columns("  the base", *heads, "score", right=heads)
    for condition, name in words.CONDITIONS.items():
        if condition in losses or condition in scores:
            values = [words.known(losses.get(condition, {}).get(part)) for part in parts]
            figures = [words.UNKNOWN if value is None else f"{value.value:.2f}" for value in values]
            table.add_row(f"  {name}", *figures, words.share(scores.get(condition)))
    return table if table.row_count else None


def _fit_table(fit: Fit | None) -> rich_table.Table | None:
    """What each method needs; on disk and served for all tasks."""
    if fit is None or not fit.options:
        return None
    right = ("memory", "largest batch", "a step", "disk", "served")
    table = columns("  method", "how", "memory", "fits", *right[1:], right=right)
    for option in fit.options:
        method, *rest = words.option_row(option)
        table.add_row(f"  {method}", *rest)
    return table
