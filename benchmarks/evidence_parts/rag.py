"""What an adapter and retrieval bring, alone and together: the ablations on Natural Questions and on TOFU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from evidence_parts.figure import figure, too_few
from evidence_parts.part import Block, Missing, Notes, Part, table
from evidence_parts.results import Results, compare, settings
from halka.report.axes import bar_axes, interval, value_at
from halka.report.intervals import ScoreEstimate, apart, gap, share
from halka.report.svg import Drawing, colour, grid, name_axes
from halka.report.units import percent

if TYPE_CHECKING:
    from halka.studies.ablation.summary import Summary

SETS = {"rag_nq_oracle_converged": "Natural Questions", "rag_tofu_converged": "TOFU's invented authors"}
BOTH, FULL = "tuned adapter + passages", "tuned full + passages"
AIM = 1.3
"""The project's aim: so many times the exact answers of the tuned adapter in the short runs."""


def part(results: Results) -> Part:
    blocks: list[Block] = []
    for name in SETS:
        blocks += _set(results, name)
    return Part("rag", "Adapter and retrieval", tuple(blocks))


def _set(results: Results, name: str) -> list[Block]:
    from halka.studies.ablation.summary import caption, heads, line, sentences, summarise

    command, wanted = compare(name, "--rag"), settings(name)
    runs = [run for run in results.runs(name) if run.get("status") != "failed"]
    if not runs:
        return [Missing((command,), SETS[name])]
    summary = summarise(runs)
    blocks: list[Block] = [f"{SETS[name]}:", table(heads(), [line(way) for way in summary.ways], caption(summary))]
    exact = {way.label: way.scores["exact"] for way in summary.ways if "exact" in way.scores}
    seeds_by = {who: len({run["seed"] for run in runs if run["who"] == who}) for who in _trained(runs)}
    plot = figure(partial(ways, SETS[name], exact), seeds_by, f"{name.replace('_', '-')}-ways")
    blocks += [plot] if plot is not None else []
    short = [run for run in results.runs(name.removesuffix("_converged")) if run.get("status") != "failed"]
    words = [] if too_few(seeds_by) else [*sentences(summary), *_joint(exact), *_aimed(summary, short)]
    blocks += [Notes(tuple(words))] if words else []
    questions, seeds = wanted["examples"]["test"], len(wanted["seeds"])
    if summary.questions < questions or min(seeds_by.values(), default=0) < seeds:
        blocks.append(Missing((command,), f"{SETS[name]} with {questions} questions and {seeds} seeds"))
    return blocks


def _trained(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Who was trained, and so has seeds."""
    return list(dict.fromkeys(run["who"] for run in runs if run["who"] != "base"))


def _joint(exact: dict[str, ScoreEstimate]) -> list[str]:
    """How the tuned adapter with passages stands beside passages alone and the adapter alone."""
    if BOTH not in exact:
        return []
    both = exact[BOTH]
    parts = []
    for other in ("base + passages", "adapter"):
        beside = exact.get(other)
        if beside is not None and gap(both, beside) is not None:
            side = "more than" if both.value > beside.value else "less than"
            words = side if apart(both, beside) else "not to be told apart from"
            parts.append(f"{words} {other} ({100 * beside.value:.1f} %)")
    return [f"Exact answers, {BOTH} ({100 * both.value:.1f} %): {', '.join(parts)}."] if parts else []


def _aimed(summary: Summary, short: Sequence[Mapping[str, Any]]) -> list[str]:
    """Whether the tuned adapter came to the aim, and unless it did for certain, what holds it back."""
    from halka.studies.ablation.summary import summarise

    if not short:
        return []
    earlier = summarise(short)
    own, then = (next((way.scores for way in of.ways if way.label == BOTH), {}) for of in (summary, earlier))
    before, exact = then.get("exact"), own.get("exact")
    times = None if before is None or exact is None else share(exact, before)
    if before is None or exact is None or times is None:
        return []
    low, high = times.low, times.high
    came = "it came there" if low >= AIM else "it did not" if high < AIM else "whether it came there cannot be told"
    sentences = [
        f"The short runs' tuned adapter answered {percent(before.value, 1)} of {earlier.questions} questions exactly; "
        f"this one, on {summary.questions}, has {times.value:.2f} times that, {low:.2f} to {high:.2f}. "
        f"The aim was {AIM:g} times: {came}."
    ]
    full = next((way.scores["exact"] for way in summary.ways if way.label == FULL and "exact" in way.scores), None)
    if low < AIM and full is not None and "cites" in own and not apart(full, exact):
        sentences.append(
            f"That the adapter, and not the base's reading, holds it back is not shown: {percent(own['cites'].value)} "
            f"of its answers cite rightly, and full fine-tuning, tuned alike, answers {percent(full.value, 1)} "
            "exactly, which cannot be told apart."
        )
    return sentences


def ways(title: str, exact: dict[str, ScoreEstimate]) -> Drawing | None:
    """Exact answers of each way, with 95 % intervals."""
    if not exact:
        return None
    figure, axes = bar_axes([_short(label) for label in exact], right=48)
    for y, score in enumerate(exact.values()):
        axes.barh(y, score.value, 0.56, color=colour("--s0"))
        if score.interval:
            for name, width in (("--paper", 3.4), ("--ink", 1.2)):
                interval(axes, (score.interval.low, score.interval.high), y, colour(name), width)
        value_at(axes, max(score.value, score.high or 0.0), y, f"{100 * score.value:.1f} %")
    grid(axes, "x")
    axes.set_xlim(0, None)
    axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    name_axes(axes, "exact answers", "")
    best = max(exact, key=lambda label: exact[label].value)
    return figure, f"Exact answers: {title}", f"Most exact answers: {best}, {100 * exact[best].value:.1f} %."


def _short(label: str) -> str:
    """The label in as many letters as fit beside a bar."""
    return label.replace("tuned adapter", "tuned").replace("passages above the floor", "pass., floor")
