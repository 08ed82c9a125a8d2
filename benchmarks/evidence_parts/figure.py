"""A figure whose sentence needs seeds enough of every method in it; with fewer it says which are missing."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from evidence_parts.results import LEAST_SEEDS
from halka.report.summary import Summary
from halka.report.svg import Drawing, Plot, drawn
from halka.report.units import listed


def figure(make: Callable[[], Drawing | None], seeds: Mapping[str, int], name: str) -> Plot | None:
    """The plot that `make` draws; `seeds` are those that have finished, by what is in it."""

    def with_words() -> Drawing | None:
        drawing = make()
        return None if drawing is None else (*drawing[:2], too_few(seeds) or drawing[2])

    return drawn(with_words, name=name)


def too_few(seeds: Mapping[str, int]) -> str:
    """Which seeds a verdict lacks; empty where it lacks none."""
    lacking = [f"{label} has {count or 'none'}" for label, count in seeds.items() if count < LEAST_SEEDS]
    return f"No verdict yet: it needs {LEAST_SEEDS} seeds of each; {listed(lacking)}." if lacking else ""


def final_seeds(summary: Summary) -> dict[str, int]:
    """The seeds of each tuned method's final runs."""
    return {row.label: len(row.seeds) if row.final else 0 for row in summary.rows if not row.is_base}
