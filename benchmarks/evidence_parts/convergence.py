"""Methods beside full fine-tuning on one set, each trained until validation stopped improving, or to the most steps.

The rules; docs/evidence.md says which of them came after a result. A verdict needs three seeds of each method. A
method reaches full fine-tuning where the 95 % interval of its share of full's score lies above 97 %, and stays below
where it lies below; else it cannot be told here. Two scores differ where the interval of their difference leaves zero
out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from evidence_parts.figure import figure, final_seeds
from evidence_parts.part import Block, Missing, Notes, Part, Table
from evidence_parts.results import LEAST_SEEDS, Results, Study, is_settled, mean_step, processor
from halka.methods import method_named
from halka.models.fetching.smollm2 import CONFIG as SMOLLM2
from halka.models.rates import rate_at_width
from halka.report.caveats import (
    ComparedRuns,
    cut_off,
    edge_of_the_grid,
    few_seeds,
    mixed_origins,
    not_converged,
    patience_of,
    small_test_set,
)
from halka.report.findings import score_text
from halka.report.intervals import apart
from halka.report.near_full import NEAR
from halka.report.plots import forgetting, quality
from halka.report.rows import Row, label_of
from halka.report.score_curves import progress
from halka.report.summary import summarise
from halka.report.table import NOTHING, Cell, cells, columns
from halka.report.units import bounds, learning_rate, listed, percent, signed
from halka.util.text import plural

SETS = {
    "snips": "Commands to JSON (SNIPS)",
    "e2e": "Restaurant attributes to text (E2E)",
    "banking77": "Messages to intents (BANKING77)",
    "nl2bash": "English to bash (NL2Bash)",
}
MORE = {
    "behind": "more steps cost it something",
    "level": "they cannot be told apart",
    "ahead": "more steps gain it something",
}
LONGER = {"snips": "snips_longer"}
"""The experiment that has the same set and methods with more steps."""
REACHED = 0.97
SCORES = ("method", "lr", "seeds", "score", "relative", "trainable")
COSTS = ("method", "near_full", "time_near_full", "beyond", "seconds", "forgetting_near_full", "forgetting")
HEADLINE = ("method", "score", "relative", "trainable", "beyond", "seconds", "adapter", "forgetting")


def part(results: Results, name: str) -> Part:
    study = results.study(name)
    if not study.runs:
        return Part(name, SETS[name], (Missing((study.command,)),))
    blocks: list[Block] = [_size(study), study.state()]
    if study.scored:
        blocks += [scores(study), costs(study)]
    longer = results.study(LONGER[name]) if name in LONGER else None
    sentences = findings(study) + (more_steps(study, longer) if longer else [])
    blocks += [Notes(tuple(sentences))] if sentences else []
    seeds = final_seeds(study.summary)
    for make in PLOTS:
        plot = figure(partial(make, study.summary, study.runs), seeds, f"{name}-{make.__name__}")
        blocks += [plot] if plot is not None else []
    if alone := [row.label for row in study.scored if row.seconds is None]:
        blocks.append(Missing((f"python benchmarks/paces.py {name}",), f"the time and memory of {listed(alone)}"))
    if study.missing:
        blocks.append(Missing((study.command,), f"the rest of {listed(study.missing)}"))
    if longer is not None and longer.missing:
        what = f"what at most {longer.settings['train']['steps']:,} steps gain {listed(longer.missing)}"
        blocks.append(Missing((longer.command,), what))
    return Part(name, SETS[name], tuple(blocks))


PLOTS = (quality, progress, forgetting)


def headline(results: Results, name: str) -> Part:
    """The methods with seeds enough in one table, as the README has it."""
    study = results.study(name)
    settled = {row.label for row in study.summary.rows if row.is_base or is_settled(row)} if study.runs else set()
    if len(settled) < 2:
        return Part(name, SETS[name], (Missing((study.command,)),))
    study = replace(study, every=[run for run in study.every if label_of(run) in settled])
    runs = [run for row in study.scored for run in study.finals(row.label)]
    caption = (
        f"{sum(map(cut_off, runs))} of {len(runs)} runs had not converged at the most steps. {_size(study)} At least "
        f"{LEAST_SEEDS} seeds of each method; in brackets 95 % intervals over seeds and test items; bold where the "
        f"best can be told apart. {_paced(study)} Forgetting is the change of perplexity on other text, its mean with "
        f"the least and the most. {' '.join(machines(study))}"
    )
    return Part(name, SETS[name], (_table(study, HEADLINE, caption.rstrip()),))


def _size(study: Study) -> str:
    sizes, train = study.settings["examples"], study.settings["train"]
    every, patience = train["evaluate_every"], train["patience"]
    return (
        f"{study.settings['base']} in {study.settings['dtype']}; {sizes['train']} examples to train on, "
        f"{sizes['validation']} for validation, {sizes['test']} test items; batches of {train['batch_size']}, "
        f"scored on the validation examples every {every} steps, until {patience} scores have not improved (of equal "
        f"ones the lower loss is better), at most {train['steps']}."
    )


def _paced(study: Study) -> str:
    """Where times and memory are from."""
    if not study.paces:
        return "No time and no memory were measured of one run at a time."
    setup, rounds = study.paces["setup"], min(map(len, study.paces["rounds"].values()))
    machine, torch = setup["machine"], setup["versions"]["torch"].partition("+")[0]
    of = f"{processor(machine)}, {plural(machine['threads'], 'thread')}, torch {torch}, commit {setup['commit']}"
    kept = "what other programs did was not recorded"
    if study.beside is not None:
        kept = f"other programs kept {study.beside:.2f} cores busy"
    return (
        f"Time is steps by their seconds, memory the most beyond the base, of {plural(rounds, 'round')}, one run at a "
        f"time ({of}; {kept}); what differs little cannot be told apart."
    )


# ── tables ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def scores(study: Study) -> Table:
    """Score and share of full's, with the learning rate, the best step, and how many runs converged."""
    more = (("Default lr", _own_rate), ("Best step", _best_step), ("Converged", _converged))
    train, patience = study.settings["train"], study.settings["train"]["patience"]
    caption = (
        "In brackets 95 % intervals over seeds and test items; bold where the best can be told apart from all others. "
        f"Rates are those with the lowest validation loss after {study.settings['search_steps']} steps, of one seed, "
        "beside the default: what Halka takes on this base where none is set (LoRA's and DoRA's is for an α of 32). "
        f"Converged: runs in which the best score was {patience} scores or more before the last, at the most steps "
        f"at step {train['steps'] - patience * train['evaluate_every']} or before."
    )
    return _table(study, SCORES, caption, more)


