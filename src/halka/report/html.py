"""The report: one self-contained HTML file, computed from the measurements alone."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from halka.report.key_figures import key_figures
from halka.report.page import fill, write_page
from halka.report.plots import draw_plots
from halka.report.rows import Measurement, Row, is_done, label_of, number, used_runs
from halka.report.summary import Summary, summarise
from halka.report.svg import looks
from halka.report.table import COMPACT, Cell, Column, cells, columns
from halka.report.units import duration, learning_rate, listed, size
from halka.util.text import one_line

MAIN = (*COMPACT, "validation_loss")
SHOWN, LENGTH = 8, 700  # items; characters of one text


@dataclass(frozen=True)
class Strip:
    """An interval and its value on the scale that all rows share, in per cent of the scale's width."""

    low: float
    high: float
    at: float


@dataclass(frozen=True)
class Section:
    """A part of the report from another kind of measurement: its HTML, and its result in one sentence."""

    html: str
    headline: str


def write_report(
    measurements: Sequence[Measurement],
    path: str | os.PathLike[str],
    title: str | None = None,
    command: str | None = None,
    sections: Sequence[Section] = (),
) -> Path:
    """Write the report on one experiment's measurements atomically to `path`, and return the path.

    measurements    the JSON that `halka.studies.measure` writes, of finished and failed runs
    title           the page's title; by default the task and the base
    command         the command that repeats the measurements
    sections        further parts, placed after the methods; without measurements the first gives the headline

    The same measurements give the same bytes. Raises HalkaError if `path` is a folder, and if the measurements
    mix tasks, bases or primary metrics.
    """
    return write_page(path, lambda: render(measurements, title, command, sections))


def render(
    measurements: Sequence[Measurement],
    title: str | None = None,
    command: str | None = None,
    sections: Sequence[Section] = (),
) -> str:
    """The report as text; see `write_report`."""
    from markupsafe import Markup

    summary = summarise(measurements, command)
    plots = draw_plots(summary, measurements)
    items = side_by_side(summary.rows, measurements)
    return fill(
        "report.html.j2",
        ["report.css"],
        ["report.js"],
        title=one_line(title or (f"{summary.task} on {summary.base}" if measurements else "Report")),
        summary=summary,
        headline=sections[0].headline if sections and not measurements else summary.headline,
        sections=[Markup(section.html) for section in sections],
        cards=key_figures(summary),
        main=_table(summary, MAIN),
        rest=_table(summary, ["method", *(c.key for c in columns(summary) if c.key not in MAIN)]),
        runs=_runs(summary, measurements),
        plots=[plot for plot in plots if plot.name != "quality"],
        hero=next((plot for plot in plots if plot.name == "quality"), None),
        items=items,
        tally=tally(items),
        variables={label: look.variable for label, look in looks(summary.rows).items()},
        strips=_strips(summary),
        learning_rate=learning_rate,
        size=size,
    )


def _table(summary: Summary, keys: Sequence[str]) -> dict[str, Any]:
    """The columns of these keys, and rows of their cells."""
    shown = [column for column in columns(summary) if column.key in keys]
    by_column = [cells(summary, column) for column in shown]
    rows: list[tuple[Row, list[tuple[Column, Cell]]]] = [
        (row, [(column, in_column[i]) for column, in_column in zip(shown, by_column, strict=True)])
        for i, row in enumerate(summary.rows)
    ]
    return {"columns": shown, "rows": rows}


def _strips(summary: Summary) -> dict[str, Strip]:
    scores = {
        row.label: score for row in summary.rows if (score := row.scores.get(summary.primary.name)) and score.interval
    }
    ends = [end for score in scores.values() for end in (score.low, score.high) if end is not None]
    ends += [0.0] if summary.primary.is_share else []
    start, width = min(ends, default=0.0), max(ends, default=0.0) - min(ends, default=0.0)

    def at(value: float | None) -> float:
        return round(100 * ((value or 0.0) - start) / width, 2) if width > 0 else 0.0

    return {label: Strip(at(s.low), at(s.high), at(s.value)) for label, s in scores.items()}


