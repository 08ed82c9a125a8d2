"""How good are these answers: the metrics by name, and `score` with 95 % bootstrap intervals (Efron, 1979)."""

from __future__ import annotations

import difflib
import math
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halka.data.metric import Counts, Metric, Sums, ratio
from halka.evaluation.json_metrics import JSON_METRICS, json_field, json_field_f1
from halka.evaluation.tag_metrics import TAG_METRICS
from halka.util.errors import HalkaError

Array = NDArray[np.float64]


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
    """Scores `predictions[i]` against all the accepted answers `references[i]`; one `Score` by metric name.

    The interval is the percentile bootstrap over items: whole sets of n items are drawn with replacement
    and scored exactly, from sums of per-item counts. The draws depend on n and `seed` alone, so methods
    scored on the same items meet the same draws. Where every draw gives the same value (all right, all
    wrong, one item), the bootstrap cannot see what a larger set would show; the interval then comes from
    the rule of three: with 95 % confidence, less than 1 - 0.05^(1/n) of all items differ from those seen.

    Raises ValueError for unknown metrics, sizes that differ, no items, an item without references, texts
    that are not texts, and a score that these items leave undefined.
    """
    _check(predictions, references, resamples)
    chosen = [find_metric(metric) for metric in metrics]
    tables = [_table(metric, predictions, references) for metric in chosen]
    sums = _resample([table for _, table in tables], resamples, seed)
    n = len(predictions)
    return {
        metric.name: _interval(metric, keys, table, drawn, n)
        for metric, (keys, table), drawn in zip(chosen, tables, sums, strict=True)
    }


def mean_of(values: Sequence[float], seed: int = 0, resamples: int = 1000) -> Score:
    """The mean of values from 0 to 1, one an item, with its interval as `score` has it. Raises ValueError for none."""
    mean = Metric.mean("mean", "mean of what the items are worth", lambda value, _: float(value))
    return score([repr(float(value)) for value in values], [[""]] * len(values), [mean], seed, resamples)["mean"]


