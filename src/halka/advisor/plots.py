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
from halka.report.axes import (
    Key,
    bar_axes,
    interval,
    legend,
    line_across,
    mark,
    padded,
    stacked,
    text_width,
    value_at,
)
from halka.report.intervals import finite
from halka.report.plots import PART_NAMES
from halka.report.rows import MEMORY_PARTS
from halka.report.svg import Drawing, Look, colour, name_axes
from halka.report.units import percent, size
from halka.util.text import one_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Text

PARTS = {"form": Look("--s0", "s"), "content": Look("--s1", "D"), "all": Look("--base", "o")}
MEMORY = {"process": "--full", **{part: f"--{part}" for part in MEMORY_PARTS}, "allocator": "--s4"}
FAR = 4  # a memory of so many times the largest need is named at the edge, so that the needs stay visible
PAD = 0.06  # of the values' range, left free at either end


@dataclass(frozen=True)
class Row:
    """A score on a row of its own."""

    name: str
    score: Score
    chosen: bool = False
    hollow: bool = False


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
    bar_height = 14 + 15 * len(used)
    figure, axes = bar_axes(names, right=34, top=62, bar_height=bar_height)
    ends = [end for _, parts in rows for score in parts.values() for end in (score.low, score.high)]
    unigram = finite(evidence.strength.unigram) if evidence.strength else None
    near = unigram is not None and unigram - max(ends) <= (max(ends) - min(ends)) / 2
    low, high = padded([*ends, *([unigram] if near and unigram is not None else [])], PAD)
    axes.set_xlim(max(low, 0), high)
    if near and unigram is not None:
        line_across(axes, unigram, f"unigram {unigram:.2f}")
    for number, (_, parts) in enumerate(rows):
        for part in filter(parts.__contains__, used):
            y = number + 15 / bar_height * (used.index(part) - (len(used) - 1) / 2)
            _mark_level(axes, parts[part], y, PARTS[part])
            value_at(axes, parts[part].high, y, f"{parts[part].value:.2f}", over_lines=True)
    legend(axes, [Key(words.PARTS[part], PARTS[part].colour, PARTS[part].marker) for part in used])
    axes.locator_params(axis="x", nbins=7)
    name_axes(axes, "loss per token, in nats", "")
    return figure, "Losses under each condition", _losses_takeaway(dict(rows), unigram, near)


def memory(evidence: Evidence) -> Drawing | None:
    """Memory by part of each method as it is, and in total where it is trained in another way; the memory there is."""
    fit = evidence.fit
    if fit is None or not fit.parts:
        return None
    bars = _bars(fit)
    order = [*MEMORY, *sorted({part for _, parts, _ in bars for part in parts} - MEMORY.keys())]
    used = [part for part in order if any(parts.get(part) for _, parts, _ in bars)]
    fills = {part: colour(MEMORY.get(part, "--s5")) for part in used}
    totals = [sum(parts.values()) + rest for _, parts, rest in bars]
    top = 74 if len(used) > 5 else 60  # for a legend of two lines, or one
    figure, axes = bar_axes([name for name, *_ in bars], right=58, top=top)
    limit = fit.memory if fit.memory is not None and fit.memory <= FAR * max(totals) else None
    axes.set_xlim(0, 1.04 * max(*totals, limit or 0))
    if limit is not None:
        line_across(axes, limit, f"memory {size(limit)}")
    elif fit.memory is not None:
        edge = (axes.figure.bbox.x1 - 4, axes.bbox.y1 + 6)
        far = f"memory {size(fit.memory)} →"
        axes.annotate(far, edge, xycoords="figure pixels", color=colour("--muted"), ha="right")
    for y, ((_, parts, rest), total, label) in enumerate(zip(bars, totals, axes.get_yticklabels(), strict=True)):
        stacked(axes, y, {part: parts[part] for part in used if part in parts}, fills, 0.56)
        if rest:
            label.set_color(colour("--muted"))
            axes.barh(y, rest, 0.5, total - rest, color=colour("--paper"), edgecolor=colour("--muted"), linewidth=1.2)
        value_at(axes, total, y, size(total), over_lines=True)
    axes.xaxis.set_major_formatter(lambda value, _: size(value).replace(".0", "") if value else "0")
    legend(axes, [Key(PART_NAMES.get(part, one_line(part)), fills[part]) for part in used])
    other = " Outlined: the method above, trained as named." if any(rest for *_, rest in bars) else ""
    return figure, "Memory in training, by part", f"{words.fit(fit)}{other}"


def _bars(fit: Fit) -> list[tuple[str, dict[str, int], int]]:
    """Name, bytes by part and bytes of unknown parts: each method as it is, then in the way that it is trained."""
    bars: list[tuple[str, dict[str, int], int]] = []
    for name, parts in fit.parts.items():
        bars.append((one_line(name), {"process": fit.process, **parts}, 0))
        option = fit.option(name)
        if option is not None and (how := words.how_trained(option)):
            short = how.replace(", with", ",")  # labels beside bars are short
            bars.append((short, {"process": fit.process}, option.memory))
    return bars


def _draw_rows(rows: Sequence[Row], subject: Subject, prefix: str) -> Figure:
    target = finite(subject.target)
    _, measured = bar_axes(["x"], right=60)
    wide = max(text_width(measured, percent(row.score.value)) for row in rows)
    figure, axes = bar_axes([row.name for row in rows], right=wide + 16, top=26 if target is None else 30)
    _embolden(axes, [label for row, label in zip(rows, axes.get_yticklabels(), strict=True) if row.chosen])
    ends = [end for row in rows for end in (row.score.low, row.score.high)]
    low, high = padded([*ends, *([] if target is None else [target])], PAD)
    axes.set_xlim(max(low, -0.02), min(high, 1.02))
    for y, row in enumerate(rows):
        if row.chosen:
            axes.axhspan(y - 0.42, y + 0.42, color=colour("--line"), alpha=0.6, linewidth=0, zorder=0)
        look = Look("--s0", "D") if row.chosen else Look("--base" if row.hollow else "--ink", "o")
        _mark_level(axes, row.score, y, look, hollow=row.hollow, large=row.chosen)
        axes.annotate(
            percent(row.score.value),
            (1, y),
            xycoords=("axes fraction", "data"),
            xytext=(8, 0),
            textcoords="offset points",
            va="center_baseline",
            fontweight="bold" if row.chosen else "normal",
            annotation_clip=False,
        )
    if target is not None:
        line_across(axes, target, f"target {percent(target)}")
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


def _mark_level(axes: Axes, score: Score, y: float, look: Look, *, hollow: bool = False, large: bool = False) -> None:
    """A value with its interval on a row."""
    interval(axes, (score.low, score.high), y, look.colour, 1.8 if large else 1.4)
    mark(axes, score.value, y, look, 8.5 if large else 6.5, hollow=hollow)


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