def costs(study: Study) -> Table:
    """Steps, time and memory until 95 % of full's score, and forgetting there and of the weights that were kept."""
    caption = (
        f"Until the score on the validation examples is {percent(NEAR)} of full fine-tuning's best. {_paced(study)} "
        "Forgetting is the change of perplexity on other text, there and of the weights that were kept, the latter's "
        "mean with the least and the most."
    )
    return _table(study, COSTS, caption)


def _table(
    study: Study, keys: Sequence[str], caption: str, more: Sequence[tuple[str, Callable[[Study, Row], Cell]]] = ()
) -> Table:
    by_key = {column.key: column for column in columns(study.summary)}
    shown = [by_key[key] for key in keys if key in by_key]
    by_column = [cells(study.summary, column) for column in shown]
    rows = []
    for number, row in enumerate(study.summary.rows):
        line = [_cell(row, column.key, own[number]) for column, own in zip(shown, by_column, strict=True)]
        line[0] = line[0] if row.final else replace(line[0], aside="(search only)")
        rows.append((*line, *(cell(study, row) for _, cell in more)))
    return Table((*(column.title for column in shown), *(title for title, _ in more)), tuple(rows), caption)


def _cell(row: Row, key: str, cell: Cell) -> Cell:
    """The cell, without a mark where all runs have one measured figure, and with the seeds' range of forgetting."""
    if key in ("beyond", "seconds"):
        return replace(cell, best=False)
    changes = row.forgetting
    if key == "forgetting" and changes is not None and changes.n > 1:
        least, most = signed(changes.low), signed(changes.high)
        if most.endswith(" %"):
            least, most = (text.removesuffix(" %") for text in (least, most))
        return replace(cell, aside=f"({least} to {most})")
    return cell