def find_metric(name: str | Metric) -> Metric:
    """The metric of that name; `family:path` builds one (see `FAMILIES`); a `Metric` is returned as it is.

    Raises ValueError with the choices for a name that nothing answers to.
    """
    if isinstance(name, Metric):
        return name
    if name in METRICS:
        return METRICS[name]
    family, colon, path = name.partition(":")
    if colon and path and family in FAMILIES:
        return FAMILIES[family](path)
    choices = [*METRICS, *(f"{family}:<path>" for family in FAMILIES)]
    near = difflib.get_close_matches(name, choices, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    raise HalkaError(f"unknown metric {name!r}{hint}; choose from {', '.join(choices)}")


# ---- counts, draws, intervals ----


def _check(predictions: Sequence[str], references: Sequence[Sequence[str]], resamples: int) -> None:
    if len(predictions) != len(references):
        raise HalkaError(f"{len(predictions)} predictions for {len(references)} lists of references")
    if not predictions:
        raise HalkaError("nothing to score: no predictions")
    if resamples < 1:
        raise HalkaError(f"resamples is {resamples}; an interval needs at least 1, and 1000 is usual")
    for i, (prediction, accepted) in enumerate(zip(predictions, references, strict=True)):
        if isinstance(accepted, str):
            raise HalkaError(f"references of item {i} are one text; give a list of texts, such as [text]")
        if len(accepted) == 0:
            raise HalkaError(f"item {i} has no reference; give at least one accepted answer")
        for text in (prediction, *accepted):
            if not isinstance(text, str):
                raise HalkaError(f"item {i} holds {text!r} where a text is needed")


def _table(metric: Metric, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[list[Any], Array]:
    """The names of the counts (K) and the counts of every item (N, K)."""
    rows: list[Counts] = []
    for i, (prediction, accepted) in enumerate(zip(predictions, references, strict=True)):
        try:
            row = metric.per_item(prediction, accepted)
        except ValueError as error:
            raise HalkaError(f"{metric.name}, item {i}: {error}") from error
        if not all(math.isfinite(count) for count in row.values()):
            raise HalkaError(f"{metric.name}, item {i}: counts are not finite: {dict(row)}")
        rows.append(row)
    column = {key: k for k, key in enumerate(dict.fromkeys(key for row in rows for key in row))}
    table = np.zeros((len(rows), len(column)))
    for i, row in enumerate(rows):
        for key, count in row.items():
            table[i, column[key]] = count
    return list(column), table


def _resample(tables: Sequence[Array], resamples: int, seed: int) -> list[Array]:
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


def _interval(metric: Metric, keys: list[Any], table: Array, drawn: Array, n: int) -> Score:
    def aggregate(sums_RK: Array) -> Array:
        return metric.aggregate(dict(zip(keys, sums_RK.T, strict=True)))

    value = float(aggregate(table.sum(axis=0, keepdims=True))[0])
    if not math.isfinite(value):
        raise HalkaError(f"{metric.name} is undefined here: {metric.meaning}, and no item has any to count")
    values = aggregate(drawn)
    low, high = (float(x) for x in np.nanquantile(values, [0.025, 0.975]))
    if math.isclose(low, high, abs_tol=1e-12):
        unseen = 1 - 0.05 ** (1 / n)
        floor, ceiling = (end if math.isfinite(end) else value for end in metric.range)
        low, high = value - unseen * (value - floor), value + unseen * (ceiling - value)
    return Score(value, min(low, value), max(high, value), n)


# ---- texts ----


def _plain(text: str) -> str:
    """Without white space at the ends, in Unicode's composed form (Bengali and others have two spellings)."""
    return unicodedata.normalize("NFC", text).strip()


def _squad_words(text: str) -> list[str]:
    """SQuAD's normalisation (Rajpurkar et al., 2016), with every script's punctuation: no case, no articles."""
    kept = "".join(
        c for c in _plain(text).lower() if c not in string.punctuation and not unicodedata.category(c).startswith("P")
    )
    return [word for word in kept.split() if word not in ("a", "an", "the")]


def as_label(text: str) -> str:
    """A class name as compared: no case, single spaces, no quotes or full stop around it."""
    return " ".join(_plain(text).casefold().split()).strip(" .,;:!?\"'`*।")


def _exact(prediction: str, references: Sequence[str]) -> float:
    return float(_plain(prediction) in map(_plain, references))


def _squad_exact(prediction: str, references: Sequence[str]) -> float:
    return float(_squad_words(prediction) in map(_squad_words, references))


def _token_f1(prediction: str, references: Sequence[str]) -> float:
    said = Counter(_squad_words(prediction))

    def f1(reference: str) -> float:
        true = Counter(_squad_words(reference))
        if not said or not true:
            return float(said == true)
        return 2 * (said & true).total() / (said.total() + true.total())

    return max(map(f1, references))


def _lines(prediction: str, references: Sequence[str]) -> float:
    def lines(text: str) -> list[str]:
        return [line.strip() for line in _plain(text).splitlines() if line.strip()]

    said = lines(prediction)

    def share(true: list[str]) -> float:
        same = sum(a == b for a, b in zip(said, true, strict=False))
        return same / max(len(said), len(true), 1) if said or true else 1.0

    return max(share(lines(reference)) for reference in references)


def _accuracy(prediction: str, references: Sequence[str]) -> float:
    return float(as_label(prediction) in map(as_label, references))


def _class_counts(prediction: str, references: Sequence[str]) -> Counts:
    """Hits, predictions and truths by class; of several accepted classes the predicted one, else the first."""
    said, accepted = as_label(prediction), [as_label(reference) for reference in references]
    true = said if said in accepted else accepted[0]
    return {("hit", true): float(said == true), ("said", said): 1.0, ("true", true): 1.0}


def _macro_f1(sums: Sums) -> Array:
    """The mean F1 over the classes that the references of each draw hold."""
    total: Any = 0.0
    classes: Any = 0.0
    for kind, label in [key for key in sums if isinstance(key, tuple)]:
        if kind == "true":
            true = sums["true", label]
            f1 = ratio(2 * sums["hit", label], true + sums.get(("said", label), 0.0), empty=0.0)
            total, classes = total + f1 * (true > 0), classes + (true > 0)
    return ratio(total, classes)


# ---- generated texts: sacrebleu's and rouge-score's own counts and formulas ----


@cache
def _sacrebleu(name: str) -> Any:
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    return BLEU(force=True, effective_order=True) if name == "bleu" else CHRF()


def _bleu_counts(prediction: str, references: Sequence[str]) -> Counts:
    one = _sacrebleu("bleu").sentence_score(prediction, list(references))
    return dict(enumerate([one.sys_len, one.ref_len, *one.counts, *one.totals]))


def _bleu(sums: Sums) -> Array:
    bleu = _sacrebleu("bleu")

    def of(sums_K: Array) -> float:
        said, true, *ngrams = (round(x) for x in sums_K)
        return bleu.compute_bleu(ngrams[:4], ngrams[4:], said, true, smooth_method="exp").score

    return np.array([of(row) for row in np.stack(list(sums.values()), axis=1)])


def _chrf_counts(prediction: str, references: Sequence[str]) -> Counts:
    counts = _sacrebleu("chrf")._extract_corpus_statistics([prediction], [[text] for text in references])
    return dict(enumerate(counts[0]))


def _chrf(sums: Sums) -> Array:
    of = _sacrebleu("chrf")._compute_f_score
    return np.array([of(list(row)) for row in np.stack(list(sums.values()), axis=1)])


class _Words:
    """rouge-score's tokenizer, which drops all but a-z and 0-9, extended to the letters of every script."""

    def tokenize(self, text: str) -> list[str]:
        return "".join(c if unicodedata.category(c)[0] in "LMN" else " " for c in _plain(text).lower()).split()


@cache
def _rouge() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], tokenizer=_Words())


def _rouge_l(prediction: str, references: Sequence[str]) -> float:
    return max(_rouge().score(reference, prediction)["rougeL"].fmeasure for reference in references)


# ---- the names ----

FAMILIES: dict[str, Callable[[str], Metric]] = {"json_field": json_field, "json_field_f1": json_field_f1}

METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in [
        Metric.mean("exact_match", "share of answers equal to a reference letter for letter", _exact),
        Metric.mean("squad_exact", "share equal to a reference but for case, punctuation, articles", _squad_exact),
        Metric.mean("token_f1", "F1 of the words shared with the best reference, SQuAD's way", _token_f1),
        Metric.mean("line_accuracy", "share of lines equal to the reference's line at that place", _lines),
        Metric.mean("accuracy", "share of answers that name the right class", _accuracy),
        Metric("macro_f1", "mean over the references' classes of each class's F1", _class_counts, _macro_f1),
        Metric("bleu", "sacrebleu's corpus BLEU, 13a tokens", _bleu_counts, _bleu, (0.0, 100.0)),
        Metric("chrf", "sacrebleu's corpus chrF2", _chrf_counts, _chrf, (0.0, 100.0)),
        Metric.mean("rouge_l", "ROUGE-L F1 with the best reference", _rouge_l),
        *TAG_METRICS,
        *JSON_METRICS,
    ]
}
