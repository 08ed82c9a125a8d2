"""Plots with a row for each thing: expected scores, the base's scores, losses by condition, memory by part.

Each function returns the figure, its title and a sentence, or None where there is nothing to draw.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from halka.advisor import words
from halka.advisor.advice import Advice
from halka.advisor.evidence import Evidence, Fit, Subject
from halka.evaluation.metrics import Score
from halka.report.axes import Key, bar_axes, legend, text_width, value_at
from halka.report.intervals import finite
from halka.report.plots import PART_NAMES
from halka.report.rows import MEMORY_PARTS
from halka.report.svg import colour, name_axes
from halka.report.units import percent, size
from halka.util.text import one_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Text

Drawing = tuple["Figure", str, str]
"""A figure, its title, and what it shows in a sentence."""

PARTS = {"form": ("--s0", "s"), "content": ("--s1", "D"), "all": ("--base", "o")}
MEMORY = {"process": "--full", **{part: f"--{part}" for part in MEMORY_PARTS}, "allocator": "--s4"}
FAR = 4  # a memory of so many times the largest need is named at the edge, so that the needs stay visible


@dataclass(frozen=True)
class Row:
    """A score on a row of its own."""

    name: str
    score: Score
    chosen: bool = False
    hollow: bool = False


@dataclass(frozen=True)
class Bar:
    """Memory of a way of training, by part as far as the parts are known."""

    name: str
    parts: Mapping[str, int]
    rest: int = 0

    @property
    def total(self) -> int:
        return sum(self.parts.values()) + self.rest


def prospects(advice: Advice, evidence: Evidence) -> Drawing | None:
    """What each choice is expected to score, the cheapest on top, the advised one marked."""
    rows = [
        Row(words.CHOICES[prospect.choice].short, prospect.score, chosen=prospect.choice == advice.choice)
        for prospect in advice.prospects
        if words.known(prospect.score) is not None
    ]
    if not rows:
        return None
    chosen = [f"Advised (diamond): {row.name} {words.share(row.score)}." for row in rows if row.chosen]
    advised = chosen[0] if chosen else f"The advice, {words.CHOICES[advice.choice].short}, has no expected score."
    takeaway = f"{advised} The cheapest choice is on top; bars are 95 % intervals."
    return _draw_rows(rows, evidence.subject, "expected"), "What each choice is expected to score", takeaway


def scores(evidence: Evidence) -> Drawing | None:
    """The base's scores under each condition, beside trivial answers."""
    by_condition = evidence.scores
    named = [
        (words.CONDITIONS.get(name, one_line(name)), by_condition[name], False) for name in _in_order(by_condition)
    ]
    trivial = evidence.strength.trivial if evidence.strength else {}
    named += [(words.TRIVIAL.get(name, one_line(name)), score, True) for name, score in trivial.items()]
    rows = [Row(name, score, hollow=hollow) for name, score, hollow in named if words.known(score) is not None]
    if not rows:
        return None
    best = max((row for row in rows if not row.hollow), key=lambda row: row.score.value, default=None)
    takeaway = f"The base's best without training: {words.share(best.score)}, {best.name}." if best else ""
    hollow = " Hollow: answers that need no model." if any(row.hollow for row in rows) else ""
    return _draw_rows(rows, evidence.subject, ""), "Scores without training", f"{takeaway}{hollow}".strip()


def losses(evidence: Evidence) -> Drawing | None:
    """The loss of the answers by condition and part; that of a unigram model as a line."""
    rows = [(name, parts) for name in _in_order(evidence.losses) if (parts := _known(evidence.losses[name]))]
    if not rows:
        return None
    used = [part for part in PARTS if any(part in parts for _, parts in rows)]
    names = [words.CONDITIONS.get(name, one_line(name)) for name, _ in rows]
    figure, axes = bar_axes(names, right=34, top=62, bar_height=14 + 15 * len(used))
    ends = [end for _, parts in rows for score in parts.values() for end in (score.low, score.high)]
    unigram = finite(evidence.strength.unigram) if evidence.strength else None
    near = unigram is not None and unigram - max(ends) <= (max(ends) - min(ends)) / 2
    _set_limits(axes, [*ends, *([unigram] if near and unigram is not None else [])])
    if near and unigram is not None:
        _line(axes, unigram, f"unigram {unigram:.2f}")
    for number, (_, parts) in enumerate(rows):
        for part in used:
            if part in parts:
                variable, marker = PARTS[part]
                y = number + 15 / (14 + 15 * len(used)) * (used.index(part) - (len(used) - 1) / 2)
                _mark(axes, parts[part], y, variable, marker)
                value_at(axes, parts[part].high, y, f"{parts[part].value:.2f}", over_lines=True)
    legend(axes, [Key(words.PARTS[part], colour(PARTS[part][0]), PARTS[part][1]) for part in used])
    axes.locator_params(axis="x", nbins=7)
    name_axes(axes, "loss per token, in nats", "")
    return figure, "Losses under each condition", _losses_takeaway(dict(rows), unigram, near)


