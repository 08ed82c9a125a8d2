"""The laws of LoRA, each with its verdict in one sentence (benchmarks/laws.py judges) and one figure with bands."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from evidence_parts.convergence import REACHED, SETS, ranks, side_of
from evidence_parts.figure import figure, final_seeds
from evidence_parts.part import Block, Missing, Notes, Part
from evidence_parts.results import LEAST_SEEDS, Results, Study, compare, is_settled
from halka.report.plots import curves, search
from halka.report.rows import Measurement, is_done, label_of
from halka.report.summary import summarise
from halka.report.svg import Plot
from halka.report.units import listed, percent

JUDGE = "python benchmarks/laws.py"
WITH_RANKS = ("snips", "e2e")
FOLLOWS = "There is a rank below which LoRA stops following full fine-tuning."
RULE = (
    f"it does not hold where the least rank reaches {percent(REACHED)} of full fine-tuning's score, the whole "
    "interval, and else holds where that rank is behind, the whole interval of the difference"
)


def part(results: Results) -> Part:
    from laws import LAWS

    verdicts = {finding["name"]: finding for finding in results.file("laws") or ()}
    blocks: list[Block] = []
    missing: dict[str, list[str]] = {}
    drawn = set[tuple[str, tuple[str, ...]]]()
    for law in LAWS:
        runs = [run for run in results.runs(f"laws/{law.sweep}") if is_done(run) and label_of(run) in law.shown]
        verdict = verdicts.get(law.name)
        if verdict and verdict["seeds"] >= LEAST_SEEDS:
            became = f"{_capital(verdict['verdict'])}: {verdict['finding']} ({verdict['seeds']} seeds)."
            blocks.append(Notes((f"{verdict['law']} {became} The rule: it holds where {law.rule}.",)))
            plot = _figure(law.name, runs) if (law.sweep, law.shown) not in drawn else None
            drawn.add((law.sweep, law.shown))
            blocks += [plot] if plot is not None else []
        else:
            missing.setdefault(law.sweep, []).append(law.law)
    for sweep, statements in missing.items():
        runs = sum(map(is_done, results.runs(f"laws/{sweep}")))
        quoted = [f"“{statement.removesuffix('.')}”" for statement in statements]
        so_far = f" ({runs} runs have finished)" if runs else ""
        blocks.append(Missing((compare(f"laws/{sweep}"), JUDGE), f"{listed(quoted)}{so_far}"))
    return Part("laws", "The laws of LoRA", (*blocks, *_ranks(results)))


def _capital(words: str) -> str:
    return words[:1].upper() + words[1:]


def _figure(name: str, runs: Sequence[Measurement]) -> Plot | None:
    """Validation loss over the learning rate, with a band over the seeds."""
    place = "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in name)
    if not runs:
        return None
    summary = summarise(runs)
    seeds = {row.label: len({run["seed"] for run in runs if label_of(run) == row.label}) for row in summary.rows}
    return figure(partial(search, summary, runs), seeds, f"law-{place}")


def _ranks(results: Results) -> list[Block]:
    """Where a rank stops following full fine-tuning, from the sets that have several ranks."""
    blocks: list[Block] = []
    for name in WITH_RANKS:
        study = results.study(name)
        sentences = ranks(study) if study.runs else []
        if not sentences:
            blocks.append(Missing((study.command,), f"where a rank stops following full fine-tuning on {SETS[name]}"))
            continue
        shown = {row.label for row in (*study.ranks, study.full) if row is not None}
        runs = [run for run in study.runs if label_of(run) in shown]
        summary = summarise(runs)
        plot = figure(partial(curves, summary, runs), final_seeds(summary), f"law-ranks-{name}")
        blocks += [
            Notes((f"{FOLLOWS} {_capital(_followed(study))} on {SETS[name]}. {sentences[0]} The rule: {RULE}.",))
        ]
        blocks += [plot] if plot is not None else []
    return blocks


def _followed(study: Study) -> str:
    """Whether LoRA's least rank follows full fine-tuning, by the rule."""
    if study.full is None or not is_settled(study.full) or not study.ranks_are_settled:
        return "cannot be told here"
    least = study.ranks[0]
    if least.relative_interval is not None and least.relative_interval.low > REACHED:
        return "did not hold"
    return "held" if side_of(study, least, study.full) == "behind" else "cannot be told here"
