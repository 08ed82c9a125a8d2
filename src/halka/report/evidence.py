"""`Evidence`: the rows of a comparison with the measurements behind them, as the reasons for care read them."""

from __future__ import annotations

from dataclasses import dataclass

from halka.report.intervals import Estimate
from halka.report.rows import Measurement, MetricInfo, Row, counting_runs, label_of


@dataclass(frozen=True)
class Evidence:
    """What the reasons are computed from."""

    rows: tuple[Row, ...]
    metric: MetricInfo
    measurements: tuple[Measurement, ...]

    def runs(self, row: Row) -> list[Measurement]:
        return [run for run in self.measurements if label_of(run) == row.label]

    def used(self, row: Row) -> list[Measurement]:
        return counting_runs(self.runs(row))[0]

    @property
    def tuned(self) -> list[Row]:
        return [row for row in self.rows if not row.is_base]

    @property
    def scored(self) -> list[Row]:
        """Tuned rows with a score, best first."""
        rows = [row for row in self.tuned if self.score(row) is not None]
        return sorted(rows, key=lambda row: -self.metric.sign(row.scores[self.metric.name].value))

    def score(self, row: Row) -> Estimate | None:
        return row.scores.get(self.metric.name)
