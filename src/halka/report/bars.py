"""Plots of bars, one a method: where memory goes, speed of training, forgetting."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from halka.report import sentences
from halka.report.labels import text_width
from halka.report.rows import MEMORY_PARTS, Measurement, Row, entry
from halka.report.summary import Summary
from halka.report.svg import Look, colour, grid, looks, name_axes, new_figure
from halka.report.units import MINUS, one_line, shortened, signed, size

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def memory(summary: Summary, _: Sequence[Measurement]) -> tuple[Figure, str, str] | None:
    """Memory by what it is spent on: measured as filled bars, predicted as outlines under them."""
    rows = [row for row in summary.rows if not row.is_base and sum(row.memory.values()) > 0]
    if not rows:
        return None
    figure, axes = _bar_axes(rows, right=56, top=44)
    for i, row in enumerate(rows):
        for of, y, height in ((row.memory, i - 0.12, 0.46), (row.predicted, i + 0.27, 0.2)):
            start = 0.0
            for part in MEMORY_PARTS:
                width, fill = of.get(part, 0.0), colour(f"--{part}")
                if width <= 0:
                    continue
                if of is row.memory:
                    axes.barh(y, width, height, start, color=fill, edgecolor=colour("--paper"), linewidth=0.6)
                else:
                    axes.barh(y, width, height, start, color="none", edgecolor=fill, linewidth=1.0)
                start += width
        _value(axes, sum(row.memory.values()), i - 0.12, size(sum(row.memory.values())))
    grid(axes, "x")
    axes.xaxis.set_major_formatter(lambda value, _: size(value).replace(".0", "") if value else "0")
    axes.set_xlim(0, None)
    named = {"optimizer": "optimiser"}
    x, y = 6.0, axes.bbox.y1 + 26
    entries = [(part, named.get(part, part)) for part in MEMORY_PARTS if any(row.memory.get(part) for row in rows)]
    entries += [("", "predicted")] if any(row.predicted for row in rows) else []
    for part, text in entries:
        _swatch(figure, x, y, colour(f"--{part}") if part else None)
        axes.annotate(text, (x + 14, y), xycoords="figure pixels", color=colour("--muted"), va="center_baseline")
        x += 24 + text_width(axes, text)
    return figure, "Where the memory goes in training", sentences.memory_takeaway(summary.rows)


def speed(summary: Summary, _: Sequence[Measurement]) -> tuple[Figure, str, str] | None:
    """Training speed; whiskers from the slowest to the fastest run."""
    rows = [row for row in summary.rows if row.tokens_per_second is not None and not row.is_base]
    if not rows:
        return None
    figure, axes = _bar_axes(rows, right=44)
    look = looks(summary.rows)
    for i, row in enumerate(rows):
        figures = row.tokens_per_second
        assert figures is not None
        _bar(axes, i, figures.mean, figures.low, figures.high, look[row.label], f"{figures.mean:.0f}")
    axes.set_xlim(0, None)
    name_axes(axes, "tokens a second", "")
    return figure, "Speed of training", sentences.speed_takeaway(summary.rows)


def forgetting(summary: Summary, measurements: Sequence[Measurement]) -> tuple[Figure, str, str] | None:
    """How much perplexity on other text changed; whiskers from the least to the greatest run."""
    rows = [row for row in summary.rows if row.forgetting is not None and not row.is_base]
    if not rows:
        return None
    figure, axes = _bar_axes(rows, right=44)
    look = looks(summary.rows)
    for i, row in enumerate(rows):
        figures = row.forgetting
        assert figures is not None
        _bar(axes, i, figures.mean, figures.low, figures.high, look[row.label], signed(figures.mean))
    axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:+.3g} %".replace("-", MINUS) if value else "0")
    axes.axvline(0, color=colour("--muted"), linewidth=0.8)
    texts = [text for run in measurements if (text := entry(run, "forgetting", "text"))]
    text = one_line(texts[0]) if texts else ""
    name_axes(axes, f"change of perplexity on “{shortened(text, 30)}”" if text else "change of perplexity", "")
    return figure, "Forgetting", sentences.forgetting_takeaway(summary.rows, text)


def _bar_axes(rows: Sequence[Row], right: float, top: float = 12) -> tuple[Figure, Axes]:
    """Axes for one horizontal bar a row, the first on top, named at the left."""
    from matplotlib.ticker import MaxNLocator

    labels = [shortened(row.label) for row in rows]
    _, axes = new_figure(left=60, right=right)
    left = max(text_width(axes, label) for label in labels) + 10
    figure, axes = new_figure(left=left, right=right, top=top, height=max(150, 62 + top + 31 * len(rows)))
    axes.set_yticks(range(len(rows)), labels, color=colour("--ink"))
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.spines["bottom"].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    grid(axes, "x")
    return figure, axes


def _bar(axes: Axes, y: float, value: float, low: float, high: float, look: Look, text: str) -> None:
    axes.barh(y, value, 0.56, color=look.colour)
    if low < high:
        axes.plot([low, high], [y, y], color=colour("--paper"), linewidth=3.4, solid_capstyle="butt")
        axes.plot([low, high], [y, y], color=colour("--ink"), linewidth=1.2, solid_capstyle="butt")
    _value(axes, max(value, high, 0.0), y, text)


def _value(axes: Axes, x: float, y: float, text: str) -> None:
    axes.annotate(text, (x, y), xytext=(5, 0), textcoords="offset points", va="center_baseline", annotation_clip=False)


def _swatch(figure: Figure, x: float, y: float, fill: str | None) -> None:
    from matplotlib.patches import Rectangle

    edge = colour("--muted") if fill is None else fill
    height = 5 if fill is None else 9
    figure.add_artist(
        Rectangle((x, y - height / 2), 10, height, facecolor=fill or "none", edgecolor=edge, transform=None)
    )
