"""Plots of the pilot: held-out loss over steps, and over the number of training examples."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean
from typing import TYPE_CHECKING, NamedTuple

from halka.advisor import words
from halka.advisor.evidence import Evidence, Learnability, Trial
from halka.evaluation.metrics import Score
from halka.report.axes import Name, at_the_right, log_scale_if_wide, room, tall
from halka.report.intervals import finite
from halka.report.svg import MARKERS, SERIES, Look, colour, grid, name_axes, new_figure
from halka.report.units import count
from halka.util.text import one_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from halka.advisor.plots import Drawing

BESIDE = 1.25  # an axis of sizes extends so many times beyond the largest and the smallest


class Point(NamedTuple):
    """A trial in the plot over data size."""

    trial: Trial
    look: Look
    loss: Score

    @property
    def x(self) -> int:
        return self.trial.reached


def pilot(evidence: Evidence) -> Drawing | None:
    """Each trial's held-out loss, and at the right what it is extrapolated to."""
    learned = evidence.learnability
    figure = None if learned is None else _curves(learned, passages=False)
    if learned is None or figure is None:
        return None
    return figure, "Pilot runs", words.best_trial(learned, passages=False) or "No trial ended with a finite loss."


def pilot_with_passages(evidence: Evidence) -> Drawing | None:
    """The same for trials on prompts with passages, whose losses do not compare with the others'."""
    learned = evidence.learnability
    figure = None if learned is None else _curves(learned, passages=True)
    if learned is None or figure is None:
        return None
    best = words.best_trial(learned, passages=True)
    note = "These losses do not compare with those without passages: the prompts differ."
    return figure, "Pilot runs with passages", f"{best} {note}".strip()


def _curves(learned: Learnability, *, passages: bool) -> Figure | None:
    trials = [
        (trial, look, points)
        for trial, look in _looks(learned)
        if bool(trial.passages) == passages and (points := _finite_points(trial.curve))
    ]
    if not trials:
        return None
    most = max(trial.examples for trial, *_ in trials)
    names = [one_line(trial.name).removesuffix(" of the data") for trial, *_ in trials]  # labels are short
    figure, axes = new_figure(left=46, right=room(names), height=tall(len(trials)))
    first, last = (end(point[0] for *_, points in trials for point in points) for end in (min, max))
    extrapolated = [trial for trial, *_ in trials if words.known(trial.expected)]
    span = max(last - first, 1)
    axes.set_xlim(first - 0.015 * span, last + (0.24 if extrapolated else 0.015) * span)
    labels, ends = [], []
    for (trial, look, points), name in zip(trials, names, strict=True):
        steps, values = zip(*points, strict=True)
        dashes = "solid" if trial.examples == most else (0, (4, 2))
        axes.plot(steps, values, look.marker, linestyle=dashes, color=look.colour, linewidth=1.6, markersize=4)
        ends += values
        expected, at = words.known(trial.expected), (steps[-1], values[-1])
        if expected is not None:
            x = last + 0.24 * span * (extrapolated.index(trial) + 1) / (len(extrapolated) + 1)
            axes.plot([at[0], x], [at[1], expected.value], color=look.colour, linewidth=0.8, linestyle=(0, (1, 2)))
            _mark_upright(axes, x, expected, look)
            ends += [expected.low, expected.high]
            at = (x, expected.value)
        labels.append(Name(name, *at, look.colour))
    _scale(axes, ends)
    grid(axes, "y")
    if extrapolated:
        axes.axvspan(last, axes.get_xlim()[1], color=colour("--line"), alpha=0.45, linewidth=0, zorder=0)
    _tick_steps(axes, first, last)
    at_the_right(axes, labels)
    key = " (dashed: fewer examples)" if any(trial.examples < most for trial, *_ in trials) else ""
    name_axes(axes, "steps; shaded: extrapolated" if extrapolated else "steps", f"held-out loss{key}")
    return figure


