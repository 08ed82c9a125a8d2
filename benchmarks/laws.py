"""Judges what is said of LoRA ("LoRA Without Regret", Schulman et al. 2025) by sweeps on SmolLM2-135M and SNIPS.

    halka compare benchmarks/experiments/laws/rates.yaml -o benchmarks/results/laws/rates     # and places, batches
    python benchmarks/laws.py        # judges what is there: results/laws.json, which docs/evidence.md shows

Each law has a rule: it held, it did not, or it cannot be told here. Rules were written before their sweeps were run,
but for the bounds of the first two, which were one law until its result was read. Rates are compared by the best
between those tried, losses at the best of those tried, seed by seed. Where the best is an edge of those tried, nothing
can be told. Intervals are over seeds alone, for these validation examples.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from best_rates import Losses, at_edge, loss_gaps, losses_of, over_seeds, rate_ratio, rates_of

from halka.report.intervals import Interval
from halka.report.rows import by_label
from halka.report.units import listed
from halka.studies.compare import ExperimentPlan, measurements, runner
from halka.studies.experiment import read_experiment
from halka.util.files import write_text

BENCHMARKS = Path(__file__).parent
RESULTS = BENCHMARKS / "results" / "laws"
Verdict = Literal["held", "did not hold", "cannot be told here"]
Sweep = Mapping[str, Losses]
"""Validation losses by the method's label, seed and rate."""


@dataclass(frozen=True)
class Law:
    """A law, the sweep that tests it, the methods that it needs, and the rule by which it is judged.

    rule     what must be seen where it held, in words
    beside   methods that its figure shows, too
    """

    name: str
    sweep: str
    law: str
    rule: str
    needs: tuple[str, ...]
    judge: Callable[[Sweep], tuple[Verdict, str]]
    beside: tuple[str, ...] = ()

    @property
    def shown(self) -> tuple[str, ...]:
        return (*self.needs, *self.beside)


@dataclass(frozen=True)
class Finding:
    """What became of a law: the verdict, the sentence, and how many seeds stand behind it."""

    name: str
    sweep: str
    law: str
    verdict: Verdict
    finding: str
    seeds: int


def main() -> None:
    findings: list[Finding] = []
    for name in dict.fromkeys(law.sweep for law in LAWS):
        sweep = {label: losses_of(runs) for label, runs in by_label(swept(name)).items()}
        findings += [finding for law in LAWS if law.sweep == name and (finding := judged(law, sweep)) is not None]
    for finding in findings:
        print(f"{finding.law}\n  {finding.verdict}: {finding.finding}")
    write_text(RESULTS.with_suffix(".json"), json.dumps([asdict(finding) for finding in findings], indent=1) + "\n")


def swept(name: str) -> list[Mapping[str, Any]]:
    """The sweep's finished runs."""
    experiment = read_experiment(BENCHMARKS / "experiments" / "laws" / f"{name}.yaml")
    folder = RESULTS / name
    if not measurements(folder):
        return []
    results = ExperimentPlan(experiment).results(runner(experiment, folder))
    return [run for run in results.values() if run["status"] == "done"]


def judged(law: Law, sweep: Sweep) -> Finding | None:
    """The law's finding; None while the methods that it needs have not been swept with two seeds and two rates."""
    seeds = sorted(set[int].intersection(*(set(sweep.get(label, ())) for label in law.needs)))
    if len(seeds) < 2:
        return None
    paired = {label: {seed: sweep[label][seed] for seed in seeds} for label in law.needs}
    if any(len(rates_of(losses)) < 2 for losses in paired.values()):
        return None
    verdict, finding = law.judge(paired)
    if edges := [label for label, losses in paired.items() if at_edge(losses)]:
        verdict, finding = "cannot be told here", f"{finding}; at an edge of the rates tried: {listed(edges)}"
    return Finding(law.name, law.sweep, law.law, verdict, finding, len(seeds))


# ── the rules ───────────────────────────────────────────────────────────────────────────────────────────────────────


def times_full(factor: int) -> Callable[[Sweep], tuple[Verdict, str]]:
    """Held: the interval has the factor within, and lies within a factor of two around it."""

    def judge(sweep: Sweep) -> tuple[Verdict, str]:
        ratio = rate_ratio(sweep["r16, α 32"], sweep["full"])
        meets, near = ratio.low <= factor <= ratio.high, ratio.low >= factor / 2 and ratio.high <= factor * 2
        verdict = "did not hold" if not meets else "held" if near else "cannot be told here"
        return verdict, f"the best rate of LoRA r16 is {_times(ratio)} that of full fine-tuning"

    return judge


