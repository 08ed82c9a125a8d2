"""The advice's plots with a row for each thing: expected scores, scores, losses by condition, memory by part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from halka.advisor import words
from halka.evaluation.metrics import Score
from halka.report.bars import PART_NAMES, Key, bar_axes, legend
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

Drawn = tuple["Figure", str, str]

PARTS = {"form": ("--s0", "s"), "content": ("--s1", "D"), "all": ("--base", "o")}
MEMORY = {
    "process": "--full",
    **{part: f"--{part}" for part in MEMORY_PARTS},
    "allocator": "--s4",
}
FAR = 4  # a memory so many times the largest need is told at the edge, or the needs would be too small to see


@dataclass(frozen=True)
class Point:
    """A score on a row of its own."""

    name: str
    score: Score
    chosen: bool = False
    hollow: bool = False


@dataclass(frozen=True)
class Need:
    """Memory of a way of training, by part as far as that is known."""

    name: str
    parts: Mapping[str, int]
    rest: int = 0

    @property
    def total(self) -> int:
        return sum(self.parts.values()) + self.rest


def prospects(advice: Any, evidence: Any) -> Drawn | None:
    """What each choice is expected to score, the cheapest on top; the one that is advised marked."""
    points = [
        Point(words.choice(each.choice), score, chosen=each.choice == advice.choice)
        for each in words.by_cost(advice.prospects)
        if (score := words.known(each.score)) is not None
    ]
    if not points:
        return None
    figure = _points(points, evidence.subject, "expected")
    told = [f"{point.name} {words.share(point.score)}" for point in points if point.chosen]
    other = f"{words.choice(advice.choice)}, which is advised, was not measured"
    said = f"Advised, as a diamond: {told[0]}. " if told else f"{words.sentence(other)} "
    return (
        figure,
        "What each choice is expected to score",
        f"{said}The cheapest stands on top; bars are 95 % intervals.",
    )


def scores(evidence: Any) -> Drawn | None:
    """The base's scores under each condition, beside what needs no model."""
    strength, knowledge = evidence.strength, evidence.knowledge
    found = {**(strength.scores if strength else {}), **(knowledge.scores if knowledge else {})}
    given = [(words.CONDITIONS.get(name, one_line(name)), found[name], False) for name in _in_order(found)]
    trivial = strength.trivial if strength else {}
    given += [(words.TRIVIAL.get(name, one_line(name)), score, True) for name, score in trivial.items()]
    points = [
        Point(name, score, hollow=hollow) for name, each, hollow in given if (score := words.known(each)) is not None
    ]
    if not points:
        return None
    asked = max((point for point in points if not point.hollow), key=lambda point: point.score.value, default=None)
    told = f"The base's best without training: {words.share(asked.score)}, {asked.name}." if asked else ""
    needs = " Hollow: what needs no model." if any(point.hollow for point in points) else ""
    return _points(points, evidence.subject, ""), "Scores without training", f"{told}{needs}".strip()


def losses(evidence: Any) -> Drawn | None:
    """The loss of the answers by condition and part; the loss of guessing by frequency as a line."""
    strength, knowledge = evidence.strength, evidence.knowledge
    found: dict[str, dict[str, Any]] = {
        name: {"all": score} for name, score in (strength.losses if strength else {}).items()
    }
    found |= {name: dict(parts) for name, parts in (knowledge.losses if knowledge else {}).items()}
    rows = [(name, parts) for name in _in_order(found) if (parts := _known(found[name]))]
    if not rows:
        return None
    used = [part for part in PARTS if any(part in parts for _, parts in rows)]
    figure, axes = bar_axes(
        [words.CONDITIONS.get(name, one_line(name)) for name, _ in rows], right=34, top=62, each=14 + 15 * len(used)
    )
    ends = [end for _, parts in rows for score in parts.values() for end in (score.low, score.high)]
    unigram = finite(strength.unigram) if strength else None
    near = unigram is not None and unigram - max(ends) <= (max(ends) - min(ends)) / 2
    _limits(axes, [*ends, *([unigram] if near and unigram is not None else [])])
    if near and unigram is not None:
        _line(axes, unigram, f"by frequency {unigram:.2f}")
    for row, (_, parts) in enumerate(rows):
        for part in used:
            if part in parts:
                variable, marker = PARTS[part]
                y = row + 15 / (14 + 15 * len(used)) * (used.index(part) - (len(used) - 1) / 2)
                _mark(axes, parts[part], y, variable, marker)
                _beside(axes, parts[part].high, y, f"{parts[part].value:.2f}")
    named = {"all": "all tokens", "form": "form", "content": "content"}
    legend(axes, [Key(named[part], colour(PARTS[part][0]), PARTS[part][1]) for part in used])
    axes.locator_params(axis="x", nbins=7)
    name_axes(axes, "loss a token, in nats", "")
    return figure, "Losses under each condition", _losses_said(dict(rows), unigram, near)


