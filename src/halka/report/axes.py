"""Axes, labels and legends that the plots share; labels stand next to their points without overlapping."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from statistics import mean
from typing import TYPE_CHECKING

from halka.report.svg import HEIGHT, TEXT, Look, colour, grid, new_figure
from halka.report.units import shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

Box = tuple[float, float, float, float]  # left, bottom, right, top in the figure's units

LINE, DOT = 1.25 * TEXT, 10.0  # a line's height; the width of a label's dot
DASHES = (0, (4, 3))


Banded = tuple[float, float, float, float]
"""A step with the least, the mean and the greatest value of the runs."""


def banded(runs: Sequence[Mapping[float, float]]) -> list[Banded]:
    """The values of runs by step, at the steps that all have: the line ends where the first of its runs does."""
    steps = set[float].intersection(*map(set[float], runs)) if runs else set[float]()
    values = [(step, [run[step] for run in runs]) for step in sorted(steps)]
    return [(step, min(own), mean(own), max(own)) for step, own in values]


@dataclass(frozen=True)
class Name:
    """A label and its point, in the data's units."""

    text: str
    x: float
    y: float
    colour: str


@dataclass(frozen=True)
class Key:
    """An entry of a legend: its text, its colour (None draws an outline), and a marker instead of a rectangle."""

    text: str
    fill: str | None
    marker: str = ""


def text_width(axes: Axes, text: str) -> float:
    """The width of a line of text in the figure's units, measured with matplotlib's (rather wide) font."""
    artist = axes.text(0, 0, text)
    width = artist.get_window_extent().width
    artist.remove()
    return width


def beside(axes: Axes, names: Sequence[Name], obstacles: Sequence[Box] = (), gap: float = 7.0) -> None:
    """Write each name next to its point, where it overlaps other names and the obstacles least.

    Names are placed in order. A thin line joins a name to its point if it is far away; a dot in the point's colour
    precedes the name if the point has near neighbours.
    """
    inside = axes.bbox
    right_edge = axes.figure.bbox.x1 - 2
    points = [tuple(axes.transData.transform((name.x, name.y))) for name in names]
    taken = [*obstacles, *((x - 5, y - 5, x + 5, y + 5) for x, y in points)]
    for name, (x, y) in zip(names, points, strict=True):
        text = shortened(name.text)
        crowded = sum(abs(x - a) < 16 and abs(y - b) < 16 for a, b in points) > 1
        width, height = text_width(axes, text) + (DOT if crowded else 0), LINE

        def cost(box: Box, far: float) -> float:
            out = max(inside.x0 - box[0], 0) + max(box[2] - right_edge, 0)
            out += max(inside.y0 - box[1], 0) + max(box[3] - inside.y1 - 8, 0)
            return far + 50 * out + 4 * sum(_overlap(box, other) for other in taken)

        places = []
        for distance, (dx, dy) in product((gap, gap + 9, gap + 20, gap + 32), _directions()):
            cx = x + dx * (distance + width / 2) if dy == 0 else x + dx * (0.5 * distance + width / 2)
            cy = y + dy * (distance + height / 2)
            box = (cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2)
            places.append((cost(box, distance + 2 * abs(dy)), distance, box))
        _, distance, box = min(places, key=lambda place: place[0])
        taken.append(box)
        if distance > gap + 9:
            end = (min(max(x, box[0]), box[2]), min(max(y, box[1]), box[3]))
            _line(axes, (x, y), end, name.colour)
        middle = (box[1] + box[3]) / 2
        if crowded:
            _dot(axes, box[0] + 3, middle, name.colour)
        _write(axes, text, box[0] + (DOT if crowded else 0), middle)


