"""What a practitioner should do: method, rank, rate and steps, by the size of the data.

Every sentence follows from result files by a rule:
- method: of the light methods whose score cannot be told apart from the best one's, the one with the least memory;
- full fine-tuning instead: where its score is ahead of the best light method's, more than chance explains;
- rank: the least rank of LoRA whose score cannot be told apart from the best rank's;
- rate: the one that the search chose for LoRA r16, and that by full fine-tuning's;
- steps: where validation was best, in the mean over seeds, and as passes over the examples; "at least", where runs had
  not converged;
- knowledge: the ranks that learn less of new facts than 97 % of what full fine-tuning does;
- α, layers and batches: by the laws that held.

Three seeds of a method are the fewest that count, and two light methods. What is best for other kinds and amounts of
data is of the cases that the advisor is judged by (benchmarks/advisor.py).
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

from evidence_parts.convergence import SETS, best_of, level_with_best, side_of
from evidence_parts.facts import too_little_for_facts
from evidence_parts.part import Block, Missing, Notes, Part, table
from evidence_parts.results import LEAST_SEEDS, Results, Study, is_settled, mean_step
from halka.report.caveats import cut_off
from halka.report.findings import score_text
from halka.report.rows import Row
from halka.report.table import NOTHING, Cell
from halka.report.units import learning_rate, listed, signed, size
from halka.util.text import plural

SHORT = {"snips": "SNIPS", "e2e": "E2E", "banking77": "BANKING77", "nl2bash": "NL2Bash"}
NAMES = {"peft": "an adapter", "rag": "retrieval", "peft+rag": "both", "full": "full fine-tuning", "prompt": "a prompt"}
NAMES |= {"data": "more data", "base": "nothing helps"}
LORA = "LoRA r16"
BY_LAWS = {
    "fixed alpha": "α: one for all ranks, so that about the same rate suits them; Halka's default is 32.",
    "places": "Layers: all linear ones, as by default, or the MLP's; attention's alone are worse at equal size.",
    "batches": "Batches: small ones; with equal examples, in fewer steps, LoRA falls behind full tuning as they grow.",
}
"""What to do by each of the laws (below, with their figures) where it held."""


@dataclass(frozen=True)
class Advised:
    """What one set's runs advise; what cannot be told yet is None or empty."""

    study: Study
    level: list[Row]
    method: Row | None
    full_is_ahead: bool
    rank: Row | None
    lora: Row | None
    steps: float | None
    limited: int

    @property
    def name(self) -> str:
        return SHORT[self.study.name]

    @property
    def least(self) -> str:
        """What stands before steps that might have been more: some of the runs did not converge."""
        return "≥ " if self.limited else ""

    @property
    def passes(self) -> float | None:
        return None if self.steps is None else self.steps * self.study.batch / self.study.examples

    @property
    def times_full(self) -> float | None:
        """LoRA's rate by full fine-tuning's."""
        full = self.study.full
        return self.lora.lr / full.lr if self.lora and self.lora.lr and full and full.lr else None


def part(results: Results) -> Part:
    title = "What to do"
    studies = sorted((results.study(name) for name in SETS), key=lambda study: study.examples)
    advised = [advice for study in studies if (advice := advised_by(study)) is not None]
    blocks: list[Block] = []
    if advised:
        blocks += [Notes((*sentences(advised), *_knowledge(results), *by_laws(results))), _table(advised)]
    waiting = [study for study in studies if study.missing]
    if waiting:
        names = listed([SHORT[study.name] for study in waiting])
        what = f"method, rank, rate and steps on {names} (commands below)"
        blocks.append(Missing((), what))
    return Part("advice", title, (*blocks, *_kinds(results)))


def advised_by(study: Study) -> Advised | None:
    """What a set's runs advise; None before two light methods have seeds enough, between which there is a choice."""
    light = [row for row in study.scored if row.is_light and is_settled(row)]
    if len(light) < 2:
        return None
    level = level_with_best(study, light)
    by_memory = [row for row in level if row.beyond is not None]
    full = study.full
    ranks = level_with_best(study, study.ranks)
    several = sum(map(is_settled, study.ranks)) > 1
    lora = next((row for row in study.ranks if row.label == LORA and is_settled(row)), None)
    return Advised(
        study=study,
        level=level,
        method=min(by_memory, key=lambda row: row.beyond.mean if row.beyond else math.inf, default=None),
        full_is_ahead=full is not None and is_settled(full) and side_of(study, full, best_of(study, level)) == "ahead",
        rank=min(ranks, key=lambda row: row.fields["rank"]) if several and ranks else None,
        lora=lora,
        steps=mean_step(study.finals(lora.label)) if lora else None,
        limited=sum(map(cut_off, study.finals(LORA))),
    )


