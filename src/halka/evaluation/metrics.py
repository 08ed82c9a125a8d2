"""The metrics by name, those that fit the data, and `score`: 95 % bootstrap intervals (Efron, 1979)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np

from halka.data.examples import Example
from halka.data.metric import Counts, FloatArray, Metric
from halka.evaluation.json_metrics import JSON_METRICS, is_json_object, json_field, json_field_f1
from halka.evaluation.tag_metrics import TAG_METRICS
from halka.evaluation.text_metrics import TEXT_METRICS, class_metrics, plain, without_spaces
from halka.util.errors import HalkaError
from halka.util.suggest import suggest

METRICS: dict[str, Metric] = {metric.name: metric for metric in (*TEXT_METRICS, *TAG_METRICS, *JSON_METRICS)}
OF_CLASSIFIERS: dict[str, Metric] = {metric.name: metric for metric in class_metrics(plain)}
"""For answers that are labels' names as they stand, so that `c` and `C` are two classes."""
FAMILIES: dict[str, Callable[[str], Metric]] = {"json_field": json_field, "json_field_f1": json_field_f1}
"""By the name before the colon: functions of the path after it."""
MEAN = Metric.mean("mean", "mean of the items' values", lambda value, _: float(value))
OF_FUNCTIONS = (TypeError, ValueError, LookupError, ArithmeticError, AttributeError)
"""What a metric's functions, which may be a user's, raise for answers that they were not written for."""


@dataclass(frozen=True)
class Score:
    """A metric over `n` items with its 95 % interval; `low <= value <= high`."""

    value: float
    low: float
    high: float
    n: int


def score(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    metrics: Sequence[str | Metric],
    seed: int = 0,
    resamples: int = 1000,
) -> dict[str, Score]:
    """Score `predictions[i]` against all accepted answers `references[i]`; returns a `Score` by metric name.

    The interval is the percentile bootstrap over items: sets of n items are drawn with replacement and scored exactly,
    from sums of per-item counts. The draws depend on n and `seed` alone, so methods scored on the same items share
    them. Where every draw gives the same value (all right, all wrong, one item), the bootstrap says nothing of a larger
    set; the interval then is the rule of three: with 95 % confidence less than 1 - 0.05^(1/k) of all items differ, of
    which k have a count other than 0.

    Raises HalkaError for an unknown metric, lists of different lengths, no items, an item without references, a value
    that is no text, a negative seed, and a score that is undefined on these items.
    """
    _check(predictions, references, seed, resamples)
    if isinstance(metrics, str):
        raise HalkaError(f"metrics is the text {metrics!r}: give a list of metrics, such as [{metrics!r}]")
    resolved = [find_metric(metric) for metric in metrics]
    tables = [_table(metric, predictions, references) for metric in resolved]
    sums = _resample([table for _, table in tables], resamples, seed)
    n = len(predictions)
    return {
        metric.name: _interval(metric, keys, table, drawn, n)
        for metric, (keys, table), drawn in zip(resolved, tables, sums, strict=True)
    }


def resampled(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    metric: str | Metric,
    seed: int = 0,
    resamples: int = 1000,
) -> list[float]:
    """The scores behind `score`'s interval, one for each set of items that is drawn; NaN where it is undefined.

    Two methods' answers to the same items meet the same sets, so their difference has an interval of its own, which is
    narrower than the two scores' together. Raises HalkaError as `score` does.
    """
    _check(predictions, references, seed, resamples)
    resolved = find_metric(metric)
    keys, table = _table(resolved, predictions, references)
    [sums_RK] = _resample([table], resamples, seed)
    return _aggregated(resolved, keys, sums_RK).tolist()


def mean_of(values: Sequence[float], seed: int = 0) -> Score:
    """The mean of values from 0 to 1 with an interval as in `score`. Raises HalkaError if there are none."""
    return score([repr(float(value)) for value in values], [[""]] * len(values), [MEAN], seed)["mean"]


def resampled_mean(values: Sequence[float], seed: int = 0) -> list[float]:
    """The means behind `mean_of`'s interval, as in `resampled`. Raises HalkaError if there are no values."""
    return resampled([repr(float(value)) for value in values], [[""]] * len(values), MEAN, seed)


def default_metrics(examples: Iterable[Example], kind: str | None) -> tuple[str, ...]:
    """The names of metrics that fit the kind of base and the accepted answers, the most important first.

    Classes and tags are scored as such, answers that are all JSON objects as JSON, others by equality and shared words,
    or shared letters in scripts that have no spaces between words.
    """
    if kind == "sequence-classification":
        return ("accuracy", "macro_f1")
    if kind == "token-classification":
        return ("tag_f1", "tag_accuracy")
    answers = [answer for example in examples for answer in example.answers]
    if all(map(is_json_object, answers)):
        return ("json_exact", "json_field_f1", "json_valid")
    return ("exact_match", "chrf" if without_spaces("".join(answers)) else "token_f1")