def memory(evidence: Evidence) -> Drawing | None:
    """Memory by part of each method as it is, and in total where it is trained in another way; the memory there is."""
    fit = evidence.fit
    if fit is None or not fit.parts:
        return None
    bars = _bars(fit)
    order = [*MEMORY, *sorted({part for bar in bars for part in bar.parts} - MEMORY.keys())]
    used = [part for part in order if any(bar.parts.get(part) for bar in bars)]
    most = max(bar.total for bar in bars)
    top = 74 if len(used) > 5 else 60  # for a legend of two lines, or one
    figure, axes = bar_axes([bar.name for bar in bars], right=58, top=top)
    limit = fit.memory if fit.memory is not None and fit.memory <= FAR * most else None
    axes.set_xlim(0, 1.04 * max(most, limit or 0))
    if limit is not None:
        _line(axes, limit, f"memory {size(limit)}")
    elif fit.memory is not None:
        _beyond(axes, f"memory {size(fit.memory)}")
    for y, (bar, label) in enumerate(zip(bars, axes.get_yticklabels(), strict=True)):
        start = 0.0
        for part in used:
            width, fill = bar.parts.get(part, 0), colour(MEMORY.get(part, "--s5"))
            axes.barh(y, width, 0.56, start, color=fill, edgecolor=colour("--paper"), linewidth=0.6)
            start += width
        if bar.rest:
            label.set_color(colour("--muted"))
            axes.barh(y, bar.rest, 0.5, start, color=colour("--paper"), edgecolor=colour("--muted"), linewidth=1.2)
        value_at(axes, bar.total, y, size(bar.total), over_lines=True)
    axes.xaxis.set_major_formatter(lambda value, _: size(value).replace(".0", "") if value else "0")
    legend(axes, [Key(PART_NAMES.get(part, one_line(part)), colour(MEMORY.get(part, "--s5"))) for part in used])
    other = " Outlined: the method above, trained as named." if any(bar.rest for bar in bars) else ""
    return figure, "Memory in training, by part", f"{words.fit(fit)}{other}"


def _bars(fit: Fit) -> list[Bar]:
    """Each method as it is; below it the way in which it is trained, if that is another."""
    bars = []
    for name, parts in fit.parts.items():
        bars.append(Bar(one_line(name), {"process": fit.process, **parts}))
        option = fit.option(name)
        if option is not None and words.how_trained(option):
            how = words.how_trained(option).replace(", with", ",")  # labels beside bars are short
            bars.append(Bar(how, {"process": fit.process}, option.memory))
    return bars


def _draw_rows(rows: Sequence[Row], subject: Subject, prefix: str) -> Figure:
    target = finite(subject.target)
    _, measured = bar_axes(["x"], right=60)
    wide = max(text_width(measured, percent(row.score.value)) for row in rows)
    figure, axes = bar_axes([row.name for row in rows], right=wide + 16, top=26 if target is None else 30)
    _embolden(axes, [label for row, label in zip(rows, axes.get_yticklabels(), strict=True) if row.chosen])
    ends = [end for row in rows for end in (row.score.low, row.score.high)]
    _set_limits(axes, [*ends, *([] if target is None else [target])], share=True)
    for y, row in enumerate(rows):
        if row.chosen:
            axes.axhspan(y - 0.42, y + 0.42, color=colour("--line"), alpha=0.6, linewidth=0, zorder=0)
        variable = "--s0" if row.chosen else "--base" if row.hollow else "--ink"
        _mark(axes, row.score, y, variable, "D" if row.chosen else "o", hollow=row.hollow, large=row.chosen)
        _write_at_the_edge(axes, y, percent(row.score.value), row.chosen)
    if target is not None:
        _line(axes, target, f"target {percent(target)}")
    axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    name_axes(axes, f"{prefix} {words.metric_of(subject)}".strip(), "")
    return figure


