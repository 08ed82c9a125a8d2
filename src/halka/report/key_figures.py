"""A comparison's key figures: the best light method against full fine-tuning."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from halka.report.intervals import Spread
from halka.report.rows import Row
from halka.report.summary import Summary
from halka.report.units import count, percent, signed, size, times


@dataclass(frozen=True)
class Card:
    """One key figure: its title, its value, and a note that compares it."""

    title: str
    value: str
    note: str


def key_figures(summary: Summary) -> tuple[Card, ...]:
    """Key figures of the best light method against full fine-tuning, or of full fine-tuning if there is no light one.

    Figures that were not measured are left out; without a scored method there are none.
    """
    scored = [row for row in summary.rows if not row.is_base and summary.primary.name in row.scores]
    row = next((row for row in scored if row.is_light), scored[0] if scored else None)
    if row is None:
        return ()
    full = summary.full if summary.full is not row else None
    makers = (_score_card, _trained, _memory, _disk, _tasks, _speed_card, _latency, _forgetting)
    return tuple(card for make in makers if (card := make(summary, row, full)) is not None)


def _score_card(summary: Summary, row: Row, full: Row | None) -> Card:
    metric, score = summary.primary, row.scores[summary.primary.name]
    notes = [row.label]
    if score.low is not None and score.high is not None:
        notes.append(f"95 % interval {metric.text(score.low)} to {metric.text(score.high)}")
    if full and metric.name in full.scores:
        notes.append(f"full {metric.text(full.scores[metric.name].value)}")
    base = summary.base_row
    if base and metric.name in base.scores:
        notes.append(f"base {metric.text(base.scores[metric.name].value)}")
    return Card(metric.title.capitalize(), metric.text(score.value), "; ".join(notes))


def _trained(_: Summary, row: Row, full: Row | None) -> Card | None:
    if not row.trainable:
        return None
    share = f"{percent(row.share)} of the model" if row.share is not None else ""
    against = f"full trains {count(full.trainable)}" if full and full.trainable else ""
    return Card("Trained parameters", count(row.trainable), _joined(share, against))


def _memory(_: Summary, row: Row, full: Row | None) -> Card | None:
    if row.beyond is None:
        return None
    against = ""
    if full and full.beyond and full.beyond.mean:
        against = f"{percent(row.beyond.mean / full.beyond.mean)} of full's {size(full.beyond.mean)}"
    peak = f"peak {size(row.peak.mean)}" if row.peak else ""
    return Card("Memory beyond the base", size(row.beyond.mean), _joined(against, peak))


def _disk(_: Summary, row: Row, full: Row | None) -> Card | None:
    if not row.adapter_bytes:
        return None
    against = f"a full copy is {size(full.adapter_bytes)}" if full and full.adapter_bytes else ""
    return Card("One adapter on disk" if row.is_light else "One copy on disk", size(row.adapter_bytes), against)


def _tasks(_: Summary, row: Row, full: Row | None) -> Card | None:
    need = row.storage.get("100")
    if not need:
        return None
    whole = full.storage.get("100") if full else None
    against = f"full: {size(whole)}, {times(whole / need)} times as much" if whole else "the base included"
    return Card("100 tasks on disk", size(need), against)


def _speed_card(_: Summary, row: Row, full: Row | None) -> Card | None:
    speed = row.tokens_per_second
    if speed is None:
        return None
    against = ""
    if full and full.tokens_per_second and full.tokens_per_second.mean:
        other = full.tokens_per_second.mean
        against = f"{speed.mean / other:.2f} times full's {other:.0f}"
    return Card("Training speed", f"{speed.mean:.0f} tokens/s", _joined(against, _runs(speed, "{:.0f}".format)))


def _latency(_: Summary, row: Row, __: Row | None) -> Card | None:
    if row.latency is None or not row.is_light:
        return None
    return Card("Added latency", signed(row.latency.mean), _joined("a generated token", _runs(row.latency, signed)))


def _forgetting(_: Summary, row: Row, full: Row | None) -> Card | None:
    if row.forgetting is None:
        return None
    against = f"full {signed(full.forgetting.mean)}" if full and full.forgetting else ""
    return Card("Forgetting", signed(row.forgetting.mean), _joined("perplexity on other text", against))


def _runs(figures: Spread, text: Callable[[float], str]) -> str:
    return f"runs {text(figures.low)} to {text(figures.high)}" if figures.n > 1 else "one run"


def _joined(*notes: str) -> str:
    return "; ".join(note for note in notes if note)