def _table(advised: list[Advised]) -> Block:
    head = ["Data", "Examples", "Least memory among the best", "Also among the best", "Full is ahead"]
    head += ["Least rank like the best", f"{LORA}'s rate", "by full's", "Steps × batch", "Passes"]
    lines = []
    for advice in advised:
        method, lora = advice.method, advice.lora
        others = [row.label for row in advice.level if row is not method]
        memory = f" ({size(method.beyond.mean)})" if method and method.beyond else ""
        lines.append(
            [
                advice.name,
                Cell(f"{advice.study.examples:,}", advice.study.examples),
                f"{method.label}{memory}" if method else NOTHING,
                ", ".join(others) or NOTHING,
                "yes" if advice.full_is_ahead else "not shown" if advice.study.full else NOTHING,
                advice.rank.label.removeprefix("LoRA ") if advice.rank else NOTHING,
                learning_rate(lora.lr) if lora and lora.lr else NOTHING,
                f"{advice.times_full:.3g}" if advice.times_full else NOTHING,
                f"{advice.least}{advice.steps:.0f} × {advice.study.batch}" if advice.steps is not None else NOTHING,
                f"{advice.least}{advice.passes:.1f}" if advice.passes is not None else NOTHING,
            ]
        )
    caption = (
        "By three seeds or more, rates by a search of one. Among the best: light methods whose score cannot be told "
        "apart from the best one's. Steps of so many examples, and passes: where validation was best; ≥: of runs that "
        "had not converged."
    )
    return table(head, lines, caption)


def sentences(advised: list[Advised]) -> list[str]:
    """What holds over the sets, by the rules above."""
    return [*_method(advised), *_full(advised), *_rank(advised), *_rate(advised), *_steps(advised)]


def by_laws(results: Results) -> list[str]:
    """What follows from the laws that held, with three seeds."""
    held = {
        law["name"] for law in results.file("laws") or () if law["verdict"] == "held" and law["seeds"] >= LEAST_SEEDS
    }
    return [sentence for name, sentence in BY_LAWS.items() if name in held]


def _over(advised: list[Advised]) -> str:
    names = listed([advice.name for advice in advised])
    return f"on {names}{'' if len(advised) > 1 else ' (the only set so far)'}"


def _method(advised: list[Advised]) -> list[str]:
    always = [row.label for row in advised[0].level if all(row.label in map(_label, each.level) for each in advised)]
    if not always:
        per = [f"{listed([*map(_label, advice.level)])} on {advice.name}" for advice in advised]
        return [f"Method: none is among the best everywhere; among the best are {'; '.join(per)}."]
    among = f"{'is' if len(always) == 1 else 'are'} among the best light methods {_over(advised)}"
    return [f"Method: {listed(always)} {among}.", *_least(advised)]


def _least(advised: list[Advised]) -> list[str]:
    """Which of the best takes the least memory, and which forgets least in the mean over seeds, on each set."""
    memory = [f"{advice.method.label} on {advice.name}" for advice in advised if advice.method]
    forgetting = []
    for advice in advised:
        changes = {row.label: row.forgetting.mean for row in advice.level if row.forgetting is not None}
        if changes:
            label = min(changes, key=changes.__getitem__)
            forgetting.append(f"{label} on {advice.name} ({signed(changes[label])})")
    parts = [f"least memory, {listed(memory)}"] if memory else []
    parts += [f"least forgetting, {listed(forgetting)}"] if forgetting else []
    return [f"Of the best methods: {'; '.join(parts)}. These differences are not tested."] if parts else []


def _label(row: Row) -> str:
    return row.label


def _full(advised: list[Advised]) -> list[str]:
    compared = [advice for advice in advised if advice.study.full and is_settled(advice.study.full)]
    if not compared:
        return []
    ahead = [advice.name for advice in compared if advice.full_is_ahead]
    if ahead:
        return [f"Full fine-tuning is ahead of the best light method on {listed(ahead)}: where that counts, take it."]
    return [f"Full fine-tuning is not shown to be ahead of the best light method {_over(compared)}."]