def _own_rate(study: Study, row: Row) -> Cell:
    """The rate without one in the settings, on SmolLM2-135M."""
    if row.is_base:
        return Cell(NOTHING)
    own = rate_at_width(method_named(row.name).lr, SMOLLM2["hidden_size"])
    return Cell(learning_rate(own), own)


def _best_step(study: Study, row: Row) -> Cell:
    step = mean_step(study.finals(row.label))
    return Cell(NOTHING) if row.is_base or step is None else Cell(f"{step:.0f}", step)


def _converged(study: Study, row: Row) -> Cell:
    runs = [run for run in study.finals(row.label) if patience_of(run) is not None]
    if row.is_base or not runs:
        return Cell(NOTHING)
    whole = len(runs) - sum(map(cut_off, runs))
    return Cell(f"{whole} of {len(runs)}", whole / len(runs))


# ── sentences ───────────────────────────────────────────────────────────────────────────────────────────────────────


def findings(study: Study) -> list[str]:
    """What the runs say so far: 97 % of full, LoRA's ranks, forgetting, and what limits all that."""
    sentences = near_full(study) + ranks(study) + forgotten(study)
    summary = study.summary
    compared = ComparedRuns(summary.rows, summary.primary, tuple(study.runs))
    checks = (not_converged, edge_of_the_grid, few_seeds, small_test_set, mixed_origins)
    return sentences + [sentence for check in checks for sentence in check(compared)] + machines(study)


def machines(study: Study) -> list[str]:
    """Which methods' scores are from which machines, where not all are from one."""
    names: dict[tuple[str, ...], list[str]] = {}
    for row in study.scored:
        of = {processor(run["machine"]) for run in study.finals(row.label)}
        names.setdefault(tuple(sorted(of)), []).append(row.label)
    if len({cpu for cpus in names for cpu in cpus}) < 2:
        return []
    parts = [f"{listed(labels)} on {listed([*cpus])}" for cpus, labels in names.items() if cpus]
    return [f"Final runs: {'; '.join(parts)}."]


def near_full(study: Study) -> list[str]:
    """Which methods reach 97 % of full fine-tuning; of those that do not, what was ruled out as the reason."""
    full = study.full
    if full is None or not study.summary.primary.higher_is_better:
        return []
    reached, unclear, below = list[Row](), list[Row](), list[Row]()
    sentences = list[str]()
    for row in study.scored:
        if not row.is_light or row.relative is None:
            continue
        if not (is_settled(row) and is_settled(full)):
            sentences.append(
                f"{row.label} has {_share(row)} of full fine-tuning's score so far; a verdict needs {LEAST_SEEDS} "
                f"seeds of both, there are {len(row.seeds)} and {len(full.seeds)}."
            )
            continue
        share = row.relative_interval
        crosses = share is None or share.low <= REACHED <= share.high
        (unclear if crosses else reached if row.relative > REACHED else below).append(row)
    figure = f"{percent(REACHED)} of full fine-tuning"
    for rows, before, verb, after in (
        (reached, "", ("reaches", "reach"), ""),
        (unclear, "Whether ", ("reaches", "reach"), " cannot be told here"),
        (below, "", ("stays below", "stay below"), ""),
    ):
        shares = [f"{row.label} ({_share(row)})" for row in rows]
        sentences += [f"{before}{listed(shares)} {verb[len(rows) > 1]} {figure}{after}."] if rows else []
    why: dict[str, list[str]] = {}
    for row in below:
        why.setdefault(_reasons(study, row), []).append(row.label)
    return sentences + [f"Of {listed(labels)}: {reasons}." for reasons, labels in why.items()]


def _share(row: Row) -> str:
    """Of full fine-tuning's score, with its interval."""
    share = row.relative_interval
    return percent(row.relative or 0, 0) + (f" {bounds(share.low, share.high)}" if share else "")


def _reasons(study: Study, row: Row) -> str:
    """What the other runs say of why a method stays below: its rate, its steps, its rank."""
    parts = []
    if row.lr is not None and len(row.lrs) > 1:
        parts.append(f"the rate is {'an edge of' if row.at_edge else 'between'} those tried")
    runs = study.finals(row.label)
    limited = sum(map(cut_off, runs))
    parts.append(f"{limited} of {len(runs)} runs had not converged" if limited else "all of its runs converged")
    above = [other for other in study.ranks if is_settled(other) and other.fields["rank"] > row.fields.get("rank", 0)]
    if row.name == "lora" and above:
        name = study.summary.primary.name
        ahead = [
            other.label
            for other in above
            if apart(other.scores[name], row.scores[name]) and _value(study, other) > _value(study, row)
        ]
        higher = "are" if len(ahead) > 1 else "is"
        parts.append(f"{listed(ahead)} {higher} ahead of it" if ahead else "no higher rank can be told apart above it")
    return "; ".join(parts)


