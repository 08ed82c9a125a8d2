"""How soon a method's validation score comes near full fine-tuning's, and what the base had forgotten by then."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean

from halka.report.rows import Measurement, MetricInfo, entry, full_runs, number, used_runs
from halka.util.text import plural

NEAR = 0.95  # of full fine-tuning's score; for a loss or another error, at most 1/0.95 of it


@dataclass(frozen=True)
class NearFull:
    """When the score came to 95 % of full fine-tuning's: means over the runs that came there.

    steps        of training
    seconds      of training, at the mean pace of each run; None where it was not measured
    forgetting   the relative change of perplexity on other text at that step; None where it was not measured
    runs, of     the runs that came there, and those whose scores were followed
    """

    steps: float
    seconds: float | None
    forgetting: float | None
    runs: int
    of: int

    @property
    def whole(self) -> bool:
        """Whether every run that was followed came there."""
        return self.runs == self.of

    @property
    def aside(self) -> str:
        """How many did, in brackets; nothing where all did."""
        return "" if self.whole else f"({self.runs} of {plural(self.of, 'run')})"


def paces(measurements: Sequence[Measurement], metric: MetricInfo) -> dict[str, NearFull]:
    """By label, when each method came near full fine-tuning; without those that did not, or were not followed."""
    used = used_runs(measurements)
    full = full_runs(used)
    return {label: near for label, runs in used.items() if (near := near_full(runs, full, metric)) is not None}


def near_full(runs: Sequence[Measurement], full: Sequence[Measurement], metric: MetricInfo) -> NearFull | None:
    """When `runs` came near the best score of the `full` ones, from the scores on the way (`score_every`, `best_by`).

    None where none came there, no scores were followed, or full fine-tuning scored nothing.
    """
    target = target_of(full, metric)
    followed = [(run, way) for run in runs if (way := way_of(run))]
    if target is None or not followed:
        return None
    reached = [
        (run, point)
        for run, way in followed
        if (point := next((p for p in way if metric.sign(p[1]) >= metric.sign(target)), None)) is not None
    ]
    if not reached:
        return None
    changes = [change for _, (_, _, change) in reached if change is not None]
    times = [seconds for run, (step, _, _) in reached if (seconds := _seconds(run, step)) is not None]
    return NearFull(
        steps=mean(step for _, (step, _, _) in reached),
        seconds=mean(times) if len(times) == len(reached) else None,
        forgetting=mean(changes) if changes else None,
        runs=len(reached),
        of=len(followed),
    )


def _seconds(run: Measurement, step: float) -> float | None:
    """The seconds of training up to a step, as if all of the run's steps took as long."""
    steps, seconds = number(run, "train", "steps"), number(run, "train", "seconds")
    return step * seconds / steps if steps and seconds is not None and not run.get("together") else None


def target_of(full: Sequence[Measurement], metric: MetricInfo) -> float | None:
    """95 % of the best score of the `full` runs on their way; None where they were not followed or scored nothing."""
    best = [metric.sign(max(metric.sign(score) for _, score, _ in way)) for run in full if (way := way_of(run))]
    target = mean(best) * (NEAR if metric.higher_is_better else 1 / NEAR) if best else 0.0
    return target if target > 0 else None


def way_of(run: Measurement) -> list[tuple[float, float, float | None]]:
    """A run's steps with the score and the forgetting of each, where they were followed."""
    before = number(run, "forgetting", "base_perplexity")
    points: list[tuple[float, float, float | None]] = []
    for point in entry(run, "train", "scores") or ():
        step, score, perplexity = (number(point, key) for key in ("step", "score", "perplexity"))
        if step is not None and score is not None:
            points.append((step, score, perplexity / before - 1 if perplexity and before else None))
    return points
