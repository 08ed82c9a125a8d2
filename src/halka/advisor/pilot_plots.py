"""The advice's plots of short training runs: held-out loss over steps, and over the number of training examples."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean
from typing import TYPE_CHECKING, Any

from halka.advisor import words
from halka.evaluation.metrics import Score
from halka.report.intervals import finite
from halka.report.svg import MARKERS, SERIES, Look, colour, grid, name_axes, new_figure
from halka.report.units import count
from halka.util.text import one_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Drawn = tuple["Figure", str, str]
BESIDE = 1.25  # how many times the most, and the least, an axis of sizes goes to


def pilot(evidence: Any) -> Drawn | None:
    """Each trial's held-out loss, and at the right what it would come to."""
    drawn = _pilot(evidence.learnability, passages=False)
    if drawn is None:
        return None
    said = words.best_trial_said(evidence.learnability, passages=False)
    return drawn, "Pilot runs", said or "No trial ended with a loss."


def pilot_shown(evidence: Any) -> Drawn | None:
    """The same of trials that are shown passages: their prompts are others, and so are their losses."""
    drawn = _pilot(evidence.learnability, passages=True)
    if drawn is None:
        return None
    said = words.best_trial_said(evidence.learnability, passages=True)
    other = "Their prompts are others: losses without passages do not compare with these."
    return drawn, "Pilot runs with passages", f"{said} {other}".strip()


def _pilot(learnability: Any, *, passages: bool) -> Figure | None:
    if learnability is None:
        return None
    found = [
        (trial, look, points)
        for trial, look in _looks(learnability)
        if bool(trial.passages) == passages and (points := _points(trial.curve))
    ]
    if not found:
        return None
    most = max(trial.examples for trial, *_ in found)
    names = [one_line(trial.name).removesuffix(" of the data") for trial, *_ in found]  # as short as labels are
    figure, axes = new_figure(left=46, right=room(names), height=tall(len(found)))
    first, last = (side(point[0] for *_, points in found for point in points) for side in (min, max))
    expecting = [trial for trial, *_ in found if words.known(trial.expected)]
    span = max(last - first, 1)
    axes.set_xlim(first - 0.015 * span, last + (0.24 if expecting else 0.015) * span)
    labels, ends = [], []
    for (trial, look, points), name in zip(found, names, strict=True):
        steps, values = zip(*points, strict=True)
        dashes = "solid" if trial.examples == most else (0, (4, 2))
        axes.plot(steps, values, look.marker, linestyle=dashes, color=look.colour, linewidth=1.6, markersize=4)
        ends += values
        expected, at = words.known(trial.expected), (steps[-1], values[-1])
        if expected is not None:
            place = expecting.index(trial) + 1
            x = last + 0.24 * span * place / (len(expecting) + 1)
            axes.plot([at[0], x], [at[1], expected.value], color=look.colour, linewidth=0.8, linestyle=(0, (1, 2)))
            _upright(axes, x, expected, look)
            ends += [expected.low, expected.high]
            at = (x, expected.value)
        labels.append(Name(name, *at, look.colour))
    _scale(axes, ends)
    grid(axes, "y")
    if expecting:
        axes.axvspan(last, axes.get_xlim()[1], color=colour("--line"), alpha=0.45, linewidth=0, zorder=0)
    _steps(axes, first, last)
    at_the_right(axes, labels)
    keys = "dashed: fewer examples" if any(trial.examples < most for trial, *_ in found) else ""
    name_axes(
        axes,
        "steps; shaded: expected if it goes on" if expecting else "steps",
        f"held-out loss{f' ({keys})' if keys else ''}",
    )
    return figure