def find_metric(name: str | Metric, kind: str | None = None) -> Metric:
    """The metric of that name for the kind of base; `family:path` builds one (see `FAMILIES`); a `Metric` is unchanged.

    Raises HalkaError with the choices for an unknown name, and for what is neither a name nor a metric.
    """
    if isinstance(name, Metric):
        return name
    if not isinstance(name, str):
        raise HalkaError(f"{name!r} is no metric: name one, or wrap a function: Metric.mean(name, meaning, function)")
    if kind == "sequence-classification" and name in OF_CLASSIFIERS:
        return OF_CLASSIFIERS[name]
    if name in METRICS:
        return METRICS[name]
    family, colon, path = name.partition(":")
    if colon and path and family in FAMILIES:
        return FAMILIES[family](path)
    choices = [*METRICS, *(f"{family}:<path>" for family in FAMILIES)]
    near = suggest(name, choices)
    hint = f" (did you mean {near!r}?)" if near else ""
    raise HalkaError(f"unknown metric {name!r}{hint}; choose from {', '.join(choices)}")


def _check(predictions: Sequence[str], references: Sequence[Sequence[str]], seed: int, resamples: int) -> None:
    if len(predictions) != len(references):
        raise HalkaError(f"{len(predictions)} predictions for {len(references)} lists of references")
    if not predictions:
        raise HalkaError("nothing to score: no predictions")
    if resamples < 1:
        raise HalkaError(f"resamples is {resamples}; an interval needs at least 1, and 1000 is usual")
    if not isinstance(seed, Integral) or seed < 0:
        raise HalkaError(f"seed must be a whole number of at least 0, not {seed!r}")
    for i, (prediction, accepted) in enumerate(zip(predictions, references, strict=True)):
        if isinstance(accepted, str):
            raise HalkaError(f"references of item {i} are one text; give a list of texts, such as [text]")
        if len(accepted) == 0:
            raise HalkaError(f"item {i} has no reference; give at least one accepted answer")
        for text in (prediction, *accepted):
            if not isinstance(text, str):
                raise HalkaError(f"item {i} holds {text!r} where a text is needed")


def _table(
    metric: Metric, predictions: Sequence[str], references: Sequence[Sequence[str]]
) -> tuple[list[Any], FloatArray]:
    """The names of the counts (K) and the counts of every item (N, K)."""
    rows: list[Counts] = []
    for i, (prediction, accepted) in enumerate(zip(predictions, references, strict=True)):
        try:
            row = metric.per_item(prediction, accepted)
        except OF_FUNCTIONS as error:
            raise HalkaError(f"{metric.name}, item {i}: {_reason(error)}") from error
        if not all(math.isfinite(count) for count in row.values()):
            raise HalkaError(f"{metric.name}, item {i}: counts are not finite: {dict(row)}")
        rows.append(row)
    column = {key: k for k, key in enumerate(metric.reads([*dict.fromkeys(key for row in rows for key in row)]))}
    table = np.zeros((len(rows), len(column)))
    for i, row in enumerate(rows):
        for key, count in row.items():
            if key in column:
                table[i, column[key]] = count
    return list(column), table


def _resample(tables: Sequence[FloatArray], resamples: int, seed: int) -> list[FloatArray]:
    """For each table (N, K) its sums over items drawn with replacement, (R, K); all tables share the draws."""
    n = len(tables[0]) if tables else 0
    if not n:
        return []
    joined = np.hstack(tables)
    rng = np.random.default_rng(seed)
    at_once = max(1, 4_000_000 // n)
    sums = []
    for start in range(0, resamples, at_once):
        r = min(at_once, resamples - start)
        drawn = rng.integers(n, size=(r, n)) + n * np.arange(r)[:, None]
        times_RN = np.bincount(drawn.ravel(), minlength=r * n).reshape(r, n)
        sums.append(times_RN.astype(np.float64) @ joined)
    ends = np.cumsum([table.shape[1] for table in tables])
    return np.split(np.vstack(sums), ends[:-1], axis=1)


def _aggregated(metric: Metric, keys: list[Any], sums_RK: FloatArray) -> FloatArray:
    try:
        return metric.aggregate(dict(zip(keys, sums_RK.T, strict=True)))
    except OF_FUNCTIONS as error:
        raise HalkaError(f"{metric.name}, of the counts {keys}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, TypeError | ValueError) else repr(error)  # a KeyError is its key


def _interval(metric: Metric, keys: list[Any], table: FloatArray, drawn: FloatArray, n: int) -> Score:
    value = float(_aggregated(metric, keys, table.sum(axis=0, keepdims=True))[0])
    if not math.isfinite(value):
        raise HalkaError(f"{metric.name} is undefined here: {metric.meaning}, and no item has any to count")
    values = _aggregated(metric, keys, drawn)
    values = values[np.isfinite(values)]  # of few items that count, a drawn set may have none
    low, high = map(float, np.quantile(values, [0.025, 0.975])) if values.size else (value, value)
    if math.isclose(low, high, abs_tol=1e-12):
        counted = max(1, int(np.count_nonzero(table.any(axis=1))))
        unseen = 1 - 0.05 ** (1 / counted)
        floor, ceiling = (end if math.isfinite(end) else value for end in metric.range)
        low, high = value - unseen * (value - floor), value + unseen * (ceiling - value)
    return Score(value, min(low, value), max(high, value), n)
