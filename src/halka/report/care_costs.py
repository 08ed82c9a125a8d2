"""Reasons to read the costs with care: unequal budgets, noisy timings, predictions that miss, mixed origins."""

from __future__ import annotations

from statistics import median

from halka.report.evidence import Evidence
from halka.report.intervals import spread
from halka.report.rows import entry, number
from halka.report.units import listed, percent
from halka.util.text import one_line


def unequal_budgets(evidence: Evidence) -> list[str]:
    sentences = []
    for noun, of in (("steps", lambda row: row.steps), ("examples", lambda row: row.examples)):
        groups: dict[int, list[str]] = {}
        for row in evidence.scored:
            if (amount := of(row)) is not None:
                groups.setdefault(amount, []).append(row.label)
        if len(groups) > 1:
            common = max(groups, key=lambda amount: len(groups[amount]))
            others = [f"{listed(names)} {amount}" for amount, names in sorted(groups.items()) if amount != common]
            rest = "each" if len(groups[common]) == 1 else "the others"
            rest = listed(groups[common]) if len(groups[common]) == 1 else rest
            sentences.append(f"The {noun} of training differ: {'; '.join(others)}; {rest} {common}.")
    return sentences


def noisy_timings(evidence: Evidence) -> list[str]:
    spreads = {
        row.label: (speed.high - speed.low) / speed.mean
        for row in evidence.tuned
        if (speed := row.tokens_per_second) is not None and speed.n > 1 and speed.mean > 0
    }
    if not spreads:
        return []
    worst = max(spreads, key=lambda label: spreads[label])
    if spreads[worst] < 0.05:
        return []
    return [
        f"Training speed is noisy: the runs of {worst} differ by {percent(spreads[worst])} among themselves (median "
        f"over the methods: {percent(median(spreads.values()))}), so smaller differences between methods mean nothing."
    ]


def noisy_latency(evidence: Evidence) -> list[str]:
    base = spread(number(run, "latency", "base_ms_per_token") for row in evidence.rows for run in evidence.used(row))
    if base is None or base.n < 2 or base.mean <= 0:
        return []
    noise = (base.high - base.low) / base.mean
    if noise < 0.03:
        return []
    inside = [
        row.label
        for row in evidence.tuned
        if row.is_light and row.latency is not None and abs(row.latency.mean) < noise
    ]
    which = f" That goes for {listed(inside)}." if inside else ""
    return [
        f"The same base took {base.low:.1f} to {base.high:.1f} ms a token over {base.n} runs ({percent(noise)} apart): "
        f"added latency below that is not distinguishable from none.{which}"
    ]


def memory_off_prediction(evidence: Evidence) -> list[str]:
    off = {}
    for row in evidence.tuned:
        parts = row.memory.keys() & row.predicted.keys()
        measured, predicted = (sum(of[part] for part in parts) for of in (row.memory, row.predicted))
        if measured > 0 and abs(predicted / measured - 1) > 0.25:
            off[row.label] = predicted / measured - 1
    if not off:
        return []
    worst = max(off, key=lambda label: abs(off[label]))
    direction = "above" if off[worst] > 0 else "below"
    return [
        f"Predicted memory is off by more than a quarter for {listed(list(off))}; most for {worst}, "
        f"{percent(abs(off[worst]))} {direction} what was measured."
    ]


def mixed_origins(evidence: Evidence) -> list[str]:
    used = [run for row in evidence.rows for run in evidence.used(row)]
    origins = {
        "commits": {one_line(run["commit"]) for run in used if run.get("commit")},
        "machines": {
            f"{one_line(entry(run, 'machine', 'cpu') or '?')}, {one_line(entry(run, 'machine', 'device') or '?')}"
            for run in used
            if run.get("machine")
        },
        "torch versions": {one_line(v) for run in used if (v := entry(run, "versions", "torch"))},
    }
    effects = {
        "commits": "a difference may come from the code",
        "machines": "times and memory do not compare across them",
        "torch versions": "times and memory may differ between them",
    }
    return [
        f"The runs come from {len(found)} {what} ({listed(sorted(found))}): {effects[what]}."
        for what, found in origins.items()
        if len(found) > 1
    ]
