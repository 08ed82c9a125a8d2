"""A `Summary` as a table: one definition of its columns for Markdown, terminal and HTML report.

A cell is marked best only if the difference is significant: a score if the interval of its difference to every other
excludes zero and both have two seeds or more; a measured figure if its runs, two at least, are all better than all runs
of every other method; an exact figure (parameters, bytes on disk) if it is less than every other. No latency is best
where methods add it to bases of different precision.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from halka.report.intervals import Spread, apart, covered
from halka.report.rows import MetricInfo, Row
from halka.report.summary import Summary
from halka.report.units import (
    bounds,
    count,
    decimals,
    duration,
    learning_rate,
    listed,
    percent,
    shortened,
    signed,
    size,
)
from halka.util.text import one_line, plural

if TYPE_CHECKING:
    from rich.table import Table

NOTHING = "–"
COMPACT = (
    *("method", "score", "relative", "trainable", "beyond", "tokens_per_second"),
    *("adapter", "latency", "forgetting"),
)


@dataclass(frozen=True)
class Cell:
    """One cell: its text, the number it sorts by, text in brackets after it, a longer note, whether it is best."""

    text: str
    sort: float | None = None
    aside: str = ""
    note: str = ""
    best: bool = False

    @property
    def whole(self) -> str:
        return f"{self.text} {self.aside}".strip()


@dataclass(frozen=True)
class Column:
    """One column: `cell` returns a row's cell, `beats` whether the first row is significantly better."""

    key: str
    title: str
    hint: str
    cell: Callable[[Row], Cell]
    beats: Callable[[Row, Row], bool] | None = None


def columns(summary: Summary) -> tuple[Column, ...]:
    """The columns in which some row has a figure, in display order; keys are stable, titles are not."""
    return tuple(
        column
        for column in _every_column(summary)
        if column.key == "method" or any(column.cell(row).text != NOTHING for row in summary.rows)
    )


def _every_column(summary: Summary) -> tuple[Column, ...]:
    primary = summary.primary

    def near_full(row: Row) -> Cell:
        near = summary.near_full.get(row.label)
        if near is None:
            return Cell(NOTHING)
        return Cell(f"{near.steps:.0f}", near.steps, near.aside)

    def time_near_full(row: Row) -> Cell:
        near = summary.near_full.get(row.label)
        return _exact(near and near.seconds, duration)

    def forgotten(row: Row) -> Cell:
        near = summary.near_full.get(row.label)
        return (
            Cell(NOTHING) if near is None or near.forgetting is None else Cell(signed(near.forgetting), near.forgetting)
        )

    return (
        Column("method", "Method", "", lambda row: Cell(row.label)),
        Column("settings", "Settings", "the method's hyper-parameters", _settings),
        Column("lr", "lr", "the chosen learning rate", _learning_rate),
        Column("seeds", "Seeds", "finished final runs", lambda row: _exact(row.runs if row.final else 0, str)),
        Column("steps", "Steps", "steps of training", lambda row: _exact(row.steps, str)),
        _score("score", primary),
        Column("relative", "Of full", f"share of full fine-tuning's {primary.title}", _relative),
        Column("near_full", "Steps to 95 %", "steps to 95 % of full fine-tuning's score", near_full),
        Column("time_near_full", "Time to 95 %", "time of training until then", time_near_full),
        Column("forgetting_near_full", "Forgetting there", "change of perplexity on other text by then", forgotten),
        *(_score(f"score:{metric.name}", metric) for metric in summary.metrics[1:]),
        _measured("validation_loss", "Val. loss", "validation loss", lambda r: r.validation_loss, decimals, False),
        _counted("trainable", "Trained", "trained parameters, and their share of all", _trainable),
        _measured("peak", "Peak memory", "peak memory of the process", lambda r: r.peak, size, False),
        _measured(
            "beyond",
            "Beyond base",
            "what training added to the process with the base loaded",
            get=lambda row: row.beyond,
            text=size,
            higher=False,
        ),
        _measured(
            "tokens_per_second",
            "Tokens/s",
            "training speed, padding not counted",
            get=lambda row: row.tokens_per_second,
            text=lambda value: f"{value:.0f}",
            higher=True,
        ),
        _measured("seconds", "Time", "wall time of training", lambda row: row.seconds, duration, False),
        _counted("adapter", "On disk", "bytes of the saved adapter", lambda r: _exact(r.adapter_bytes, size)),
        _counted("storage", "100 tasks", "bytes on disk for 100 tasks, the base included", _storage),
        _measured(
            "latency",
            "Latency",
            "added time a generated token",
            get=lambda row: row.latency,
            text=signed,
            higher=False,
            comparable=lambda a, b: (a.dtype, a.quantize) == (b.dtype, b.quantize),  # whose time it adds to
        ),
        _measured(
            "forgetting",
            "Forgetting",
            "change of perplexity on other text",
            get=lambda row: row.forgetting,
            text=signed,
            higher=False,
        ),
    )


