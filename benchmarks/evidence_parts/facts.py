"""When an adapter is not enough: facts that are new (TOFU's invented authors) beside form that is new (SNIPS).

A method's gain is its score less the bare base's; what counts is its share of full fine-tuning's gain. The wording
alone lets the bare base score on facts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

from evidence_parts.convergence import REACHED
from evidence_parts.figure import figure, final_seeds
from evidence_parts.part import Block, Missing, Notes, Part, table
from evidence_parts.results import Results, Study, is_settled
from halka.report.intervals import Interval, ScoreEstimate, gap, share
from halka.report.rows import Row, label_of
from halka.report.score_curves import progress
from halka.report.summary import summarise
from halka.report.table import NOTHING, Cell
from halka.report.units import bounds, listed, percent

KINDS = {"facts": "facts", "snips": "form"}
SIDES = REACHING, BELOW, UNKNOWN = "at least", "less than", "not to be told from"


def part(results: Results) -> Part:
    studies = {name: results.study(name) for name in KINDS}
    title = "Facts that are new, form that is new"
    if not studies["facts"].runs:
        return Part("facts", title, (Missing((studies["facts"].command,)),))
    blocks: list[Block] = [f"Facts. {studies['facts'].state()}"]
    if studies["snips"].runs:
        blocks.append(f"Form. {studies['snips'].state()}")
    shares = {name: _shares(study) for name, study in studies.items()}
    if any(shares.values()):
        blocks.append(_table(studies, shares))
    blocks += [Notes(tuple(sentences))] if (sentences := _findings(studies, shares)) else []
    for name, study in studies.items():
        own = {label_of(run) for run in studies["facts"].runs}
        runs = [run for run in study.runs if label_of(run) in own]
        if not runs:
            continue
        summary = summarise(runs)
        plot = figure(partial(progress, summary, runs), final_seeds(summary), f"{KINDS[name]}-progress")
        blocks += [] if plot is None else [replace(plot, title=f"{plot.title}: {KINDS[name]}")]
    blocks += [
        Missing((study.command,), f"the rest of {KINDS[name]}")
        for name, study in studies.items()
        if {*study.missing} & {*studies["facts"].labels}
    ]
    return Part("facts", title, tuple(blocks))


def _shares(study: Study) -> dict[str, tuple[float, Interval | None]]:
    """By label, a method's gain over the base as a share of full fine-tuning's, with its interval."""
    name = study.summary.primary.name if study.runs else ""
    base = study.summary.base_row.scores.get(name) if study.runs and study.summary.base_row else None
    if study.full is None or base is None:
        return {}
    whole = _gain(study.full.scores[name], base)
    if whole.value <= 0:
        return {}
    return {
        row.label: (own.value / whole.value, share(own, whole))
        for row in study.scored
        if not row.is_full
        for own in (_gain(row.scores[name], base),)
    }


def _gain(score: ScoreEstimate, base: ScoreEstimate) -> ScoreEstimate:
    """The score less the base's, which has one run: of its interval only the items' part is known."""
    between = gap(score, base)
    pairs = zip(score.draws, base.draws, strict=True) if len(score.draws) == len(base.draws) else ()
    return replace(
        score,
        value=score.value - base.value,
        low=between.low if between else None,
        high=between.high if between else None,
        draws=tuple(mine - theirs for mine, theirs in pairs),
    )


def _table(studies: Mapping[str, Study], shares: Mapping[str, Mapping[str, tuple[float, Interval | None]]]) -> Block:
    head = ["Method"]
    for name in studies:
        head += [f"{KINDS[name].capitalize()}: score", "share of full's gain", "steps to 95 %", "seeds"]
    lines = []
    for label in studies["facts"].labels:
        cells: list[str | Cell] = [label]
        for name, study in studies.items():
            row = next((row for row in study.summary.rows if row.label == label), None) if study.runs else None
            cells += _cells(study, row, shares[name].get(label))
        lines.append(cells)
    return table(
        head,
        lines,
        f"In brackets 95 % intervals over seeds and test items.{_alphas(studies)}",
    )


def _alphas(studies: Mapping[str, Study]) -> str:
    """LoRA's α in each study."""
    used = {
        KINDS[name]: {run["method"]["fields"].get("alpha") for run in study.runs if run["method"]["name"] == "lora"}
        for name, study in studies.items()
    }
    words = [
        f"{listed(['twice the rank' if alpha is None else f'{alpha:g}' for alpha in sorted(own, key=str)])} for {kind}"
        for kind, own in used.items()
        if own
    ]
    return f" LoRA's α is {listed(words)}." if words else ""


