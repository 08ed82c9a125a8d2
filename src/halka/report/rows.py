"""One method's runs as one row: its scores, its costs, and the runs behind them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import mean
from typing import Any

from halka.report.intervals import Interval, ScoreEstimate, Spread, estimate, finite, share, spread
from halka.report.units import decimals, percent
from halka.util.errors import HalkaError
from halka.util.text import one_line

Measurement = Mapping[str, Any]

MEMORY_PARTS = ("weights", "gradients", "optimizer", "activations")
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
TASK_COUNTS = (1, 10, 100, 1000)
LOWER_IS_BETTER = frozenset({"loss", "validation_loss", "perplexity", "wer", "cer", "ter", "mae", "mse", "rmse"})


@dataclass(frozen=True)
class MetricInfo:
    """A metric's direction and range, and how its values are written."""

    name: str
    higher_is_better: bool
    low: float | None
    high: float | None

    @property
    def is_share(self) -> bool:
        return (self.low, self.high) == (0.0, 1.0)

    @property
    def title(self) -> str:
        return self.name.replace("_", " ")

    @property
    def bounds(self) -> tuple[float, float]:
        low = float("-inf") if self.low is None else self.low
        return low, float("inf") if self.high is None else self.high

    def text(self, value: float) -> str:
        """The value as text: 61.2 % for a share, else three significant figures."""
        return percent(value, 1) if self.is_share else decimals(value)

    def gap(self, value: float) -> str:
        """A difference of two values: 2.1 points, or 0.042."""
        return f"{decimals(100 * abs(value), 2)} points" if self.is_share else decimals(abs(value), 2)

    def sign(self, value: float) -> float:
        """`value`, negated if lower is better, so that greater is better."""
        return value if self.higher_is_better else -value


@dataclass(frozen=True)
class Row:
    """One method. Figures are means over `runs` finished runs; None or absent where nothing was measured.

    label, name, fields     the method; `name` is "base" without tuning and "full" for full fine-tuning
    lr, lrs                 the learning rate of the runs that count; all rates that were tried for this method
    seeds, runs             the seeds of the runs that count, and the number of those runs
    dtype, quantize         the base's; None where it is not recorded, or the base is not quantised
    final                   False if only search runs have finished: then there is no score
    scores                  by metric, the mean with its interval
    relative                the primary score divided by full fine-tuning's, with its interval where that has bounds
    trainable, share        trained parameters, and as a share of all
    peak, beyond            bytes: peak memory of the process, and its part beyond the loaded base
    memory, predicted       bytes by part: weights, gradients, optimizer, activations
    storage                 number of tasks -> bytes on disk
    latency, forgetting     added time a token (0.09: 9 % more), relative change of perplexity on other text
    """

    label: str
    name: str
    fields: dict[str, Any]
    lr: float | None
    lrs: tuple[float, ...]
    seeds: tuple[int, ...]
    runs: int
    dtype: str | None
    quantize: str | None
    final: bool
    scores: dict[str, ScoreEstimate]
    relative: float | None
    relative_interval: Interval | None
    validation_loss: Spread | None
    steps: int | None
    examples: int | None
    trainable: float | None
    share: float | None
    peak: Spread | None
    beyond: Spread | None
    memory: dict[str, float]
    predicted: dict[str, float]
    tokens_per_second: Spread | None
    seconds: Spread | None
    adapter_bytes: float | None
    storage: dict[str, float]
    latency: Spread | None
    forgetting: Spread | None

    @property
    def is_base(self) -> bool:
        return self.name == "base"

    def one_seed(self, metric: str) -> bool:
        """Whether another seed's effect on that score is unknown. The base has no seeds: it would score the same."""
        return not self.is_base and self.scores[metric].seeds < 2

    @property
    def at_edge(self) -> bool:
        """Whether the rate that was best is the lowest or the highest of several that were tried."""
        return len(self.lrs) > 1 and self.lr in (self.lrs[0], self.lrs[-1])

    @property
    def memory_error(self) -> float | None:
        """What was predicted of memory beside what was measured, less 1, over the parts that both have."""
        parts = [part for part in self.memory if part in self.predicted]
        measured = sum(self.memory[part] for part in parts)
        return sum(self.predicted[part] for part in parts) / measured - 1 if measured > 0 else None

    @property
    def is_full(self) -> bool:
        return self.name == "full"

    @property
    def is_light(self) -> bool:
        """A parameter-efficient method: neither the base nor full fine-tuning."""
        return not (self.is_base or self.is_full)