def _rank(advised: list[Advised]) -> list[str]:
    ranked = [advice for advice in advised if advice.rank is not None]
    if not ranked:
        return []
    most = max(advice.rank.fields["rank"] for advice in ranked if advice.rank)
    per = listed([f"{advice.rank.fields['rank']} on {advice.name}" for advice in ranked if advice.rank])
    tried = sorted(
        set.intersection(*({row.fields["rank"] for row in each.study.ranks if is_settled(row)} for each in ranked))
    )
    lower = "; lower ones are not measured" if most == tried[0] > 1 else ""
    among = f"of ranks {listed([*map(str, tried)])} the least that cannot be told apart from the best is {per}"
    return [f"Rank: begin with {most}; {among}{lower}{_not_equal(ranked)}."]


def _knowledge(results: Results) -> list[str]:
    if not (lacking := too_little_for_facts(results)):
        return []
    return [f"Facts that are new: a higher rank, or retrieval; {listed(lacking)} learned too little of them (below)."]


def _not_equal(ranked: list[Advised]) -> str:
    """What the least rank scored beside the best one: that they cannot be told apart makes them no equals."""
    per = []
    for advice in ranked:
        primary = advice.study.summary.primary
        best = best_of(advice.study, [row for row in advice.study.ranks if is_settled(row)])
        if advice.rank is not None and best is not advice.rank:
            scores = " against ".join(f"{score_text(row, primary)} ({row.label})" for row in (advice.rank, best))
            per.append(f"{scores} on {advice.name}")
    return f", which does not show that it is as good: {listed(per)}" if per else ""


def _rate(advised: list[Advised]) -> list[str]:
    rates = [advice.lora.lr for advice in advised if advice.lora and advice.lora.lr]
    if not rates:
        return []
    middle = math.exp(sum(map(math.log, rates)) / len(rates))
    spread = (
        ""
        if min(rates) == max(rates)
        else f", the best were {learning_rate(min(rates))} to {learning_rate(max(rates))}"
    )
    times = [factor for advice in advised if (factor := advice.times_full) is not None]
    beside = ""
    if times:
        low, high = f"{min(times):.3g}", f"{max(times):.3g}"
        once = "in one search of one seed" if len(times) == 1 else f"in {len(times)} searches of one seed"
        beside = f"; that is {low if low == high else f'{low} to {high}'} times full fine-tuning's, {once}"
    start = learning_rate(float(f"{middle:.2g}"))
    return [f"Rate: begin the search of {LORA} at {start} with batches of {_batches(advised)}{spread}{beside}."]


def _batches(advised: list[Advised]) -> str:
    return listed([str(batch) for batch in sorted({advice.study.batch for advice in advised})], "or")


def _steps(advised: list[Advised]) -> list[str]:
    stepped = [advice for advice in advised if advice.steps is not None]
    if not stepped:
        return []
    per = []
    for advice in stepped:
        runs = len(advice.study.finals(LORA))
        limited = f"; {advice.limited} of {plural(runs, 'run')} had not converged" if advice.limited else ""
        per.append(
            f"{'at least ' if limited else ''}{advice.steps:.0f} steps with {advice.study.examples:,} examples "
            f"({advice.name}, {advice.passes:.1f} passes{limited})"
        )
    return [f"Steps: validate, and stop when it no longer improves; for {LORA} that was after {listed(per)}."]


# ── other kinds and amounts of data ─────────────────────────────────────────────────────────────────────────────────


def _kinds(results: Results) -> list[Block]:
    """What was best by the kind of data and the number of examples, of the advisor's cases."""
    judged = results.file("advisor/advisor")
    if judged is None:
        return [Missing(("python benchmarks/advisor.py",), "what is best for other kinds of data")]
    groups: dict[tuple[str, int], Counter[str]] = {}
    for case in judged["cases"]:
        outcome: Any = results.file(f"advisor/outcomes/{case['case']}")
        if outcome is not None:
            groups.setdefault((case["kind"], outcome["train"]), Counter())[case["truth"]] += 1
    lines = [
        [
            kind,
            Cell(str(examples), examples),
            ", ".join(f"{NAMES.get(best, best)} ({count})" for best, count in of.most_common()),
        ]
        for (kind, examples), of in sorted(groups.items(), key=lambda group: (group[0][1], group[0][0]))
    ]
    if not lines:
        return []
    total = sum(map(Counter.total, groups.values()))
    caption = (
        f"Of {plural(total, 'case')} of the advisor's benchmark, one run an option: the cheapest option within noise "
        "of the best one's score, and how often; nothing helps: none is of use."
    )
    waiting = judged["waiting"]
    rest = [Missing(("python benchmarks/advisor.py",), f"{plural(len(waiting), 'case')} more")] if waiting else []
    return [table(("What is to be learned", "Examples", "Best"), lines, caption), *rest]