def _embolden(axes: Axes, labels: Sequence[Text]) -> None:
    """Set rows' names in bold, and make room for them left of the axes."""
    for label in labels:
        label.set_fontweight("bold")
    left = min((label.get_window_extent().x0 for label in labels), default=2.0)
    if left < 2:
        box, more = axes.get_position(), (2 - left) / axes.figure.bbox.width
        axes.set_position((box.x0 + more, box.y0, box.width - more, box.height))


def _mark(
    axes: Axes, score: Score, y: float, variable: str, marker: str, hollow: bool = False, large: bool = False
) -> None:
    fill = colour(variable)
    axes.plot([score.low, score.high], [y, y], color=fill, linewidth=1.8 if large else 1.4, solid_capstyle="butt")
    axes.plot(
        score.value,
        y,
        marker,
        color=fill,
        markersize=8.5 if large else 6.5,
        markerfacecolor=colour("--paper") if hollow else fill,
        markeredgecolor=fill if hollow else colour("--paper"),
        markeredgewidth=1.2 if hollow else 0.8,
    )


def _write_at_the_edge(axes: Axes, y: float, text: str, bold: bool) -> None:
    axes.annotate(
        text,
        (1, y),
        xycoords=("axes fraction", "data"),
        xytext=(8, 0),
        textcoords="offset points",
        va="center_baseline",
        fontweight="bold" if bold else "normal",
        annotation_clip=False,
    )


def _line(axes: Axes, x: float, text: str) -> None:
    """A dashed line across all rows, named above the axes where there is room."""
    axes.axvline(x, color=colour("--muted"), linewidth=1.2, linestyle=(0, (4, 3)))
    at = float(axes.transData.transform((x, 0))[0])
    width = text_width(axes, text)
    left = min(max(at - width / 2, 4), axes.figure.bbox.x1 - width - 4)
    axes.annotate(text, (left, axes.bbox.y1 + 6), xycoords="figure pixels", color=colour("--muted"))


def _beyond(axes: Axes, text: str) -> None:
    """Name something right of all that is drawn, above the axes' right end."""
    right = axes.figure.bbox.x1 - 4
    axes.annotate(f"{text} →", (right, axes.bbox.y1 + 6), xycoords="figure pixels", color=colour("--muted"), ha="right")


def _set_limits(axes: Axes, ends: Sequence[float], share: bool = False) -> None:
    low, high = min(ends), max(ends)
    pad = 0.06 * (high - low or abs(high) or 1.0)
    axes.set_xlim(max(low - pad, -0.02) if share else max(low - pad, 0), min(high + pad, 1.02) if share else high + pad)


def _in_order(conditions: Collection[str]) -> list[str]:
    ordered = [name for name in words.CONDITIONS if name in conditions]
    return [*ordered, *(name for name in conditions if name not in words.CONDITIONS)]


def _known(parts: Mapping[str, Score]) -> dict[str, Score]:
    return {part: score for part, score in parts.items() if words.known(score) is not None and part in PARTS}


def _losses_takeaway(rows: dict[str, dict[str, Score]], unigram: float | None, near: bool) -> str:
    """How far examples lower the loss on form, and passages that on content."""
    parts = []
    for part, condition in (("form", "examples"), ("content", "documents"), ("all", "examples")):
        before, after = rows.get("closed", {}).get(part), rows.get(condition, {}).get(part)
        if before is None or after is None or (part == "all" and parts):
            continue
        loss = "the loss" if part == "all" else f"the loss on {part}"
        cause = "passages" if condition == "documents" else "examples"
        parts.append(f"{cause} change {loss} from {before.value:.2f} to {after.value:.2f}")
    text = ", ".join(parts)
    beyond = "" if near else ", beyond the plot"
    line = "" if unigram is None else f" A unigram model of the answers has {unigram:.2f}{beyond}."
    return f"{text[:1].upper()}{text[1:]}{'.' if text else ''}{line}".strip()
