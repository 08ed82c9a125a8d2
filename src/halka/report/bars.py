"""Plots of bars, one a method: where memory goes, speed of training, forgetting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from halka.report import sentences
from halka.report.labels import LINE, text_width
from halka.report.rows import MEMORY_PARTS, Measurement, entry
from halka.report.summary import Summary
from halka.report.svg import Look, colour, grid, looks, name_axes, new_figure
from halka.report.units import MINUS, shortened, signed, size
from halka.util.text import one_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PART_NAMES = {"optimizer": "optimiser"}


@dataclass(frozen=True)
class Key:
    """An entry of a legend: its text, its colour (None is an outline), and a marker in a rectangle's place."""

    text: str
    fill: str | None
    marker: str = ""


def memory(summary: Summary, _: Sequence[Measurement]) -> tuple[Figure, str, str] | None:
    """Memory by what it is spent on: measured as filled bars, predicted as outlines under them."""
    rows = [row for row in summary.rows if not row.is_base and sum(row.memory.values()) > 0]
    if not rows:
        return None
    figure, axes = bar_axes([row.label for row in rows], right=56, top=44)
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
        value_at(axes, sum(row.memory.values()), i - 0.12, size(sum(row.memory.values())))
    grid(axes, "x")
    axes.xaxis.set_major_formatter(lambda value, _: size(value).replace(".0", "") if value else "0")
    axes.set_xlim(0, None)
    parts = [part for part in MEMORY_PARTS if any(row.memory.get(part) for row in rows)]
    keys = [Key(PART_NAMES.get(part, part), colour(f"--{part}")) for part in parts]
    legend(axes, [*keys, *([Key("predicted", None)] if any(row.predicted for row in rows) else [])])
    return figure, "Where the memory goes in training", sentences.memory_takeaway(summary.rows)


def speed(summary: Summary, _: Sequence[Measurement]) -> tuple[Figure, str, str] | None:
    """Training speed; whiskers from the slowest to the fastest run."""
    rows = [row for row in summary.rows if row.tokens_per_second is not None and not row.is_base]
    if not rows:
        return None
    figure, axes = bar_axes([row.label for row in rows], right=44)
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
    figure, axes = bar_axes([row.label for row in rows], right=44)
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


def bar_axes(names: Sequence[str], right: float, top: float = 12, each: float = 31) -> tuple[Figure, Axes]:
    """Axes for one horizontal bar a name, the first on top, named at the left."""
    from matplotlib.ticker import MaxNLocator

    labels = [shortened(name) for name in names]
    _, axes = new_figure(left=60, right=right)
    left = max(text_width(axes, label) for label in labels) + 10
    figure, axes = new_figure(left=left, right=right, top=top, height=max(150, 62 + top + each * len(names)))
    axes.set_yticks(range(len(names)), labels, color=colour("--ink"))
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.spines["bottom"].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    grid(axes, "x")
    return figure, axes


def _bar(axes: Axes, y: float, value: float, low: float, high: float, look: Look, text: str) -> None:
    axes.barh(y, value, 0.56, color=look.colour)
    if low < high:
        axes.plot([low, high], [y, y], color=colour("--paper"), linewidth=3.4, solid_capstyle="butt")
        axes.plot([low, high], [y, y], color=colour("--ink"), linewidth=1.2, solid_capstyle="butt")
    value_at(axes, max(value, high, 0.0), y, text)


def value_at(axes: Axes, x: float, y: float, text: str) -> None:
    """A figure right of a bar's end."""
    axes.annotate(text, (x, y), xytext=(5, 0), textcoords="offset points", va="center_baseline", annotation_clip=False)


def legend(axes: Axes, keys: Sequence[Key]) -> None:
    """What colours and marks mean, from the figure's upper left corner on, in as many lines as that takes."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Rectangle

    figure, start = axes.figure, 6.0
    x, y = start, figure.bbox.y1 - 18
    for key in keys:
        width = 24 + text_width(axes, key.text)
        if x > start and x + width > figure.bbox.x1:
            x, y = start, y - LINE
        if key.marker:
            figure.add_artist(Line2D([x + 5], [y], color=key.fill, marker=key.marker, markersize=7, transform=None))
        else:
            height = 5 if key.fill is None else 9
            edge, fill = key.fill or colour("--muted"), key.fill or "none"
            place = (x, y - height / 2)
            figure.add_artist(Rectangle(place, 10, height, facecolor=fill, edgecolor=edge, transform=None))
        axes.annotate(key.text, (x + 14, y), xycoords="figure pixels", color=colour("--muted"), va="center_baseline")
        x += width
