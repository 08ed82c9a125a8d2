"""Plots of the pilot: held-out loss over steps, and over the number of training examples."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean
from typing import TYPE_CHECKING

from halka.advisor import words
from halka.advisor.evidence import Evidence, Learnability, Trial
from halka.advisor.plots import PAD
from halka.evaluation.metrics import Score
from halka.report.axes import Name, at_the_right, interval, log_scale_if_wide, mark, padded, room, tall
from halka.report.intervals import finite
from halka.report.svg import Drawing, Look, colour, grid, name_axes, new_figure
from halka.report.units import count
from halka.util.text import one_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BESIDE = 1.25  # an axis of sizes extends so many times beyond the largest and the smallest
DOTS = (0, (1, 2))


def pilot(evidence: Evidence) -> Drawing | None:
    """Each trial's held-out loss, and at the right what it is extrapolated to."""
    learned = evidence.learnability
    figure = None if learned is None else _curves(learned, passages=False)
    if learned is None or figure is None:
        return None
    return figure, "Pilot runs", words.best_trial(learned, passages=False) or "No trial ended with a finite loss."


def pilot_with_passages(evidence: Evidence) -> Drawing | None:
    """As `pilot`, of trials on prompts with passages, whose losses do not compare with the others'."""
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
            axes.plot([at[0], x], [at[1], expected.value], color=look.colour, linewidth=0.8, linestyle=DOTS)
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
    series = [] if learned is None else _series_over_sizes(learned)
    if learned is None or not series:
        return None
    names = [one_line(trials[-1].name) for trials, _ in series]
    figure, axes = new_figure(left=46, right=room(names), height=tall(len(series)))
    axes.set_xscale("log")
    labels, ends, sizes = [], [], set[int]()
    for (trials, look), name in zip(series, names, strict=True):
        line = {trial.reached: mean(t.loss.value for t in trials if t.reached == trial.reached) for trial in trials}
        axes.plot(list(line), list(line.values()), color=look.colour, linewidth=1.6)
        for trial in trials:
            _mark_upright(axes, trial.reached, trial.loss, look, filled=True)
        labels.append(Name(name, trials[-1].reached, trials[-1].loss.value, look.colour))
        ends += [end for trial in trials for end in (trial.loss.low, trial.loss.high)]
        sizes |= line.keys()
    longest = max(range(len(series)), key=lambda index: (len(series[index][0]), series[index][0][-1].reached))
    (least, *_, last), look = series[longest]
    more = words.known(learned.more)
    takeaway = (
        f"From {least.reached} to {last.reached} examples the loss goes from {least.loss.value:.2f} to "
        f"{last.loss.value:.2f}"
    )
    if more is not None:
        owned = learned.examples or last.reached
        x, many = learned.times * owned, "as many" if owned == last.reached else f"all {owned}"
        axes.plot([last.reached, x], [last.loss.value, more.value], color=look.colour, linewidth=1.0, linestyle=DOTS)
        _mark_upright(axes, x, more, look)
        labels[longest] = Name(names[longest], x, more.value, look.colour)
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


def _series_over_sizes(learned: Learnability) -> list[tuple[list[Trial], Look]]:
    """Trials of several sizes that differ in nothing else, the smallest first, with the look of the largest."""
    kinds: dict[str, list[tuple[Trial, Look]]] = {}
    for trial, look in _looks(learned):
        if words.known(trial.loss) is not None and trial.reached > 0:
            kind = repr((trial.method, sorted(trial.fields.items(), key=repr), trial.lr, trial.passages))
            kinds.setdefault(kind, []).append((trial, look))
    series = []
    for kind in kinds.values():
        trials, looks = zip(*sorted(kind, key=lambda pair: pair[0].reached), strict=True)
        if trials[0].reached < trials[-1].reached:
            series.append(([*trials], looks[-1]))
    return series


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
    return [(trial, Look.numbered(order.index(index))) for index, trial in enumerate(trials)]


def _finite_points(curve: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    return sorted((step, loss) for step, loss in curve if finite(loss) is not None)


def _mark_upright(axes: Axes, x: float, score: Score, look: Look, *, filled: bool = False) -> None:
    """A value with its interval in a plot over x."""
    interval(axes, x, (score.low, score.high), look.colour)
    mark(axes, x, score.value, look, 7.5 if filled else 6, hollow=not filled)


def _scale(axes: Axes, ends: Sequence[float]) -> None:
    low, high = min(ends), max(ends)
    axes.set_ylim((low / 1.1, high * 1.1) if log_scale_if_wide(axes, low, high) else padded(ends, PAD))
    axes.minorticks_off()


def _tick_steps(axes: Axes, first: float, last: float) -> None:
    """Ticks at whole steps, none beyond the last."""
    from matplotlib.ticker import MaxNLocator

    ticks = MaxNLocator(5, integer=True, steps=[1, 2, 2.5, 5, 10]).tick_values(first, last)
    axes.set_xticks([tick for tick in ticks if first <= tick <= last])
