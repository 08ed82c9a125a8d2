"""The plot of scores on the way: how soon each method comes near full fine-tuning's score."""

from __future__ import annotations

from collections.abc import Sequence

from halka.report.axes import Banded, at_the_right, banded, line_at, padded, room, tall, with_bands
from halka.report.near_full import target_of, way_of
from halka.report.rows import Measurement, Row, full_runs, used_runs
from halka.report.summary import Summary
from halka.report.svg import Drawing, grid, looks, name_axes, new_figure
from halka.report.units import listed


def progress(summary: Summary, measurements: Sequence[Measurement]) -> Drawing | None:
    """Validation scores over steps (`score_every`, `best_by`): the mean of the runs that count, from least to greatest.

    A line ends where the first of its runs does. The dashed line is 95 % of full fine-tuning's score.
    """
    metric = summary.primary
    used = used_runs(measurements)
    tuned = [row for row in summary.rows if not row.is_base]
    lines = [(row, points) for row in tuned if len(points := _together(used.get(row.label, ()))) > 1]
    if not lines:
        return None
    look = looks(summary.rows)
    figure, axes = new_figure(left=46, right=room([row.label for row, _ in lines]), height=tall(len(lines)))
    names = with_bands(axes, {row.label: points for row, points in lines}, look)
    target = target_of(full_runs(used), metric)
    scores = [value for _, points in lines for point in points for value in point[1:]]
    axes.set_ylim(padded([*scores, *([] if target is None else [target])], 0.05))
    if target is not None:
        line_at(axes, target)
    if metric.is_share:
        axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    grid(axes, "y")
    at_the_right(axes, names)
    better = "" if metric.higher_is_better else " (lower is better)"
    name_axes(axes, "steps", f"{metric.title} on validation examples{better}")
    if target is None:
        takeaway = "Full fine-tuning was not followed, or scored nothing, so there is no score to come near to."
    else:
        takeaway = _takeaway(summary, [row for row, _ in lines])
    return figure, "Scores on the way", takeaway


def _together(runs: Sequence[Measurement]) -> list[Banded]:
    """The steps at which all runs that were followed have a score."""
    return banded([{step: score for step, score, _ in way} for run in runs if (way := way_of(run))])


def _takeaway(summary: Summary, rows: Sequence[Row]) -> str:
    near = {row.label: summary.near_full[row.label] for row in rows if row.label in summary.near_full}
    if not near:
        return "No method's score came to 95 % of full fine-tuning's best on the way."
    reached = [f"{label} after {pace.steps:.0f} steps {pace.aside}".rstrip() for label, pace in near.items()]
    never = [row.label for row in rows if row.label not in near]
    rest = f"; {listed(never)} did not come there" if never else ""
    return f"To 95 % of full fine-tuning's best score: {listed(reached)}{rest}."