def memory(evidence: Any) -> Drawn | None:
    """Memory by part of each method as it is, and below in all of the way in which it fits; how much there is."""
    fit = evidence.fit
    if fit is None or not fit.parts:
        return None
    rows = _needs(fit)
    order = [*MEMORY, *sorted({part for row in rows for part in row.parts} - MEMORY.keys())]
    used = [part for part in order if any(row.parts.get(part) for row in rows)]
    most = max(row.total for row in rows)
    figure, axes = bar_axes(
        [row.name for row in rows], right=58, top=74 if len(used) > 5 else 60
    )  # a legend of two lines, or of one
    there = fit.memory if fit.memory is not None and fit.memory <= FAR * most else None
    axes.set_xlim(0, 1.04 * max(most, there or 0))
    if there is not None:
        _line(axes, there, f"memory {size(there)}")
    elif fit.memory is not None:
        _beyond(axes, f"memory {size(fit.memory)}")
    for y, (row, label) in enumerate(zip(rows, axes.get_yticklabels(), strict=True)):
        start = 0.0
        for part in used:
            width, fill = row.parts.get(part, 0), colour(MEMORY.get(part, "--s5"))
            axes.barh(y, width, 0.56, start, color=fill, edgecolor=colour("--paper"), linewidth=0.6)
            start += width
        if row.rest:
            label.set_color(colour("--muted"))
            axes.barh(y, row.rest, 0.5, start, color=colour("--paper"), edgecolor=colour("--muted"), linewidth=1.2)
        _beside(axes, row.total, y, size(row.total))
    axes.xaxis.set_major_formatter(lambda value, _: size(value).replace(".0", "") if value else "0")
    legend(axes, [Key(PART_NAMES.get(part, one_line(part)), colour(MEMORY.get(part, "--s5"))) for part in used])
    other = " Outlined: the method above, trained in the way that is named." if any(row.rest for row in rows) else ""
    return figure, "Memory in training, by part", f"{words.fit_said(fit)}{other}"


def _needs(fit: Any) -> list[Need]:
    """Each method as it is; below those that are trained in another way, what they need so."""
    rows = []
    for name, parts in fit.parts.items():
        rows.append(Need(one_line(name), {"process": fit.process, **parts}))
        option = fit.option(name)
        if option is not None and words.way(option):
            way = words.way(option).replace(", with", ",")  # as short as names beside bars are
            rows.append(Need(way, {"process": fit.process}, option.memory))
    return rows


def _points(points: Sequence[Point], subject: Any, how: str) -> Figure:
    target = finite(subject.target)
    _, measured = bar_axes(["x"], right=60)
    wide = max(text_width(measured, percent(point.score.value)) for point in points)
    figure, axes = bar_axes([point.name for point in points], right=wide + 16, top=26 if target is None else 30)
    _embolden(axes, [label for point, label in zip(points, axes.get_yticklabels(), strict=True) if point.chosen])
    ends = [end for point in points for end in (point.score.low, point.score.high)]
    _limits(axes, [*ends, *([] if target is None else [target])], share=True)
    for y, point in enumerate(points):
        if point.chosen:
            axes.axhspan(y - 0.42, y + 0.42, color=colour("--line"), alpha=0.6, linewidth=0, zorder=0)
        variable = "--s0" if point.chosen else "--base" if point.hollow else "--ink"
        _mark(axes, point.score, y, variable, "D" if point.chosen else "o", hollow=point.hollow, large=point.chosen)
        _at_the_edge(axes, y, percent(point.score.value), point.chosen)
    if target is not None:
        _line(axes, target, f"target {percent(target)}")
    axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    name_axes(axes, f"{how} {words.metric_of(subject)}".strip(), "")
    return figure


def _embolden(axes: Axes, labels: Sequence[Text]) -> None:
    """Rows' names in bold, and room for them left of the axes."""
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


def _at_the_edge(axes: Axes, y: float, text: str, bold: bool) -> None:
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
    """A dashed line across all rows, named above the axes where the name has room."""
    axes.axvline(x, color=colour("--muted"), linewidth=1.2, linestyle=(0, (4, 3)))
    at = float(axes.transData.transform((x, 0))[0])
    width = text_width(axes, text)
    left = min(max(at - width / 2, 4), axes.figure.bbox.x1 - width - 4)
    axes.annotate(text, (left, axes.bbox.y1 + 6), xycoords="figure pixels", color=colour("--muted"))


def _beyond(axes: Axes, text: str) -> None:
    """Something right of all that is drawn, named above the axes' right end."""
    right = axes.figure.bbox.x1 - 4
    axes.annotate(f"{text} →", (right, axes.bbox.y1 + 6), xycoords="figure pixels", color=colour("--muted"), ha="right")


def _beside(axes: Axes, x: float, y: float, text: str) -> None:
    """A figure right of what it belongs to, over lines that cross its place."""
    ground = {"facecolor": colour("--paper"), "edgecolor": "none", "pad": 1.5}
    axes.annotate(
        text,
        (x, y),
        xytext=(5, 0),
        textcoords="offset points",
        va="center_baseline",
        annotation_clip=False,
        bbox=ground,
    )


def _limits(axes: Axes, ends: Sequence[float], share: bool = False) -> None:
    low, high = min(ends), max(ends)
    pad = 0.06 * (high - low or abs(high) or 1.0)
    axes.set_xlim(max(low - pad, -0.02) if share else max(low - pad, 0), min(high + pad, 1.02) if share else high + pad)


def _in_order(found: Any) -> list[str]:
    return [*(name for name in words.CONDITIONS if name in found), *(n for n in found if n not in words.CONDITIONS)]


def _known(parts: Any) -> dict[str, Score]:
    return {part: score for part, each in parts.items() if (score := words.known(each)) is not None and part in PARTS}


def _losses_said(rows: dict[str, dict[str, Score]], unigram: float | None, near: bool) -> str:
    """What examples take from the loss of form, and documents from that of content."""
    told = []
    for part, condition in (("form", "examples"), ("content", "documents"), ("all", "examples")):
        before, after = rows.get("closed", {}).get(part), rows.get(condition, {}).get(part)
        if before is None or after is None or (part == "all" and told):
            continue
        of = "" if part == "all" else f" of {part}"
        told.append(f"{condition} take the loss{of} from {before.value:.2f} to {after.value:.2f}")
    said = ", ".join(told)
    far = "" if near else ", beyond the plot"
    line = "" if unigram is None else f" Guessing tokens by how often they stand in the answers: {unigram:.2f}{far}."
    return f"{said[:1].upper()}{said[1:]}{'.' if said else ''}{line}".strip()