def number(measurement: Measurement, *path: str) -> float | None:
    """The finite number at a path of keys, else None."""
    return finite(entry(measurement, *path))


def entry(measurement: Measurement, *path: str) -> Any:
    """The value at a path of keys; None if a key is missing."""
    value: Any = measurement
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def label_of(measurement: Measurement) -> str:
    """The method's label as one line."""
    label = entry(measurement, "method", "label") or entry(measurement, "method", "name")
    return one_line(label or "unnamed method")


def name_of(measurement: Measurement) -> str:
    return one_line(entry(measurement, "method", "name") or "")


def is_done(measurement: Measurement) -> bool:
    return measurement.get("status") == "done"


def counting_runs(runs: Sequence[Measurement]) -> tuple[list[Measurement], bool]:
    """The finished runs that a method's figures are computed from, and whether these are final ones.

    These are the final runs, or the base's run; without any, the searches of the rate with the least mean validation
    loss. A rate that not every seed came through counts only where there is no other.
    """
    done = [run for run in runs if is_done(run)]
    final = [run for run in done if run.get("purpose") == "final" or name_of(run) == "base"]
    if final:
        return final, True
    losses: dict[float | None, list[float]] = {}
    broken: set[float | None] = set()
    for run in (run for run in runs if run.get("purpose") != "final"):
        loss = number(run, "validation_loss") if is_done(run) else None
        if loss is None:
            broken.add(number(run, "lr"))
        else:
            losses.setdefault(number(run, "lr"), []).append(loss)
    if not losses:
        return done[:1], False
    best = min(losses, key=lambda rate: (rate in broken, mean(losses[rate])))
    return [run for run in done if number(run, "lr") == best and number(run, "validation_loss") is not None], False


def by_label(measurements: Iterable[Measurement]) -> dict[str, list[Measurement]]:
    """The runs of each method, finished or not."""
    groups: dict[str, list[Measurement]] = {}
    for measurement in measurements:
        groups.setdefault(label_of(measurement), []).append(measurement)
    return groups


def used_runs(measurements: Iterable[Measurement]) -> dict[str, list[Measurement]]:
    """By label, the runs that a method's figures are computed from."""
    return {label: counting_runs(runs)[0] for label, runs in by_label(measurements).items()}


def full_runs(used: Mapping[str, list[Measurement]]) -> list[Measurement]:
    """The runs of full fine-tuning among `used_runs`; empty if there are none."""
    return next((runs for runs in used.values() if runs and name_of(runs[0]) == "full"), [])


def metric_info(name: str, measurements: Sequence[Measurement] = ()) -> MetricInfo:
    """The metric's direction and range, as a task's own are recorded; of others those that Halka knows, or by name."""
    from halka.evaluation.metrics import find_metric

    for measurement in measurements:
        if isinstance(own := entry(measurement, "own_metrics", name), Mapping):
            low, high = map(finite, own.get("range") or (None, None))
            return MetricInfo(name, own.get("higher_is_better") is not False, low, high)
    try:
        metric = find_metric(name)
    except HalkaError:
        return MetricInfo(name, name.lower() not in LOWER_IS_BETTER, None, None)
    low, high = (finite(bound) for bound in metric.range)
    return MetricInfo(name, metric.higher_is_better, low, high)


def build_rows(measurements: Sequence[Measurement], primary: MetricInfo) -> tuple[Row, ...]:
    """One row per method: the base, full fine-tuning, then the others by score, best first; those without one last."""
    rows = [_row(label, runs) for label, runs in by_label(measurements).items()]
    full = next((row for row in rows if row.is_full and primary.name in row.scores), None)
    stored = base_bytes(measurements)[0]
    rows = [_compared(row, full, stored, primary.name) for row in rows]

    def order(row: Row) -> tuple[int, float]:
        score = row.scores.get(primary.name)
        if row.is_base or row.is_full:
            return (0 if row.is_base else 1), 0.0
        return (3, 0.0) if score is None else (2, -primary.sign(score.value))

    return tuple(sorted(rows, key=order))