def at_the_right(axes: Axes, names: Sequence[Name]) -> None:
    """Write each name to the right of the axes, level with its line's end; spread out those that would overlap."""
    names = sorted(names, key=lambda name: name.y)
    points = [tuple(axes.transData.transform((name.x, name.y))) for name in names]
    places = spread_out([y for _, y in points], LINE, axes.bbox.y0 - 4, axes.bbox.y1 + 4)
    start = axes.bbox.x1 + 6
    for name, (x, y), place in zip(names, points, places, strict=True):
        _line(axes, (x + 3, y), (start + 8, place), name.colour)
        _write(axes, shortened(name.text), start + 11, place)


def spread_out(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Move sorted positions as little as needed to lie `gap` apart, within [low, high] where there is room.

    Neighbours that are too close form a group, centred on the mean of its members' wanted positions.
    """
    groups: list[list[float]] = []
    for position in wanted:
        groups.append([position])
        while len(groups) > 1 and _start(groups[-1], gap, low, high) < (
            _start(groups[-2], gap, low, high) + gap * len(groups[-2])
        ):
            groups[-2:] = [groups[-2] + groups[-1]]
    return [_start(group, gap, low, high) + gap * i for group in groups for i in range(len(group))]


def _start(group: Sequence[float], gap: float, low: float, high: float) -> float:
    length = gap * (len(group) - 1)
    return max(low, min(sum(group) / len(group) - length / 2, high - length))


def _directions() -> tuple[tuple[float, float], ...]:
    return (1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (1, -1), (-1, 1), (-1, -1)


def _overlap(a: Box, b: Box) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    return width * height if width > 0 and height > 0 else 0.0


def _line(axes: Axes, start: tuple[float, float], end: tuple[float, float], line_colour: str) -> None:
    from matplotlib.lines import Line2D

    line = Line2D(*zip(start, end, strict=True), color=line_colour, linewidth=0.8, alpha=0.7, transform=None)
    line.set_clip_on(False)
    axes.figure.add_artist(line)


def _dot(axes: Axes, x: float, y: float, fill: str) -> None:
    from matplotlib.patches import Circle

    axes.figure.add_artist(Circle((x, y), 3, facecolor=fill, edgecolor="none", transform=None))


def _write(axes: Axes, text: str, x: float, y: float) -> None:
    from matplotlib.transforms import IdentityTransform

    axes.figure.text(
        x,
        y,
        text,
        transform=IdentityTransform(),
        va="center_baseline",
        color=colour("--ink"),
        fontsize=TEXT,
    )


# ── axes, marks and legends ─────────────────────────────────────────────────────────────────────────────────────────


def room(names: Sequence[str]) -> float:
    """The margin that labels at the right need."""
    _, axes = new_figure(left=60, right=60)
    return 24 + max(text_width(axes, shortened(name)) for name in names)


def tall(names: int) -> float:
    """The figure height that gives this many labels room at the right."""
    return max(HEIGHT, 68 + LINE * names)


def bar_axes(names: Sequence[str], right: float, top: float = 12, bar_height: float = 31) -> tuple[Figure, Axes]:
    """Axes for one horizontal bar per name, the first on top, with the names at the left.

    bar_height  units of the SVG per bar, the gap included
    """
    from matplotlib.ticker import MaxNLocator

    labels = [shortened(name) for name in names]
    _, axes = new_figure(left=60, right=right)
    left = max(text_width(axes, label) for label in labels) + 10
    figure, axes = new_figure(left=left, right=right, top=top, height=max(150, 62 + top + bar_height * len(names)))
    axes.set_yticks(range(len(names)), labels, color=colour("--ink"))
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.spines["bottom"].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    grid(axes, "x")
    return figure, axes


def log_scale_if_wide(axes: Axes, low: float, high: float) -> bool:
    """Make y logarithmic where `high` is more than three times `low`; returns whether it is."""
    if not (low > 0 and high / low > 3):
        return False
    axes.set_yscale("log")
    log_ticks(axes.yaxis, low, high)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    return True


def log_ticks(axis: Axis, low: float, high: float) -> None:
    """Put ticks at whole decades, and between them where the range is short."""
    from matplotlib.ticker import LogLocator

    short, middling = (1.0, 1.5, 2.0, 3.0, 5.0, 7.0), (1.0, 2.0, 5.0)
    span = high / low
    axis.set_major_locator(LogLocator(10, subs=short if span < 6 else middling if span < 100 else (1.0,)))


def padded(ends: Sequence[float], share: float) -> tuple[float, float]:
    """The least and the greatest of `ends`, moved apart by a share of their distance each."""
    low, high = min(ends), max(ends)
    pad = share * (high - low or abs(high) or 1.0)
    return low - pad, high + pad


def mark(axes: Axes, x: float, y: float, look: Look, size: float = 7.5, *, hollow: bool = False) -> None:
    """Draw one point with its marker and colour."""
    axes.plot(
        x,
        y,
        look.marker,
        markersize=size,
        markerfacecolor=colour("--paper") if hollow else look.colour,
        markeredgecolor=look.colour if hollow else colour("--paper"),
        markeredgewidth=1.2 if hollow else 0.8,
    )


def interval(
    axes: Axes, x: float | tuple[float, float], y: float | tuple[float, float], line_colour: str, width: float = 1.4
) -> None:
    """Draw an interval of x at one y, or of y at one x."""
    ends = ([value] * 2 if isinstance(value, int | float) else value for value in (x, y))
    axes.plot(*ends, color=line_colour, linewidth=width, solid_capstyle="butt")


def stacked(
    axes: Axes, y: float, parts: Mapping[str, float], fills: Mapping[str, str], height: float, *, outlined: bool = False
) -> None:
    """Draw one bar from 0 of parts side by side, each filled with its colour or outlined with it."""
    start = 0.0
    for part, width in parts.items():
        fill, edge = ("none", fills[part]) if outlined else (fills[part], colour("--paper"))
        axes.barh(y, width, height, start, color=fill, edgecolor=edge, linewidth=1.0 if outlined else 0.6)
        start += width


def with_bands(axes: Axes, lines: Mapping[str, Sequence[Banded]], look: Mapping[str, Look]) -> list[Name]:
    """Draw each method's line over steps in its band, the x axis as wide as they; returns the names of their ends."""
    names = []
    for label, points in lines.items():
        steps, low, middle, high = zip(*points, strict=True)
        axes.fill_between(steps, low, high, color=look[label].colour, alpha=0.18, linewidth=0)
        axes.plot(steps, middle, color=look[label].colour, linewidth=1.8)
        names.append(Name(label, steps[-1], middle[-1], look[label].colour))
    axes.set_xlim(min(points[0][0] for points in lines.values()), max(points[-1][0] for points in lines.values()))
    return names


def line_across(axes: Axes, x: float, text: str) -> None:
    """Draw a dashed line across all rows, named above the axes where there is room."""
    axes.axvline(x, color=colour("--muted"), linewidth=1.2, linestyle=DASHES)
    at = float(axes.transData.transform((x, 0))[0])
    width = text_width(axes, text)
    left = min(max(at - width / 2, 4), axes.figure.bbox.x1 - width - 4)
    axes.annotate(text, (left, axes.bbox.y1 + 6), xycoords="figure pixels", color=colour("--muted"))


def line_at(axes: Axes, y: float) -> None:
    """Draw a dashed line at one y, behind what else is drawn."""
    axes.axhline(y, color=colour("--muted"), linewidth=1.0, linestyle=DASHES, zorder=0.9)


def value_at(axes: Axes, x: float, y: float, text: str, *, over_lines: bool = False) -> None:
    """Write a value to the right of a bar's end; `over_lines` covers lines that cross its place."""
    ground = {"facecolor": colour("--paper"), "edgecolor": "none", "pad": 1.5} if over_lines else None
    axes.annotate(
        text,
        (x, y),
        xytext=(5, 0),
        textcoords="offset points",
        va="center_baseline",
        annotation_clip=False,
        bbox=ground,
    )


def legend(axes: Axes, keys: Sequence[Key]) -> None:
    """Draw the legend from the figure's upper left corner, in as many lines as it needs."""
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