def amounts(evidence: Any) -> Drawn | None:
    """The loss over the number of training examples, of trials that differ in nothing else; and with more of them."""
    learnability = evidence.learnability
    if learnability is None:
        return None
    kinds: dict[str, list[tuple[Any, Look, Score]]] = {}
    for trial, look in _looks(learnability):
        if (score := words.known(trial.loss)) is not None and _seen(trial) > 0:
            kind = repr((trial.method, sorted(trial.fields.items(), key=repr), trial.lr, trial.passages))
            kinds.setdefault(kind, []).append((trial, look, score))
    series = [
        sorted(each, key=lambda one: _seen(one[0])) for each in kinds.values() if len({_seen(t) for t, *_ in each}) > 1
    ]
    if not series:
        return None
    names = [f"{one_line(each[-1][0].name)}" for each in series]
    figure, axes = new_figure(left=46, right=room(names), height=tall(len(series)))
    axes.set_xscale("log")
    labels, ends, sizes = [], [], set()
    for each, name in zip(series, names, strict=True):
        look, points = each[-1][1], [(_seen(trial), score) for trial, _, score in each]
        line = {x: mean(score.value for at, score in points if at == x) for x, _ in points}
        axes.plot(list(line), list(line.values()), color=look.colour, linewidth=1.6)
        for x, score in points:
            _upright(axes, x, score, look, filled=True)
        labels.append(Name(name, points[-1][0], points[-1][1].value, look.colour))
        ends += [end for _, score in points for end in (score.low, score.high)]
        sizes |= {x for x, _ in points}
    longest = max(range(len(series)), key=lambda i: (len(series[i]), _seen(series[i][-1][0])))
    (least, _, before), (trial, look, score) = series[longest][0], series[longest][-1]
    more = words.known(learnability.more)
    said = f"From {_seen(least)} to {_seen(trial)} examples the loss goes from {before.value:.2f} to {score.value:.2f}"
    if more is not None:
        there = learnability.examples or _seen(trial)
        x, many = learnability.times * there, "as many" if there == _seen(trial) else f"the {there} that there are"
        axes.plot([_seen(trial), x], [score.value, more.value], color=look.colour, linewidth=1.0, linestyle=(0, (1, 2)))
        _upright(axes, x, more, look)
        labels[longest] = Name(names[longest], x, more.value, look.colour)
        ends += [more.low, more.high]
        sizes |= {x}
        said += f"; with {learnability.times} times {many}, {words.loss(more)} is to be expected"
    axes.set_xlim(min(sizes) / BESIDE, max(sizes) * BESIDE)
    axes.set_xticks(_apart(sorted(sizes)), [count(x).replace(".0", "") for x in _apart(sorted(sizes))])
    _scale(axes, ends)
    grid(axes, "y")
    axes.minorticks_off()
    at_the_right(axes, labels)
    hollow = " (hollow: expected)" if more is not None else ""
    name_axes(axes, "training examples", f"held-out loss{hollow}")
    return figure, "Loss for the number of examples", f"{said}."


def _seen(trial: Any) -> int:
    """How many different examples a trial was trained on."""
    return trial.examples if trial.seen is None else trial.seen


def _looks(learnability: Any) -> list[tuple[Any, Look]]:
    """Every trial with a colour and a marker by its name's order, not by its loss."""
    order = sorted(range(len(learnability.trials)), key=lambda i: (one_line(learnability.trials[i].name), i))
    place = {i: n for n, i in enumerate(order)}
    variables = [f"--s{place[i] % SERIES}" for i in range(len(order))]
    return [
        (trial, Look(variable, colour(variable), MARKERS[place[i] % len(MARKERS)]))
        for i, (trial, variable) in enumerate(zip(learnability.trials, variables, strict=True))
    ]


def _points(curve: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    return sorted((step, loss) for step, loss in curve if finite(loss) is not None)


def _upright(axes: Axes, x: float, score: Score, look: Look, filled: bool = False) -> None:
    """A value with its interval, upright."""
    axes.plot([x, x], [score.low, score.high], color=look.colour, linewidth=1.4, solid_capstyle="butt")
    fill, edge = (look.colour, colour("--paper")) if filled else (colour("--paper"), look.colour)
    axes.plot(x, score.value, look.marker, markersize=7.5 if filled else 6, markerfacecolor=fill, markeredgecolor=edge)


def _scale(axes: Axes, ends: Sequence[float]) -> None:
    low, high = min(ends), max(ends)
    if low > 0 and high / low > 3:
        axes.set_yscale("log")
        log_ticks(axes.yaxis, low, high)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.set_ylim(low / 1.1, high * 1.1)
    else:
        pad = 0.06 * (high - low or abs(high) or 1.0)
        axes.set_ylim(low - pad, high + pad)
    axes.minorticks_off()


def _steps(axes: Axes, first: float, last: float) -> None:
    """Ticks at whole steps, none where nothing was trained."""
    from matplotlib.ticker import MaxNLocator

    ticks = MaxNLocator(5, integer=True, steps=[1, 2, 2.5, 5, 10]).tick_values(first, last)
    axes.set_xticks([tick for tick in ticks if first <= tick <= last])


def _apart(sizes: Sequence[int]) -> list[int]:
    """The sizes that are far enough from each other to be written under the axis."""
    kept: list[int] = []
    for each in reversed(sizes):
        if not kept or kept[-1] / each >= (BESIDE**2 * sizes[-1] / sizes[0]) ** 0.12:
            kept.append(each)
    return kept[::-1]