def _runs(summary: Summary, measurements: Sequence[Measurement]) -> list[list[Cell]]:
    """Every run as a line of cells: method, purpose, rate, seed, best step, loss, score, speed, peak, time, outcome."""
    order = {row.label: i for i, row in enumerate(summary.rows)}
    primary = summary.primary

    def cell(value: float | None, text: Any) -> Cell:
        return Cell("–") if value is None else Cell(text(value), value)

    def line(run: Measurement) -> list[Cell]:
        steps, best = number(run, "train", "steps"), number(run, "train", "best_step")
        return [
            Cell(label_of(run)),
            Cell(one_line(run.get("purpose") or "")),
            cell(number(run, "lr"), learning_rate),
            cell(number(run, "seed"), lambda value: f"{value:.0f}"),
            cell(best, lambda value: f"{value:.0f}" + (f" of {steps:.0f}" if steps is not None else "")),
            cell(number(run, "validation_loss"), lambda value: f"{value:.3f}"),
            cell(number(run, "scores", primary.name, "value"), primary.text),
            cell(number(run, "train", "tokens_per_second"), lambda value: f"{value:.0f}"),
            cell(number(run, "memory", "peak"), size),
            cell(number(run, "train", "seconds"), duration),
            Cell("done" if is_done(run) else "failed"),
        ]

    def key(run: Measurement) -> tuple[Any, ...]:
        first = order.get(label_of(run), len(order)), run.get("purpose") != "search"
        return *first, number(run, "lr") or 0.0, number(run, "seed") or 0.0

    return [line(run) for run in sorted(measurements, key=key)]


# ── every method's answers to the same items ────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Prediction:
    """One method's answer, and whether it equals a reference once both are stripped."""

    label: str
    text: str
    matches: bool


@dataclass(frozen=True)
class Item:
    """One prompt, its references, and the answers in the rows' order."""

    prompt: str
    references: tuple[str, ...]
    predictions: tuple[Prediction, ...]


def side_by_side(rows: Sequence[Row], measurements: Sequence[Measurement]) -> tuple[Item, ...]:
    """The first items with samples; a method's answers come from the run with its lowest seed."""
    references: dict[tuple[str, int], tuple[str, ...]] = {}  # by the prompt, and how many items before had the same
    answers: dict[tuple[tuple[str, int], str], str] = {}
    used = used_runs(measurements)
    for row in rows:
        with_samples = [run for run in used.get(row.label, ()) if _samples(run)]
        if not with_samples:
            continue
        seen = Counter[str]()
        for sample in _samples(min(with_samples, key=lambda run: number(run, "seed") or 0.0)):
            prompt = _text(sample.get("prompt"))
            item = prompt, seen[prompt]
            seen[prompt] += 1
            references.setdefault(item, _references(sample.get("references") or sample.get("reference")))
            answers[item, row.label] = _text(sample.get("prediction"))
    return tuple(
        Item(
            _short(item[0]),
            tuple(map(_short, accepted)),
            tuple(
                Prediction(
                    row.label,
                    _short(answer),
                    answer.strip() in {reference.strip() for reference in accepted},
                )
                for row in rows
                if (answer := answers.get((item, row.label))) is not None
            ),
        )
        for item, accepted in list(references.items())[:SHOWN]
    )


def tally(items: Sequence[Item]) -> str:
    """A sentence on how many of the shown answers equal a reference."""
    right: dict[str, list[bool]] = {}
    for item in items:
        for prediction in item.predictions:
            right.setdefault(prediction.label, []).append(prediction.matches)
    if not right:
        return ""
    counts = listed([f"{label} {sum(matches)} of {len(matches)}" for label, matches in right.items()])
    return (
        f"Equal to a reference, letter for letter: {counts}. "
        "So few items illustrate; the scores above are the evidence."
    )


def _samples(run: Measurement) -> list[Mapping[str, Any]]:
    samples = run.get("samples")
    return [sample for sample in samples if isinstance(sample, Mapping)] if isinstance(samples, list) else []


def _references(value: Any) -> tuple[str, ...]:
    return tuple(_text(v) for v in value) if isinstance(value, list | tuple) else (_text(value),)


def _text(value: Any) -> str:
    """A text, or a conversation (a list of `{"role", "content"}`) as text."""
    if isinstance(value, list):
        turns = [turn if isinstance(turn, Mapping) else {"content": turn} for turn in value]
        return "\n".join(
            f"{turn['role']}: {turn.get('content', '')}" if "role" in turn else str(turn.get("content", ""))
            for turn in turns
        )
    return "" if value is None else str(value)


def _short(text: str) -> str:
    return text if len(text) <= LENGTH else f"{text[:LENGTH].rstrip()} …"
