"""The report's plots: inline SVGs, each with a sentence that states its result.

All are drawn at the width of a phone's screen, so that a plot is legible alone and with two others in a row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from statistics import mean
from typing import TYPE_CHECKING

from halka.report import findings
from halka.report.axes import (
    DASHES,
    Banded,
    Key,
    Name,
    at_the_right,
    banded,
    bar_axes,
    beside,
    interval,
    legend,
    log_scale_if_wide,
    log_ticks,
    mark,
    padded,
    room,
    stacked,
    tall,
    text_width,
    value_at,
    with_bands,
)
from halka.report.intervals import Spread
from halka.report.rows import MEMORY_PARTS, Measurement, Row, entry, is_done, label_of, number, used_runs
from halka.report.score_curves import progress
from halka.report.summary import Summary
from halka.report.svg import Drawing, Plot, colour, drawn, grid, looks, name_axes, new_figure
from halka.report.units import MINUS, count, learning_rate, shortened, signed, size
from halka.util.text import one_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Maker = Callable[[Summary, Sequence[Measurement]], Drawing | None]
"""Draws a plot; None where there is nothing to draw."""

POINTS = 200  # the most points drawn of one curve
TASKS = (1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 70, 100, 150, 200, 300, 500, 700, 1000)
PART_NAMES = {"optimizer": "optimiser"}


def draw_plots(summary: Summary, measurements: Sequence[Measurement]) -> tuple[Plot, ...]:
    """Every plot for which the measurements have figures; the same input gives the same text."""
    makers: tuple[Maker, ...] = (
        quality,
        memory,
        storage,
        curves,
        progress,
        search,
        speed,
        forgetting,
    )
    return tuple(plot for make in makers if (plot := drawn(make, summary, measurements)) is not None)


def quality(summary: Summary, _: Sequence[Measurement]) -> Drawing | None:
    """Score against trained parameters, with 95 % intervals; the base as a line."""
    metric = summary.primary
    rows = [row for row in summary.rows if not row.is_base and row.trainable and metric.name in row.scores]
    if not rows:
        return None
    look = looks(summary.rows)
    figure, axes = new_figure(left=48, right=16)
    axes.set_xscale("log")
    names, sizes = [], [row.trainable or 1.0 for row in rows]
    ends: list[float] = []
    bars = []
    for row, x in zip(rows, sizes, strict=True):
        score, style = row.scores[metric.name], look[row.label]
        low, high = (score.value if end is None else end for end in (score.low, score.high))
        interval(axes, x, (low, high), style.colour)
        mark(axes, x, score.value, style)
        names.append(Name(row.label, x, score.value, style.colour))
        ends += [low, high]
        bars.append((x, low, high))
    base = summary.base_row
    floor = base.scores[metric.name].value if base is not None and metric.name in base.scores else None
    ends += [floor] if floor is not None else []
    ends += [0.0] if metric.is_share else []
    axes.set_ylim(padded(ends, 0.05))
    axes.set_xlim(min(sizes) / 3, max(sizes) * 3)
    grid(axes, "y")
    log_ticks(axes.xaxis, min(sizes), max(sizes))
    axes.xaxis.set_major_formatter(lambda value, _: count(value).replace(".0", ""))
    if metric.is_share:
        axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    axes.minorticks_off()
    blocked = []
    for x, low, high in bars:
        (left, bottom), (_, top) = axes.transData.transform([(x, low), (x, high)])
        blocked.append((left - 3, bottom, left + 3, top))
    if base is not None and floor is not None:
        axes.axhline(floor, color=colour("--base"), linewidth=1.2, linestyle=DASHES)
        left, y = axes.transData.transform((axes.get_xlim()[0], floor))
        width = text_width(axes, base.label)
        blocked.append((axes.bbox.x0, y - 2, axes.bbox.x1, y + 2))
        clear = axes.bbox.x1 - width - 4
        axes.annotate(
            shortened(base.label),
            (clear, y),
            xycoords="figure pixels",
            xytext=(0, 5),
            textcoords="offset points",
            color=colour("--muted"),
        )
        blocked.append((clear, y, clear + width, y + 18))
    beside(axes, names, blocked)
    better = "" if metric.higher_is_better else " (lower is better)"
    name_axes(axes, "trained parameters", f"{metric.title}{better}")
    return figure, "Quality for size", findings.quality_takeaway(summary.rows, metric)


def storage(summary: Summary, _: Sequence[Measurement]) -> Drawing | None:
    """Bytes on disk against the number of tasks: the base and an adapter a task, or a full copy a task."""
    rows = [row for row in summary.rows if row.storage and row.adapter_bytes]
    if not rows:
        return None
    look = looks(summary.rows)
    figure, axes = new_figure(left=52, right=room([row.label for row in rows]), height=tall(len(rows)))
    axes.set_xscale("log")
    axes.set_yscale("log")
    names = []
    for row in rows:
        adapter_bytes = row.adapter_bytes or 0.0
        shared_bytes = row.storage["1"] - adapter_bytes
        sizes = [shared_bytes + n * adapter_bytes for n in TASKS]
        axes.plot(TASKS, sizes, color=look[row.label].colour, linewidth=1.8, solid_capstyle="round")
        names.append(Name(row.label, TASKS[-1], sizes[-1], look[row.label].colour))
    grid(axes, "y")
    axes.set_xlim(1, TASKS[-1])
    axes.set_xticks([1, 10, 100, 1000], ["1", "10", "100", "1000"])
    axes.yaxis.set_major_formatter(lambda value, _: size(value).replace(".0", ""))
    axes.minorticks_off()
    at_the_right(axes, names)
    name_axes(axes, "tasks", "bytes on disk")
    return figure, "Storage for many tasks", findings.storage_takeaway(summary.rows, summary.base_bytes)


def curves(summary: Summary, measurements: Sequence[Measurement]) -> Drawing | None:
    """Validation loss over steps: the mean of the runs that count, and a band from the least to the greatest."""
    lines, lowest, falling = [], dict[str, float](), []
    used = used_runs(measurements)
    for row in summary.rows:
        runs = used.get(row.label, [])
        points = _joined([entry(run, "train", "validation") or [] for run in runs])
        if len(points) > 1 and not row.is_base:
            lines.append((row, points))
            losses = [[point["loss"] for point in entry(run, "train", "validation") or []] for run in runs]
            lowest[row.label] = mean(min(own) for own in losses if own)
            last = [own[-1] == min(own) for own in losses if own]
            falling += [row.label] if sum(last) * 2 > len(last) else []
    if not lines:
        return None
    look = looks(summary.rows)
    figure, axes = new_figure(left=46, right=room([row.label for row, _ in lines]), height=tall(len(lines)))
    names = with_bands(axes, {row.label: points for row, points in lines}, look)
    losses = [value for _, points in lines for point in points for value in point[1:]]
    log_scale_if_wide(axes, min(losses), max(losses))
    grid(axes, "y")
    axes.minorticks_off()
    at_the_right(axes, names)
    name_axes(axes, "steps", "validation loss")
    return figure, "Training curves", findings.curves_takeaway(lowest, falling)


def search(summary: Summary, measurements: Sequence[Measurement]) -> Drawing | None:
    """Validation loss for each learning rate tried; a ring marks the chosen one, crosses at the top failed runs.

    Where several seeds tried a rate, the line is their mean and a band goes from the least to the greatest.
    """
    look = looks(summary.rows)
    searches: list[tuple[Row, list[tuple[float, float]], list[float]]] = []
    bands: list[tuple[Row, list[tuple[float, float, float]]]] = []
    for row in summary.rows:
        runs = [run for run in measurements if label_of(run) == row.label and run.get("purpose") == "search"]
        tried: dict[float, list[float]] = {}
        for run in runs:
            lr, loss = number(run, "lr"), number(run, "validation_loss")
            if is_done(run) and lr is not None and lr > 0 and loss is not None:
                tried.setdefault(lr, []).append(loss)
        lost = {lr for run in runs if not is_done(run) and (lr := number(run, "lr")) is not None and lr > 0}
        if tried:
            points = sorted((lr, mean(losses)) for lr, losses in tried.items())
            searches.append((row, points, sorted(lost)))
            bands.append((row, sorted((lr, min(losses), max(losses)) for lr, losses in tried.items())))
    if not searches:
        return None
    figure, axes = new_figure(left=46, right=26)
    axes.set_xscale("log")
    names, dots = [], []
    rates = [lr for _, points, lost in searches for lr in (*(x for x, _ in points), *lost)]
    losses = [loss for _, band in bands for _, *ends in band for loss in ends]
    pad = 0.12 * (max(losses) - min(losses) or max(losses) or 1.0)
    axes.set_ylim(min(losses) - pad, max(losses) + 1.6 * pad)
    axes.set_xlim(min(rates) / 2, max(rates) * 2)
    for row, band in bands:
        tried_rates, low, high = zip(*band, strict=True)
        axes.fill_between(tried_rates, low, high, color=look[row.label].colour, alpha=0.18, linewidth=0)
    for row, points, lost in searches:
        style = look[row.label]
        axes.plot(*zip(*points, strict=True), color=style.colour, linewidth=1.4, alpha=0.9)
        dots += points
        for x, y in points:
            mark(axes, x, y, style, 7.5 if x == row.lr else 5)
            if x == row.lr:
                axes.plot(x, y, "o", markersize=13, fillstyle="none", color=style.colour, markeredgewidth=1.1)
        for x in lost:
            top = axes.get_ylim()[1] - 0.5 * pad
            axes.plot(x, top, "x", markersize=7, color=style.colour, markeredgewidth=1.8)
            dots.append((x, top))
        best = min(points, key=lambda point: point[1])
        names.append(Name(row.label, *best, style.colour))
    grid(axes, "y")
    log_ticks(axes.xaxis, min(rates), max(rates))
    axes.xaxis.set_major_formatter(lambda value, _: learning_rate(value))
    axes.minorticks_off()
    blocked = [(float(x) - 8, float(y) - 8, float(x) + 8, float(y) + 8) for x, y in axes.transData.transform(dots)]
    for _, points, _ in searches:
        blocked += _along(axes, points)
    beside(axes, names, blocked, gap=10)
    keys = "ringed: chosen" + ("; ×: failed" if any(lost for *_, lost in searches) else "")
    name_axes(axes, "learning rate", f"validation loss ({keys})")
    return figure, "Search for the learning rate", findings.search_takeaway([row for row, *_ in searches])


def memory(summary: Summary, _: Sequence[Measurement]) -> Drawing | None:
    """Memory by part: measured as filled bars, predicted as outlines under them."""
    rows = [row for row in summary.rows if not row.is_base and sum(row.memory.values()) > 0]
    if not rows:
        return None
    figure, axes = bar_axes([row.label for row in rows], right=56, top=44)
    fills = {part: colour(f"--{part}") for part in MEMORY_PARTS}
    for i, row in enumerate(rows):
        for of, y, height in ((row.memory, i - 0.12, 0.46), (row.predicted, i + 0.27, 0.2)):
            parts = {part: of[part] for part in MEMORY_PARTS if of.get(part, 0.0) > 0}
            stacked(axes, y, parts, fills, height, outlined=of is row.predicted)
        value_at(axes, sum(row.memory.values()), i - 0.12, size(sum(row.memory.values())))
    grid(axes, "x")
    axes.xaxis.set_major_formatter(lambda value, _: size(value).replace(".0", "") if value else "0")
    axes.set_xlim(0, None)
    shown = [part for part in MEMORY_PARTS if any(row.memory.get(part) for row in rows)]
    keys = [Key(PART_NAMES.get(part, part), fills[part]) for part in shown]
    legend(axes, [*keys, *([Key("predicted", None)] if any(row.predicted for row in rows) else [])])
    return figure, "Where the memory goes in training", findings.memory_takeaway(summary.rows)


def speed(summary: Summary, _: Sequence[Measurement]) -> Drawing | None:
    """Training speed; whiskers from the slowest to the fastest run."""
    bars = _bars(summary, lambda row: row.tokens_per_second, lambda value: f"{value:.0f}")
    if bars is None:
        return None
    figure, axes = bars
    axes.set_xlim(0, None)
    name_axes(axes, "tokens a second", "")
    return figure, "Speed of training", findings.speed_takeaway(summary.rows)


def forgetting(summary: Summary, measurements: Sequence[Measurement]) -> Drawing | None:
    """How much perplexity on other text changed; whiskers from the least to the greatest run."""
    bars = _bars(summary, lambda row: row.forgetting, signed)
    if bars is None:
        return None
    figure, axes = bars
    axes.xaxis.set_major_formatter(lambda value, _: _change(value) if value else "0")
    axes.axvline(0, color=colour("--muted"), linewidth=0.8)
    texts = [text for run in measurements if (text := entry(run, "forgetting", "text"))]
    text = one_line(texts[0]) if texts else ""
    name_axes(axes, f"change of perplexity on “{shortened(text, 30)}”" if text else "change of perplexity", "")
    return figure, "Forgetting", findings.forgetting_takeaway(summary.rows, text)


def _change(value: float) -> str:
    return f"{100 * value:+{',.0f' if abs(value) >= 10 else '.3g'}} %".replace("-", MINUS)


def _bars(
    summary: Summary, get: Callable[[Row], Spread | None], text: Callable[[float], str]
) -> tuple[Figure, Axes] | None:
    """One bar per method, with a whisker over its runs; None if no method has the figure."""
    spreads = [(row, spread) for row in summary.rows if not row.is_base and (spread := get(row)) is not None]
    if not spreads:
        return None
    figure, axes = bar_axes([row.label for row, _ in spreads], right=44)
    look = looks(summary.rows)
    for y, (row, spread) in enumerate(spreads):
        axes.barh(y, spread.mean, 0.56, color=look[row.label].colour)
        if spread.low < spread.high:
            for name, width in (("--paper", 3.4), ("--ink", 1.2)):
                interval(axes, (spread.low, spread.high), y, colour(name), width)
        value_at(axes, max(spread.mean, spread.high, 0.0), y, text(spread.mean))
    return figure, axes


def _joined(curves: Sequence[Sequence[Measurement]]) -> list[Banded]:
    """The losses of several runs by step, at most `POINTS` of them."""
    losses = [
        {point["step"]: point["loss"] for point in points if None not in (number(point, "step"), number(point, "loss"))}
        for points in curves
    ]
    joined = banded([own for own in losses if own])
    stride = -(-len(joined) // POINTS) or 1
    return joined[::-1][::stride][::-1]  # the last point always stays


def _along(axes: Axes, points: Sequence[tuple[float, float]]) -> list[tuple[float, float, float, float]]:
    """Small boxes along a line, for labels to keep clear of."""
    ends = [tuple(map(float, end)) for end in axes.transData.transform(list(points))]
    boxes = []
    for (x0, y0), (x1, y1) in pairwise(ends):
        pieces = max(int(((x1 - x0) ** 2 + (y1 - y0) ** 2) ** 0.5 / 4), 1)
        for k in range(pieces):
            x, y = x0 + (x1 - x0) * k / pieces, y0 + (y1 - y0) * k / pieces
            boxes.append((x - 2, y - 2, x + 2, y + 2))
    return boxes
