"""Findings of a comparison: the headline, and a sentence for every plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median

from halka.report.intervals import apart, gap
from halka.report.rows import MetricInfo, Row
from halka.report.units import bounds, count, learning_rate, listed, percent, signed, size, times
from halka.util.text import plural

FULL = "full fine-tuning"
TASKS = 100  # for which the storage is compared
SEEDS_UNKNOWN = "more than the test items explain; other seeds are not known"


def headline(rows: Sequence[Row], metric: MetricInfo, finished: int, failed: int) -> str:
    """The result in one sentence; before there is a result, the state of the runs."""
    base = next((row for row in rows if row.is_base and metric.name in row.scores), None)
    full = next((row for row in rows if row.is_full and metric.name in row.scores), None)
    light = [row for row in rows if row.is_light and metric.name in row.scores]
    if light and full:
        return _against_full(light[0], full, metric)
    best = light[0] if light else full
    if best is not None:
        among = f", the best of {len(light)} methods" if len(light) > 1 else ""
        against = f", against {score_text(base, metric)} without tuning" if base else ""
        return f"{best.label} scores {score_text(best, metric)} in {metric.title}{among}{against}."
    tried = [row for row in rows if not row.is_base and row.runs]
    lost = f"; {plural(failed, 'run')} failed" if failed else ""
    swept = [row for row in tried if row.lr is not None and len(row.seeds) > 1]
    if swept:
        rates = listed([f"{learning_rate(row.lr)} for {row.label}" for row in swept if row.lr is not None])
        return f"No final runs; of the learning rates tried the best are {rates}, as the mean over seeds{lost}."
    if tried:
        return f"No final run so far: {plural(finished, 'run')} done, for {_names(tried)}{lost}."
    if base:
        return f"Only the base has been scored, at {score_text(base, metric)} in {metric.title}{lost}."
    return f"Nothing has finished yet{lost}." if failed else "Nothing has been measured yet."


def _against_full(row: Row, full: Row, metric: MetricInfo) -> str:
    mine, theirs = row.scores[metric.name], full.scores[metric.name]
    if row.relative is None:
        finding = (
            f"{row.label} scores {score_text(row, metric)} in {metric.title} and {FULL} {score_text(full, metric)}"
        )
    elif metric.higher_is_better:
        finding = f"{row.label} reaches {percent(row.relative)}{_bracket(row)} of {FULL}'s {metric.title}"
    else:
        finding = f"{row.label}'s {metric.title} is {row.relative:.2f}{_bracket(row, 2)} times that of {FULL}"
    costs = []
    if row.trainable and full.trainable:
        costs.append(f"{percent(row.trainable / full.trainable)} of its trained parameters")
    if row.beyond and full.beyond and full.beyond.mean:
        costs.append(f"{percent(row.beyond.mean / full.beyond.mean)} of its memory beyond the base")
    cost = f", with {listed(costs)}" if costs else ""
    between = gap(mine, theirs)
    if between is None:
        return f"{finding}{cost}."
    if not apart(mine, theirs):
        return f"{finding}{cost}; the two scores cannot be told apart here."
    ahead = "ahead" if metric.sign(between.value) > 0 else "behind"
    unknown = row.one_seed(metric.name) or full.one_seed(metric.name)
    explained = SEEDS_UNKNOWN if unknown else "more than chance explains"
    return f"{finding}{cost}; it is {ahead} by {metric.gap(between.value)}, {explained}."


def quality_takeaway(rows: Sequence[Row], metric: MetricInfo) -> str:
    scored = [row for row in rows if not row.is_base and metric.name in row.scores]
    best = max(scored, key=lambda row: metric.sign(row.scores[metric.name].value))
    level = [
        row
        for row in scored
        if row.trainable is not None and not apart(row.scores[metric.name], best.scores[metric.name])
    ]
    if not level:
        return f"{best.label} scores best, {score_text(best, metric)}."
    lightest = min(level, key=lambda row: row.trainable or 0.0)
    share = f" ({percent(lightest.share)} of the model)" if lightest.share is not None else ""
    trained = f"{count(lightest.trainable or 0)} trained parameters{share}"
    if lightest is best:
        behind = [row for row in scored if row is not best and (row.trainable or 0) < (best.trainable or 0)]
        unknown = f" by {SEEDS_UNKNOWN}" if any(row.one_seed(metric.name) for row in (best, *behind)) else ""
        rest = f"; {'everything' if len(behind) > 1 else behind[0].label} lighter is behind{unknown}" if behind else ""
        return f"{best.label} scores best, {score_text(best, metric)}, with {trained}{rest}."
    return f"{lightest.label}, with {trained}, is the lightest that cannot be told apart from the best, {best.label}."


def memory_takeaway(rows: Sequence[Row]) -> str:
    shown = [row for row in rows if not row.is_base and row.memory]
    names = {"optimizer": "optimiser states"}
    parts = []
    full = next((row for row in shown if row.is_full), None)
    light = next((row for row in shown if row.is_light), None)
    for row in (full, light):
        if row is not None:
            part, largest = max(row.memory.items(), key=lambda item: item[1])
            total = sum(row.memory.values())
            share = f", {percent(largest / total)}" if total else ""
            parts.append(f"{row.label} spends most on {names.get(part, part)} ({size(largest)}{share})")
    errors = [abs(row.memory_error) for row in shown if row.memory_error is not None]
    if errors:
        ways = f"predictions are off by {percent(median(errors))} at the median, {percent(max(errors))} at most"
        return f"{listed(parts)}; {ways}."
    return f"{listed(parts)}."


def curves_takeaway(lowest: Mapping[str, float], falling: Sequence[str]) -> str:
    """By label, the lowest loss of each curve, as a mean over its runs; the labels of those that were falling."""
    shown = sorted((loss, label) for label, loss in lowest.items())
    if not shown:
        return "Validation loss during training."
    (lowest_loss, first), (highest_loss, last) = shown[0], shown[-1]
    sentence = f"Lowest validation loss, mean over runs: {lowest_loss:.3f} ({first})"
    if len(shown) > 1:
        sentence += f" to {highest_loss:.3f} ({last})"
    if falling:
        sentence += f"; {listed(falling)} {'was' if len(falling) == 1 else 'were'} still improving at the end"
    return f"{sentence}."


def storage_takeaway(rows: Sequence[Row], stored: float | None) -> str:
    light = [row for row in rows if row.is_light and str(TASKS) in row.storage]
    full = next((row for row in rows if row.is_full and row.storage), None)
    if not light:
        return f"{TASKS} fully tuned copies need {size(full.storage[str(TASKS)])}." if full else ""
    row = light[0]
    need = row.storage[str(TASKS)]
    if full is None or not full.adapter_bytes:
        return f"{TASKS} tasks with {row.label} need {size(need)}, the base included."
    whole = full.storage[str(TASKS)]
    finding = (
        f"{TASKS} tasks need {size(need)} with {row.label}, the base included, and {size(whole)} as full copies: "
        f"{times(whole / need)} times as much"
    )
    saved = full.adapter_bytes - (row.adapter_bytes or 0.0)
    if stored is None or saved <= 0:
        return f"{finding}."
    return f"{finding}. An adapter a task pays from {int(stored / saved) + 1} tasks on."


def search_takeaway(rows: Sequence[Row]) -> str:
    searched = [row for row in rows if row.lr is not None and len(row.lrs) > 1]
    if not searched:
        return "Each method was run at one learning rate."
    edge = [row for row in searched if row.at_edge]
    if not edge and len(searched) == 1:
        return "The chosen learning rate lies inside the range that was tried, not at its edge."
    if not edge:
        return "Every chosen learning rate lies inside the range that was tried, not at its edge."
    inside = len(searched) - len(edge)
    ends = listed([f"{row.label} ({learning_rate(row.lr)})" for row in edge if row.lr is not None])
    kept = f"; the other {inside} chose inside" if inside else ""
    return f"At the edge of what was tried: {ends}{kept}."


def speed_takeaway(rows: Sequence[Row]) -> str:
    timed = [row for row in rows if row.tokens_per_second is not None and not row.is_base]
    full = next((row for row in timed if row.is_full), None)
    light = [row for row in timed if row.is_light]
    if full is None or not light or full.tokens_per_second is None:
        fastest = max(timed, key=_speed)
        if len(timed) == 1:
            return f"{fastest.label} trains at {_speed(fastest):.0f} tokens a second."
        return f"{fastest.label} trains fastest, {_speed(fastest):.0f} tokens a second."
    factors = sorted((_speed(row) / _speed(full), row.label) for row in light)
    top, bottom = factors[-1], factors[0]
    if len(factors) == 1:
        return f"{top[1]} trains at {top[0]:.2f} times full fine-tuning's speed."
    return (
        f"Against full fine-tuning's {_speed(full):.0f} tokens a second: from {bottom[0]:.2f} times ({bottom[1]}) to "
        f"{top[0]:.2f} times ({top[1]})."
    )


def forgetting_takeaway(rows: Sequence[Row], text: str) -> str:
    changes = sorted(
        ((row.forgetting.mean, row.label) for row in rows if row.forgetting is not None and not row.is_base),
        reverse=True,
    )
    on = f" on the text “{text}”" if text else ""
    if len(changes) == 1:
        return f"{changes[0][1]} changes perplexity{on} by {signed(changes[0][0])}."
    return (
        f"In the mean over runs perplexity{on} changes by {signed(changes[-1][0])} ({changes[-1][1]}) to "
        f"{signed(changes[0][0])} ({changes[0][1]})."
    )


def score_text(row: Row, metric: MetricInfo) -> str:
    """The score and, where it has one, its interval: 61.7 % [50–73]."""
    score = row.scores[metric.name]
    if score.low is None or score.high is None:
        return metric.text(score.value)
    return f"{metric.text(score.value)} {bounds(score.low, score.high, None if metric.is_share else 3)}"


def _bracket(row: Row, places: int | None = None) -> str:
    interval = row.relative_interval
    return f" {bounds(interval.low, interval.high, places)}" if interval else ""


def _speed(row: Row) -> float:
    return row.tokens_per_second.mean if row.tokens_per_second else 0.0


def _names(rows: Sequence[Row]) -> str:
    return listed([row.label for row in rows])