def independent(one: str, other: str) -> Callable[[Sweep], tuple[Verdict, str]]:
    """Held: the best rates of both ranks differ by less than a factor of two, its interval included."""

    def judge(sweep: Sweep) -> tuple[Verdict, str]:
        ratio = rate_ratio(sweep[other], sweep[one])
        inside, outside = ratio.low > 0.5 and ratio.high < 2, ratio.low > 2 or ratio.high < 0.5
        verdict = "held" if inside else "did not hold" if outside else "cannot be told here"
        though = ", a difference, though a small one" if inside and not ratio.low <= 1 <= ratio.high else ""
        return verdict, f"the best rate of {other} is {_times(ratio)} that of {one}{though}"

    return judge


def everywhere(sweep: Sweep) -> tuple[Verdict, str]:
    """Held: attention's layers alone end with a greater loss than the MLP's, more than chance explains."""
    gap = _gap(loss_gaps(sweep["attention r42"], sweep["MLP r26"]))
    beside = _gap(loss_gaps(sweep["MLP r26"], sweep["all r16"]))
    unclear = " (which of these is better cannot be told)" if beside.low <= 0 <= beside.high else ""
    return _above_zero(gap), (
        f"on attention alone the loss is {_by(gap)} than on the MLP alone; on the MLP alone it is {_by(beside)} than "
        f"on all layers{unclear}"
    )


def larger_batches(sweep: Sweep) -> tuple[Verdict, str]:
    """Held: LoRA's loss beside full fine-tuning's grows from batches of 4 to those of 64, more than chance explains."""
    gaps = {size: loss_gaps(sweep[f"LoRA r16, batch {size}"], sweep[f"full, batch {size}"]) for size in (4, 16, 64)}
    growth = _gap({seed: gaps[64][seed] - gaps[4][seed] for seed in gaps[4]})
    shown = ", ".join(f"{_by(_gap(by_seed))} with {size} examples a step" for size, by_seed in gaps.items())
    return _above_zero(growth), (
        f"beside full fine-tuning's LoRA's loss is {shown}; with 64 that is {_by(growth)} than with 4"
    )


def _above_zero(gap: Interval) -> Verdict:
    return "held" if gap.low > 0 else "did not hold" if gap.high < 0 else "cannot be told here"


def _gap(by_seed: Mapping[int, float]) -> Interval:
    return over_seeds([*by_seed.values()])


def _times(ratio: Interval) -> str:
    return f"{ratio.value:.3g} [{ratio.low:.3g}–{ratio.high:.3g}] times"


def _by(gap: Interval) -> str:
    """How much higher or lower; the interval is of that, so a negative bound is on the other side."""
    side, low, high = ("higher", gap.low, gap.high) if gap.value > 0 else ("lower", -gap.high, -gap.low)
    return f"{abs(gap.value):.3f} [{low:.3f} to {high:.3f}] {side}".replace("-", "−")


WITHIN_TWICE = "the best rates of ranks 1 and 64 differ by less than a factor of two, the interval included"
LAWS = (
    Law(
        "ten times",
        "rates",
        "LoRA's best rate is ten times full fine-tuning's.",
        "the interval has ten within and lies between 5 and 20",
        ("full", "r16, α 32"),
        times_full(10),
    ),
    Law(
        "fifteen times",
        "rates",
        "In short runs, of about a hundred steps, LoRA's best rate is fifteen times full fine-tuning's.",
        "the interval has fifteen within and lies between 7.5 and 30",
        ("full", "r16, α 32"),
        times_full(15),
    ),
    Law(
        "fixed alpha",
        "rates",
        "With α fixed about the same rate is best for every rank.",
        WITHIN_TWICE,
        ("r1, α 32", "r64, α 32"),
        independent("r1, α 32", "r64, α 32"),
        beside=("r4, α 32", "r16, α 32"),
    ),
    Law(
        "alpha twice the rank",
        "rates",
        "With α twice the rank about the same rate is best for every rank.",
        WITHIN_TWICE,
        ("r1, α 2", "r64, α 128"),
        independent("r1, α 2", "r64, α 128"),
        beside=("r4, α 8", "r16, α 32"),
    ),
    Law(
        "places",
        "places",
        "LoRA on attention alone is worse than on the MLP with as many parameters.",
        "its loss is higher, the whole interval",
        ("all r16", "MLP r26", "attention r42"),
        everywhere,
    ),
    Law(
        "batches",
        "batches",
        "LoRA loses more than full fine-tuning as the batch grows.",
        "the gap of the losses is wider with 64 examples a step than with 4, the whole interval; all see as many "
        "examples, so that larger batches have fewer steps",
        tuple(f"{method}, batch {size}" for size in (4, 16, 64) for method in ("full", "LoRA r16")),
        larger_batches,
    ),
)


if __name__ == "__main__":
    main()