def base_bytes(measurements: Sequence[Measurement]) -> tuple[float | None, str]:
    """Bytes of the base on disk, and the source of the figure."""
    done = [measurement for measurement in measurements if is_done(measurement)]
    for run in sorted(done, key=lambda run: name_of(run) != "base"):
        width = BYTES.get(str(run.get("dtype")))
        if width and (total := number(run, "parameters", "total")):
            return width * total, f"{total:,.0f} parameters in {run['dtype']}"
    for run in done:
        if name_of(run) == "full" and (value := number(run, "adapter_bytes")):
            return value, "the size of a full fine-tuned copy"
    for run in done:
        if total := number(run, "parameters", "total"):
            return 2 * total, "two bytes a parameter, assumed"
    return None, "not known"


def _row(label: str, runs: Sequence[Measurement]) -> Row:
    used, final = counting_runs(runs)
    first = (used or list(runs))[0]
    trainable, total = average(used, "parameters", "trainable"), average(used, "parameters", "total")
    alone = [run for run in used if not run.get("together")]  # others' time is that of all in their passes
    names = dict.fromkeys(name for run in used for name in entry(run, "scores") or {}) if final else {}
    scores = {name: estimate([_score(run, name) for run in used], metric_info(name, runs).bounds) for name in names}
    tried = {lr for run in runs if (lr := number(run, "lr")) is not None}
    rates = [lr for run in used if (lr := number(run, "lr")) is not None]
    return Row(
        label=label,
        name=name_of(first),
        fields=dict(entry(first, "method", "fields") or {}),
        lr=max(rates, key=rates.count) if rates else None,
        lrs=tuple(sorted(tried)),
        seeds=tuple(sorted({int(seed) for run in used if (seed := number(run, "seed")) is not None})),
        runs=len(used),
        dtype=first.get("dtype"),
        quantize=first.get("quantize"),
        final=final,
        scores={name: score for name, score in scores.items() if score is not None},
        relative=None,
        relative_interval=None,
        validation_loss=spread(number(run, "validation_loss") for run in used),
        steps=_whole(average(used, "train", "steps")),
        examples=_whole(average(used, "train", "examples")),
        trainable=trainable,
        share=trainable / total if trainable is not None and total else None,
        peak=spread(number(run, "memory", "peak") for run in used),
        beyond=spread(_beyond(run) for run in used),
        memory=_parts(used, "memory"),
        predicted=_parts(used, "memory", "predicted"),
        tokens_per_second=spread(number(run, "train", "tokens_per_second") for run in alone),
        seconds=spread(number(run, "train", "seconds") for run in alone),
        adapter_bytes=average(used, "adapter_bytes"),
        storage={},
        latency=spread(number(run, "latency", "added") for run in used),
        forgetting=spread(number(run, "forgetting", "change") for run in used),
    )


def _score(run: Measurement, metric: str) -> Measurement:
    """The run's score by that metric, with the primary one's draws."""
    score = entry(run, "scores", metric) or {}
    return {**score, "draws": run.get("draws")} if metric == run.get("primary") else score


def _compared(row: Row, full: Row | None, stored: float | None, primary: str) -> Row:
    """The row with its share of full fine-tuning's score, and its storage, both of which need other rows."""
    relative = interval = None
    if full is not None and not row.is_full and primary in row.scores:
        mine, theirs = row.scores[primary], full.scores[primary]
        relative = mine.value / theirs.value if theirs.value else None
        interval = share(mine, theirs)
    storage: dict[str, float] = {}
    if row.adapter_bytes is not None and not row.is_base:
        if row.is_full:
            storage = {str(n): n * row.adapter_bytes for n in TASK_COUNTS}
        elif stored is not None:
            storage = {str(n): stored + n * row.adapter_bytes for n in TASK_COUNTS}
    return replace(row, relative=relative, relative_interval=interval, storage=storage)


def average(runs: Iterable[Measurement], *path: str) -> float | None:
    """The mean of the numbers at `path` over the runs that have one; None if none has."""
    values = [value for run in runs if (value := number(run, *path)) is not None]
    return mean(values) if values else None


def _parts(runs: Sequence[Measurement], *path: str) -> dict[str, float]:
    parts = {part: average(runs, *path, part) for part in MEMORY_PARTS}
    return {part: value for part, value in parts.items() if value is not None}


def _beyond(run: Measurement) -> float | None:
    """Peak memory minus the baseline: the process before training, the base's weights included."""
    peak, baseline = number(run, "memory", "peak"), number(run, "memory", "baseline")
    return None if peak is None or baseline is None else max(peak - baseline, 0.0)


def _whole(value: float | None) -> int | None:
    return None if value is None else round(value)