def cells(summary: Summary, column: Column) -> list[Cell]:
    """The column's cells, one per row, the significantly best one marked."""
    best = _best(summary.rows, column)
    return [replace(column.cell(row), best=row is best) for row in summary.rows]


def to_markdown(summary: Summary) -> str:
    """The summary's most important columns as a Markdown table with its caption."""
    shown = _compact(summary)
    lines = [[escaped(column.title) for column in shown]]
    lines.append(["---" if column.key == "method" else "---:" for column in shown])
    table = [cells(summary, column) for column in shown]
    for i in range(len(summary.rows)):
        row = [escaped(cell.text) if cell.sort is None else cell.whole for cell in (c[i] for c in table)]
        lines.append([f"**{text}**" if column[i].best else text for text, column in zip(row, table, strict=True)])
    body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{body}\n\n{escaped(caption(summary))}\n"


def to_rich(summary: Summary) -> Table:
    """The summary's most important columns as a `rich` table for a terminal."""
    from rich.table import Table
    from rich.text import Text

    shown = _compact(summary)
    table = Table(title=Text(f"{summary.task} on {summary.base}"), caption=Text(caption(summary)))
    for column in shown:
        left = column.key == "method"
        table.add_column(Text(column.title), justify="left" if left else "right", no_wrap=left)
    by_column = [cells(summary, column) for column in shown]
    for i in range(len(summary.rows)):
        row = [in_column[i] for in_column in by_column]
        table.add_row(*(Text(cell.whole, style="bold" if cell.best else "") for cell in row))
    return table


def caption(summary: Summary) -> str:
    """One line: task, base, seeds, test items, the meaning of brackets and bold, rates at an edge, commit."""
    scores = [row.scores[summary.primary.name] for row in summary.rows if summary.primary.name in row.scores]
    items = sorted({score.items for score in scores if score.items is not None})
    over = covered(scores)
    seeds = max((row.runs for row in summary.rows if row.final and not row.is_base), default=0)
    edge = [row.label for row in summary.rows if row.at_edge]
    parts = [
        f"{summary.task} on {summary.base}",
        f"up to {plural(seeds, 'seed')} a method" if seeds else "",
        f"{items[0]} test items" if len(items) == 1 else "",
        f"in brackets 95 % intervals over {over}" if over else "",
        "bold where the best can be told apart" if seeds else "",
        f"of the rates tried the highest or lowest was best for {listed(edge)}" if edge else "",
        f"commit {summary.provenance.commits[0]}" if len(summary.provenance.commits) == 1 else "",
    ]
    text = "; ".join(part for part in parts if part)
    return f"{text[:1].upper()}{text[1:]}."


def _compact(summary: Summary) -> list[Column]:
    by_key = {column.key: column for column in columns(summary)}
    return [by_key[key] for key in COMPACT if key in by_key]


def _best(rows: Sequence[Row], column: Column) -> Row | None:
    """The tuned row that beats every other one with a figure; None if there is none."""
    having = [row for row in rows if not row.is_base and column.cell(row).text != NOTHING]
    beats = column.beats
    if beats is None or len(having) < 2:
        return None
    return next((row for row in having if all(beats(row, other) for other in having if other is not row)), None)


