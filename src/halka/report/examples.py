"""The same test items answered by every method, side by side, where the measurements carry samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from halka.report.rows import Measurement, Row, counting_runs, label_of, number
from halka.report.units import listed

SHOWN, LENGTH = 8, 700  # items; characters of one text


@dataclass(frozen=True)
class Prediction:
    """One method's answer, and whether it is a reference, white space around it aside."""

    label: str
    text: str
    matches: bool


@dataclass(frozen=True)
class Item:
    """One prompt, its references, and the answers in the rows' order."""

    prompt: str
    references: tuple[str, ...]
    predictions: tuple[Prediction, ...]


def side_by_side(rows: Sequence[Row], measurements: Sequence[Measurement]) -> tuple[Item, ...]:
    """The first items that any method has samples of; each method speaks by its lowest finished seed."""
    prompts: dict[str, tuple[str, ...]] = {}
    answers: dict[tuple[str, str], str] = {}
    for row in rows:
        runs, _ = counting_runs([run for run in measurements if label_of(run) == row.label])
        speaking = [run for run in runs if _samples(run)]
        if not speaking:
            continue
        for sample in _samples(min(speaking, key=lambda run: number(run, "seed") or 0.0)):
            prompt = _text(sample.get("prompt"))
            prompts.setdefault(prompt, _references(sample.get("reference")))
            answers[prompt, row.label] = _text(sample.get("prediction"))
    return tuple(
        Item(
            _short(prompt),
            tuple(_short(reference) for reference in references),
            tuple(
                Prediction(
                    row.label,
                    _short(answer),
                    answer.strip() in {reference.strip() for reference in references},
                )
                for row in rows
                if (answer := answers.get((prompt, row.label))) is not None
            ),
        )
        for prompt, references in list(prompts.items())[:SHOWN]
    )


def tally(items: Sequence[Item]) -> str:
    """How many of the shown answers are a reference, in a sentence."""
    right: dict[str, list[bool]] = {}
    for item in items:
        for prediction in item.predictions:
            right.setdefault(prediction.label, []).append(prediction.matches)
    if not right:
        return ""
    said = listed([f"{label} {sum(matches)} of {len(matches)}" for label, matches in right.items()])
    return (
        f"Equal to a reference, letter for letter: {said}. So few items illustrate; the scores above are the evidence."
    )


def _samples(run: Measurement) -> list[Mapping[str, Any]]:
    found = run.get("samples")
    return [sample for sample in found if isinstance(sample, Mapping)] if isinstance(found, list) else []


def _references(value: Any) -> tuple[str, ...]:
    return tuple(_text(v) for v in value) if isinstance(value, list | tuple) else (_text(value),)


def _text(value: Any) -> str:
    """A text, or a conversation (a list of `{"role", "content"}`) as text."""
    if isinstance(value, list):
        turns = [turn if isinstance(turn, Mapping) else {"content": turn} for turn in value]
        return "\n".join(
            f"{turn['role']}: {turn.get('content', '')}" if "role" in turn else str(turn.get("content", ""))
            for turn in turns
        )
    return "" if value is None else str(value)


def _short(text: str) -> str:
    return text if len(text) <= LENGTH else f"{text[:LENGTH].rstrip()} …"