def data_sizes(evidence: Evidence) -> Drawing | None:
    """The loss over the number of training examples, of trials that differ in nothing else; and with more examples."""
    learned = evidence.learnability
    if learned is None:
        return None
    kinds: dict[str, list[Point]] = {}
    for trial, look in _looks(learned):
        if (loss := words.known(trial.loss)) is not None and trial.reached > 0:
            kind = repr((trial.method, sorted(trial.fields.items(), key=repr), trial.lr, trial.passages))
            kinds.setdefault(kind, []).append(Point(trial, look, loss))
    series = [
        sorted(points, key=lambda point: point.x) for points in kinds.values() if len({point.x for point in points}) > 1
    ]
    if not series:
        return None
    names = [one_line(points[-1].trial.name) for points in series]
    figure, axes = new_figure(left=46, right=room(names), height=tall(len(series)))
    axes.set_xscale("log")
    labels, ends, sizes = [], [], set()
    for points, name in zip(series, names, strict=True):
        last = points[-1]
        line = {point.x: mean(other.loss.value for other in points if other.x == point.x) for point in points}
        axes.plot(list(line), list(line.values()), color=last.look.colour, linewidth=1.6)
        for point in points:
            _mark_upright(axes, point.x, point.loss, last.look, filled=True)
        labels.append(Name(name, last.x, last.loss.value, last.look.colour))
        ends += [end for point in points for end in (point.loss.low, point.loss.high)]
        sizes |= {point.x for point in points}
    longest = max(range(len(series)), key=lambda index: (len(series[index]), series[index][-1].x))
    least, last = series[longest][0], series[longest][-1]
    more = words.known(learned.more)
    takeaway = f"From {least.x} to {last.x} examples the loss goes from {least.loss.value:.2f} to {last.loss.value:.2f}"
    if more is not None:
        owned = learned.examples or last.x
        x, many = learned.times * owned, "as many" if owned == last.x else f"all {owned}"
        between = [last.loss.value, more.value]
        axes.plot([last.x, x], between, color=last.look.colour, linewidth=1.0, linestyle=(0, (1, 2)))
        _mark_upright(axes, x, more, last.look)
        labels[longest] = Name(names[longest], x, more.value, last.look.colour)
        ends += [more.low, more.high]
        sizes |= {x}
        takeaway += f"; with {learned.times} times {many}, {words.loss(more)} is expected"
    axes.set_xlim(min(sizes) / BESIDE, max(sizes) * BESIDE)
    ticks = readable_ticks(sorted(sizes))
    axes.set_xticks(ticks, [count(x).replace(".0", "") for x in ticks])
    _scale(axes, ends)
    grid(axes, "y")
    axes.minorticks_off()
    at_the_right(axes, labels)
    hollow = " (hollow: extrapolated)" if more is not None else ""
    name_axes(axes, "training examples", f"held-out loss{hollow}")
    return figure, "Loss over the number of examples", f"{takeaway}."


def readable_ticks(sizes: Sequence[int]) -> list[int]:
    """The sizes that are far enough apart to be written under a logarithmic axis, the largest always."""
    ticks: list[int] = []
    for x in reversed(sizes):
        if not ticks or ticks[-1] / x >= (BESIDE**2 * sizes[-1] / sizes[0]) ** 0.12:
            ticks.append(x)
    return ticks[::-1]


def _looks(learned: Learnability) -> list[tuple[Trial, Look]]:
    """Every trial with a colour and a marker, by its name's alphabetical order."""
    trials = learned.trials
    order = sorted(range(len(trials)), key=lambda index: (one_line(trials[index].name), index))
    looks = {}
    for place, index in enumerate(order):
        variable = f"--s{place % SERIES}"
        looks[index] = Look(variable, colour(variable), MARKERS[place % len(MARKERS)])
    return [(trial, looks[index]) for index, trial in enumerate(trials)]


def _finite_points(curve: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    return sorted((step, loss) for step, loss in curve if finite(loss) is not None)


def _mark_upright(axes: Axes, x: float, score: Score, look: Look, filled: bool = False) -> None:
    """A value with a vertical interval."""
    axes.plot([x, x], [score.low, score.high], color=look.colour, linewidth=1.4, solid_capstyle="butt")
    fill, edge = (look.colour, colour("--paper")) if filled else (colour("--paper"), look.colour)
    axes.plot(x, score.value, look.marker, markersize=7.5 if filled else 6, markerfacecolor=fill, markeredgecolor=edge)


def _scale(axes: Axes, ends: Sequence[float]) -> None:
    low, high = min(ends), max(ends)
    if log_scale_if_wide(axes, low, high):
        axes.set_ylim(low / 1.1, high * 1.1)
    else:
        pad = 0.06 * (high - low or abs(high) or 1.0)
        axes.set_ylim(low - pad, high + pad)
    axes.minorticks_off()


def _tick_steps(axes: Axes, first: float, last: float) -> None:
    """Ticks at whole steps, none beyond the last."""
    from matplotlib.ticker import MaxNLocator

    ticks = MaxNLocator(5, integer=True, steps=[1, 2, 2.5, 5, 10]).tick_values(first, last)
    axes.set_xticks([tick for tick in ticks if first <= tick <= last])