def _cells(study: Study, row: Row | None, of_full: tuple[float, Interval | None] | None) -> list[str | Cell]:
    score = row.scores.get(study.summary.primary.name) if row is not None else None
    if row is None or score is None:
        return [NOTHING] * 4
    interval = of_full[1] if of_full is not None else None
    aside = f" {bounds(interval.low, interval.high)}" if interval else ""
    near = study.summary.near_full.get(row.label)
    return [
        Cell(study.summary.primary.text(score.value), score.value),
        Cell(f"{percent(of_full[0], 0)}{aside}", of_full[0]) if of_full is not None else NOTHING,
        NOTHING if near is None else Cell(f"{near.steps:.0f}", near.steps, near.aside),
        Cell(str(row.runs), row.runs),
    ]


def _findings(
    studies: Mapping[str, Study], shares: Mapping[str, Mapping[str, tuple[float, Interval | None]]]
) -> list[str]:
    """Which ranks learn as much as full fine-tuning, of facts and of form, and how much longer facts take."""
    sides = {name: _sides(study, shares[name]) for name, study in studies.items()}
    sentences = []
    for name, by_label in sides.items():
        own = {side: [label for label in by_label if by_label[label] == side] for side in SIDES}
        parts = [f"{side} {percent(REACHED)} of full's gain: {', '.join(own[side])}" for side in SIDES if own[side]]
        sentences += [f"{KINDS[name].capitalize()}, {'; '.join(parts)}."] if parts else []
    both = [label for label in sides["facts"] if label in sides["snips"]]
    if sides["facts"]:
        verdict = _too_low(studies["facts"], sides["facts"])
        sentences.append(f"There is a rank that is too low for facts that are new. {verdict}.")
    if below := [label for label in both if sides["facts"][label] == BELOW]:
        sentences.append(f"The same rank is enough for form that is new. {_enough(sides['snips'], below)}.")
    paces = {name: study.summary.near_full for name, study in studies.items() if study.runs}
    timed = [label for label in both if all(label in paces[name] and paces[name][label].whole for name in KINDS)]
    times = [f"{label} {paces['facts'][label].steps / paces['snips'][label].steps:.1f} times" for label in timed]
    return sentences + (
        [f"Steps to 95 % of full's score on facts, by those on form: {listed(times)}."] if times else []
    )


def _too_low(study: Study, facts: Mapping[str, str]) -> str:
    """The verdict on ranks too low for facts: one is, by its whole interval; or none of all; or neither is shown."""
    if below := [label for label, side in facts.items() if side == BELOW]:
        stay = "stay" if len(below) > 1 else "stays"
        return f"Held: {listed(below)} {stay} below {percent(REACHED)} of full's gain, the whole interval"
    if study.ranks_are_settled and all(side == REACHING for side in facts.values()):
        return f"Did not hold: every rank tried has at least {percent(REACHED)} of full's gain, the whole interval"
    return "Cannot be told here"


def _enough(form: Mapping[str, str], below: Sequence[str]) -> str:
    """The verdict on whether ranks that are too low for facts are enough for form."""
    if enough := [label for label in below if form[label] == REACHING]:
        return f"Held: {listed(enough)}"
    if unknown := [label for label in below if form[label] == UNKNOWN]:
        return f"Cannot be told here: {listed(unknown)} may be too low, too"
    return f"Did not hold: {listed(below)} {'are' if len(below) > 1 else 'is'} too low for form, too"


def too_little_for_facts(results: Results) -> list[str]:
    """The ranks that are not enough for new facts, though not shown to be too little for new form."""
    studies = {name: results.study(name) for name in KINDS}
    return _lacking({name: _sides(study, _shares(study)) for name, study in studies.items()})


def _lacking(sides: Mapping[str, Mapping[str, str]]) -> list[str]:
    form = sides["snips"]
    return [label for label, side in sides["facts"].items() if side == BELOW and form.get(label, BELOW) != BELOW]


def _sides(study: Study, shares: Mapping[str, tuple[float, Interval | None]]) -> dict[str, str]:
    """By label, on which side of 97 % of full's gain each rank is, of those with seeds enough."""
    if study.full is None or not is_settled(study.full):
        return {}
    sides = {}
    for row in study.ranks:
        if is_settled(row) and row.label in shares:
            bounds = shares[row.label][1]
            if bounds is None or bounds.low <= REACHED <= bounds.high:
                sides[row.label] = UNKNOWN
            else:
                sides[row.label] = BELOW if bounds.high < REACHED else REACHING
    return sides