def ranks(study: Study) -> list[str]:
    """Which of LoRA's ranks follow full fine-tuning."""
    full, settled = study.full, [row for row in study.ranks if is_settled(row)]
    if full is None or not is_settled(full) or len(settled) < 2:
        return []
    groups: dict[str, list[str]] = {"behind": [], "level": [], "ahead": []}
    for row in settled:
        groups[side_of(study, row, full)].append(row.label)
    words = {"behind": "behind", "level": "not to be told apart from", "ahead": "ahead of"}
    parts = [f"{listed(labels)} {words[side]} full fine-tuning" for side, labels in groups.items() if labels]
    return [f"Ranks: {'; '.join(parts)}."]


def side_of(study: Study, row: Row, other: Row) -> str:
    """Whether the row's score is "ahead" of the other's, "behind" it, or "level", not to be told apart."""
    name = study.summary.primary.name
    if not apart(row.scores[name], other.scores[name]):
        return "level"
    return "ahead" if _value(study, row) > _value(study, other) else "behind"


def _value(study: Study, row: Row) -> float:
    primary = study.summary.primary
    return primary.sign(row.scores[primary.name].value)


def level_with_best(study: Study, rows: Sequence[Row]) -> list[Row]:
    """Of the rows with seeds enough, those whose score cannot be told apart from the best one's."""
    settled = [row for row in rows if is_settled(row)]
    if not settled:
        return []
    best = best_of(study, settled)
    return [row for row in settled if side_of(study, row, best) == "level"]


def best_of(study: Study, rows: Sequence[Row]) -> Row:
    """The row with the best score."""
    return max(rows, key=lambda row: _value(study, row))


def forgotten(study: Study) -> list[str]:
    """From where to where forgetting goes over the methods, of the weights that were kept and at equal score."""
    near = study.summary.near_full
    ends = {row.label: row.forgetting.mean for row in study.scored if row.forgetting and is_settled(row)}
    there = {
        label: change
        for label in ends
        if label in near and near[label].whole and (change := near[label].forgetting) is not None
    }
    sentences = []
    for changes, when in (
        (ends, "Of the weights that were kept"),
        (there, f"At equal score ({percent(NEAR)} of full's), of the {len(there)} methods whose runs all came there,"),
    ):
        if len(changes) > 1:
            least, most = min(changes, key=changes.__getitem__), max(changes, key=changes.__getitem__)
            own = next((label for label in changes if study.full and label == study.full.label), None)
            beside = f", of full fine-tuning {signed(changes[own])}" if own and own not in (least, most) else ""
            sentences.append(
                f"{when} the change of perplexity on other text is from {signed(changes[least])} ({least}) to "
                f"{signed(changes[most])} ({most}){beside}; means over seeds, whose differences are not tested."
            )
    return sentences


def more_steps(study: Study, longer: Study) -> list[str]:
    """What more steps gain each method, by the seeds that both have."""
    sentences = []
    steps, more = (f"{each.settings['train']['steps']:,}" for each in (study, longer))
    for label in longer.labels:
        ours, theirs = ({run["seed"]: run for run in each.finals(label)} for each in (study, longer))
        seeds = sorted(ours.keys() & theirs.keys())
        if not seeds:
            continue
        before, after = (next(iter(summarise([runs[seed] for seed in seeds]).rows)) for runs in (ours, theirs))
        primary = study.summary.primary
        first, then = (score_text(row, primary) for row in (before, after))
        beside = f"{label} has {then} with at most {more} steps, {first} with {steps}"
        if len(seeds) < LEAST_SEEDS:
            sentences.append(f"{beside}, in {plural(len(seeds), 'seed')}; a verdict needs {LEAST_SEEDS}.")
        else:
            sentences.append(f"{beside}: {MORE[side_of(study, after, before)]}.")
    return sentences
