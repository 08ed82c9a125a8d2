"""Summarise one experiment's measurements: one row per method, failures, caveats and provenance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from halka.report.caveats import ComparedRuns, caveats
from halka.report.findings import headline
from halka.report.near_full import NearFull, paces
from halka.report.rows import (
    Measurement,
    MetricInfo,
    Row,
    base_bytes,
    build_rows,
    entry,
    is_done,
    label_of,
    metric_info,
    name_of,
    number,
)
from halka.report.units import size
from halka.util.errors import HalkaError
from halka.util.text import one_line

INTERVALS = (
    "95 % intervals join two sources of variation: Student's t over the seeds, and each run's bootstrap over the test "
    "items, averaged over the seeds; the two half-widths add as the root of the sum of their squares (MOVER, Zou and "
    "Donner 2008). All seeds answer the same items, so more seeds do not shrink the items' part. With one seed only "
    "the items' part is known, and no difference is more than chance explains. Two methods count as told apart when "
    "the interval of their difference leaves zero out; its items' part is of the difference itself where the runs keep "
    "their scores on each drawn set of items, else as if the methods were independent."
)


@dataclass(frozen=True)
class Failure:
    """A run that did not finish."""

    label: str
    lr: float | None
    seed: int | None
    purpose: str
    reason: str


@dataclass(frozen=True)
class Provenance:
    """Origin of the measurements, and the command that repeats them. Tuples list the distinct values."""

    command: str | None
    commits: tuple[str, ...]
    versions: dict[str, tuple[str, ...]]
    machines: tuple[str, ...]
    seeds: tuple[int, ...]
    first: str | None
    last: str | None
    licence: str | None
    source: str | None


@dataclass(frozen=True)
class Summary:
    """An experiment's results. `to_json` returns them as plain data.

    rows            the base, full fine-tuning, then the other methods by score, best first
    near_full       by label, when a method's score on the way came near full fine-tuning's
    metrics         every metric that was scored, the primary one first
    headline        the result in one sentence
    caveats         sentences on what limits the conclusions ("care" in summary.json)
    intervals       how the intervals are computed, and why
    base_bytes      the base's size on disk; `base_bytes_from` is the source of that figure
    finished, total numbers of runs
    """

    experiment: str
    task: str
    base: str
    primary: MetricInfo
    metrics: tuple[MetricInfo, ...]
    rows: tuple[Row, ...]
    failed: tuple[Failure, ...]
    near_full: dict[str, NearFull]
    headline: str
    caveats: tuple[str, ...]
    intervals: str
    base_bytes: float | None
    base_bytes_from: str
    finished: int
    total: int
    provenance: Provenance

    @property
    def full(self) -> Row | None:
        return next((row for row in self.rows if row.is_full), None)

    @property
    def base_row(self) -> Row | None:
        return next((row for row in self.rows if row.is_base), None)

    def to_json(self) -> dict[str, Any]:
        """The summary as plain data, with the field names of summary.json."""
        plain = asdict(self, dict_factory=lambda items: {key: value for key, value in items if key != "draws"})
        return {"care" if name == "caveats" else name: value for name, value in plain.items()}


def summarise(measurements: Sequence[Measurement], command: str | None = None) -> Summary:
    """Summarise one experiment's measurements (the JSON that `halka.studies.measure` writes), finished or failed.

    `command` is the one that repeats the measurements.

    Raises HalkaError if the finished measurements mix tasks, bases or primary metrics.
    """
    for measurement in measurements:
        if not isinstance(measurement, Mapping):
            raise HalkaError(
                f"a measurement is {type(measurement).__name__}, not an object; give a list of measurements"
            )
    done = [m for m in measurements if is_done(m)] or measurements
    task, base = (_one(done, key) for key in ("task", "base"))
    primary = metric_info(_one(done, "primary") or "score", measurements)
    names = [one_line(name) for m in measurements if is_done(m) for name in entry(m, "scores") or {}]
    others = [metric_info(name, measurements) for name in dict.fromkeys(names) if name != primary.name]
    rows = build_rows(measurements, primary)
    compared = ComparedRuns(rows, primary, tuple(measurements))
    failed = tuple(_failure(m) for m in measurements if not is_done(m))
    stored, stored_from = base_bytes(measurements)
    finished = len(measurements) - len(failed)
    return Summary(
        experiment=", ".join(_distinct(measurements, "experiment")) or "unnamed",
        task=task or "unnamed task",
        base=base or "unnamed base",
        primary=primary,
        metrics=(primary, *others),
        rows=rows,
        failed=failed,
        near_full=paces(measurements, primary),
        headline=headline(rows, primary, finished, len(failed)),
        caveats=caveats(compared),
        intervals=INTERVALS,
        base_bytes=stored,
        base_bytes_from=stored_from,
        finished=finished,
        total=len(measurements),
        provenance=_provenance(measurements, command),
    )


def _failure(run: Measurement) -> Failure:
    seed = number(run, "seed")
    return Failure(
        label=label_of(run),
        lr=number(run, "lr"),
        seed=None if seed is None else int(seed),
        purpose=one_line(run.get("purpose") or ""),
        reason=one_line(run.get("error") or "no reason given"),
    )


def _provenance(measurements: Sequence[Measurement], command: str | None) -> Provenance:
    names = dict.fromkeys(name for m in measurements for name in entry(m, "versions") or {})
    dates = sorted(_distinct(measurements, "date"))
    tuned = [m for m in measurements if name_of(m) != "base"]
    return Provenance(
        command=command,
        commits=_distinct(measurements, "commit"),
        versions={one_line(name): _distinct(measurements, "versions", name) for name in names},
        machines=tuple(dict.fromkeys(_machine(m) for m in measurements if m.get("machine"))),
        seeds=tuple(sorted({int(seed) for m in tuned if (seed := number(m, "seed")) is not None})),
        first=dates[0] if dates else None,
        last=dates[-1] if dates else None,
        licence=", ".join(_distinct(measurements, "licence")) or None,
        source=", ".join(_distinct(measurements, "source")) or None,
    )


def _machine(run: Measurement) -> str:
    cores, memory = number(run, "machine", "cores"), number(run, "machine", "memory")
    parts = [
        one_line(entry(run, "machine", "cpu") or ""),
        f"{cores:.0f} cores" if cores is not None else "",
        size(memory) if memory is not None else "",
        f"device {one_line(entry(run, 'machine', 'device'))}" if entry(run, "machine", "device") else "",
    ]
    return ", ".join(part for part in parts if part)


def _distinct(measurements: Sequence[Measurement], *path: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(one_line(value) for m in measurements if (value := entry(m, *path))))


def _one(measurements: Sequence[Measurement], key: str) -> str | None:
    values = _distinct(measurements, key)
    if len(values) > 1:
        raise HalkaError(
            f"the measurements have several values of {key!r}: {', '.join(values)}; their scores cannot be "
            "compared, so summarise each by itself"
        )
    return values[0] if values else None