def _score(key: str, metric: MetricInfo) -> Column:
    def cell(row: Row) -> Cell:
        score = row.scores.get(metric.name)
        if score is None:
            return Cell(NOTHING)
        if score.low is None or score.high is None:
            return Cell(metric.text(score.value), score.value, note=score.how)
        aside = bounds(score.low, score.high, None if metric.is_share else 2)
        note = f"95 % interval {metric.text(score.low)} to {metric.text(score.high)}, from {score.how}"
        return Cell(metric.text(score.value), score.value, aside, note)

    def beats(a: Row, b: Row) -> bool:
        if a.one_seed(metric.name) or b.one_seed(metric.name):
            return False
        mine, theirs = a.scores[metric.name], b.scores[metric.name]
        return apart(mine, theirs) and metric.sign(mine.value) > metric.sign(theirs.value)

    arrow = "" if metric.higher_is_better else " ↓"
    hint = f"{metric.title}: {'higher' if metric.higher_is_better else 'lower'} is better"
    return Column(key, metric.title.capitalize() + arrow, hint, cell, beats)


def _measured(
    key: str,
    title: str,
    hint: str,
    get: Callable[[Row], Spread | None],
    text: Callable[[float], str],
    higher: bool,
    comparable: Callable[[Row, Row], bool] = lambda a, b: True,
) -> Column:
    def cell(row: Row) -> Cell:
        figure = get(row)
        if figure is None or (row.is_base and figure.mean == 0):
            return Cell(NOTHING)
        note = f"{text(figure.low)} to {text(figure.high)} over {figure.n} runs" if figure.n > 1 else "one run"
        return Cell(text(figure.mean), figure.mean, note=note)

    def beats(a: Row, b: Row) -> bool:
        mine, theirs = get(a), get(b)
        if mine is None or theirs is None or min(mine.n, theirs.n) < 2 or not comparable(a, b):
            return False
        return mine.low > theirs.high if higher else mine.high < theirs.low

    return Column(key, title, hint, cell, beats)


def _counted(key: str, title: str, hint: str, cell: Callable[[Row], Cell]) -> Column:
    def beats(a: Row, b: Row) -> bool:
        mine, theirs = cell(a).sort, cell(b).sort
        return mine is not None and theirs is not None and mine < theirs

    return Column(key, title, hint, cell, beats)


def _exact(value: float | None, text: Callable[[float], str]) -> Cell:
    return Cell(text(value), value) if value else Cell(NOTHING)


def _settings(row: Row) -> Cell:
    text = ", ".join(f"{one_line(name)} {one_line(value)}" for name, value in row.fields.items())
    return Cell(shortened(text, 60), note=text) if text else Cell(NOTHING)


def _learning_rate(row: Row) -> Cell:
    tried = f"tried: {', '.join(learning_rate(lr) for lr in row.lrs)}" if row.lrs else ""
    return Cell(NOTHING) if row.lr is None else Cell(learning_rate(row.lr), row.lr, note=tried)


def _relative(row: Row) -> Cell:
    if row.relative is None or row.is_base:
        return Cell(NOTHING)
    value, interval = row.relative, row.relative_interval
    note = f"95 % interval {percent(interval.low)} to {percent(interval.high)}" if interval else ""
    aside = bounds(interval.low, interval.high) if interval else ""
    return Cell(percent(value, 0), value, aside, note)


def _trainable(row: Row) -> Cell:
    if not row.trainable:
        return Cell(NOTHING)
    share = f"({percent(row.share)})" if row.share is not None else ""
    return Cell(count(row.trainable), row.trainable, share, f"{row.trainable:,.0f} parameters")


def _storage(row: Row) -> Cell:
    return _exact(row.storage.get("100"), size)


def escaped(text: str) -> str:
    """`text` with what Markdown would read as its own signs escaped."""
    return re.sub(r"([\\`*_\[\]|<>#])", r"\\\1", text)
