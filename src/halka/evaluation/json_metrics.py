"""Metrics for answers that should be JSON: valid, equal, and right field by field; and for calls of tools."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from halka.data.metric import Counts, Metric, ratio
from halka.data.tools import calls_in
from halka.util.errors import HalkaError

_MISSING = object()


def json_field(path: str) -> Metric:
    """Accuracy of the value at a dotted path, such as "slots.city", over the items whose reference has it."""

    def counts(prediction: str, references: Sequence[str]) -> Counts:
        predicted = _at(_parse(prediction), path)
        values = [_at(_parse_reference(reference), path) for reference in references]
        gold = [value for value in values if value is not _MISSING]
        return {"right": float(predicted in gold), "items": float(bool(gold))}

    return Metric(
        f"json_field:{path}",
        f"share of answers whose JSON has the reference's value at {path!r}",
        counts,
        lambda sums: ratio(sums["right"], sums["items"]),
    )


def json_field_f1(path: str = "") -> Metric:
    """Micro-F1 over the leaves below a dotted path, or of the whole; 1 if there are neither gold nor predicted ones.

    Where a reference such as {} has no leaves, an answer that is no JSON counts as one that is wrong. Undefined where
    no reference has the path.
    """
    return Metric(
        f"json_field_f1:{path}" if path else "json_field_f1",
        f"micro-F1 over the (path, value) pairs of the JSON{f' under {path!r}' if path else ''}",
        _leaf_counts(path),
        lambda sums: np.where(
            sums["items"] > 0, ratio(2 * sums["hit"], sums["predicted"] + sums["gold"], empty=1.0), np.nan
        ),
    )


def is_json_object(text: str) -> bool:
    """Whether the whole text is one JSON object."""
    return isinstance(_parse(text), dict)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object with its keys in Unicode's composed form. Raises ValueError for a key that stands in it twice."""
    value = {unicodedata.normalize("NFC", key): child for key, child in pairs}
    if len(value) < len(pairs):
        raise ValueError("a key stands in an object twice")
    return value


_DECODER = json.JSONDecoder(parse_constant=_refuse, object_pairs_hook=_object)
"""Python's own would accept NaN and Infinity, and keys that stand twice."""


def _parse(text: str) -> Any:
    """The whole text as a JSON object or array in comparable form, else `_MISSING`."""
    try:
        value = _DECODER.decode(text)
        return _comparable(value) if isinstance(value, dict | list) else _MISSING
    except (ValueError, RecursionError):
        return _MISSING


def _comparable(value: Any) -> Any:
    """Every scalar as its JSON text, so that true is not 1 and "2" is not 2, but 2.0 is 2."""
    if isinstance(value, dict):
        return {key: _comparable(child) for key, child in value.items()}
    if isinstance(value, list):
        return [_comparable(child) for child in value]
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return unicodedata.normalize("NFC", json.dumps(value, ensure_ascii=False))


def _parse_reference(text: str) -> Any:
    value = _parse(text)
    if value is _MISSING:
        raise HalkaError(f"the reference is not a JSON object or array, or has a key twice: {text[:60]!r}")
    return value


def _at(value: Any, path: str) -> Any:
    for key in unicodedata.normalize("NFC", path).split("."):
        if not isinstance(value, dict) or key not in value:
            return _MISSING
        value = value[key]
    return value


def _leaves(value: Any) -> set[tuple[tuple[str | int, ...], str]]:
    """Every (path, value) below a value; in an array the path is the index."""
    leaves, waiting = set(), [((), value)]
    while waiting:
        path, value = waiting.pop()
        if isinstance(value, dict | list):
            children = value.items() if isinstance(value, dict) else enumerate(value)
            waiting += [((*path, key), child) for key, child in children]
        elif value is not _MISSING:
            leaves.add((path, value))
    return leaves


def _leaf_counts(path: str) -> Callable[[str, Sequence[str]], Counts]:
    """Counts of predicted and gold leaves and of both, against the reference with the highest F1."""

    def within(value: Any) -> Any:
        return _at(value, path) if path else value

    def counts(prediction: str, references: Sequence[str]) -> Counts:
        answer = _parse(prediction)
        predicted = _leaves(within(answer))
        golds = [within(_parse_reference(reference)) for reference in references]
        options = [*map(_leaves, golds)]
        gold = max(options, key=lambda gold: 2 * len(predicted & gold) / max(1, len(predicted) + len(gold)))
        items = float(any(value is not _MISSING for value in golds))
        count = 1 if answer is _MISSING and not gold else len(predicted)
        return {"hit": len(predicted & gold), "predicted": count, "gold": len(gold), "items": items}

    return counts


def _gold_counts(prediction: str, references: Sequence[str]) -> Counts:
    counts = _leaf_counts("")(prediction, references)
    return {"hit": counts["hit"], "gold": counts["gold"]}


def _valid(prediction: str, references: Sequence[str]) -> float:
    return float(_parse(prediction) is not _MISSING)


def _exact(prediction: str, references: Sequence[str]) -> float:
    return float(_parse(prediction) in map(_parse_reference, references))


def _calls(text: str) -> list[str]:
    """The calls in comparable form, in one order whatever theirs is: an answer's calls are made side by side.

    Arguments that are nested too deep to be compared make the text one call, as it is written.
    """
    try:
        calls = ([name, _comparable(arguments)] for name, arguments in calls_in(text, _DECODER))
        return sorted(json.dumps(call, sort_keys=True) for call in calls)
    except RecursionError:
        return [text]


def _calls_of_reference(text: str) -> list[str]:
    calls = _calls(text)
    if len(calls) < len(calls_in(text)):
        raise HalkaError(f"a call of the reference has a key twice, or a number that is none: {text[:60]!r}")
    return calls


def _call_counts(prediction: str, references: Sequence[str]) -> Counts:
    predicted, accepted = _calls(prediction), [*map(_calls_of_reference, references)]
    return {"right": float(predicted in accepted), "items": 1.0, "calls": float(any(accepted))}


JSON_METRICS: tuple[Metric, ...] = (
    Metric.mean("json_valid", "share of answers that are one JSON object or array", _valid),
    Metric.mean("json_exact", "share of answers whose JSON equals a reference's", _exact),
    json_field_f1(),
    Metric(
        "json_field_accuracy",
        "share of the references' (path, value) pairs that the JSON has",
        _gold_counts,
        lambda sums: ratio(sums["hit"], sums["gold"]),
    ),
    Metric(
        "calls_exact",
        "share of answers that call the tools that a reference calls, in JSON and any order, or none where it has none",
        _call_counts,
        lambda sums: np.where(sums["calls"] > 0, ratio(sums["right"], sums["items"]), np.nan),
    ),
)
