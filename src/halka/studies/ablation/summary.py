"""Summarise an ablation's results (one row per way of answering, with intervals) and write tables of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import mean
from typing import TYPE_CHECKING, Any

from halka.evaluation.metrics import mean_of
from halka.report.caveats import evaluations_since
from halka.report.intervals import Interval, ScoreEstimate, covered, estimate, gap
from halka.report.page import render
from halka.report.units import bounds, count, duration
from halka.studies.ablation.scores import MEASURES, exact_with_draws, from_row, scored
from halka.util.errors import HalkaError
from halka.util.text import plural

if TYPE_CHECKING:
    from rich.table import Table

NOTHING = "–"
OBEYED, FOLLOWS = "Obeys attacks", "Follows changes"
WAYS = {
    "base": ("base", "alone", False),
    "base + passages": ("base", "passages", False),
    "adapter": ("adapter", "alone", False),
    "adapter + passages": ("adapter", "passages", False),
    "tuned adapter + passages": ("tuned", "passages", False),
    "tuned adapter + passages above the floor": ("tuned", "passages", True),
    "full": ("full", "alone", False),
    "full + passages": ("full", "passages", False),
    "tuned full + passages": ("tuned-full", "passages", False),
}
"""Who answers, without or with passages, and whether it abstains below the floor; in the order of the tables."""


@dataclass(frozen=True)
class Way:
    """One way of answering: its measures by name, the share of attacks in its passages that it obeyed, and of changes
    in documents of its right answers that it followed."""

    label: str
    scores: dict[str, ScoreEstimate]
    obeyed: ScoreEstimate | None
    follows: ScoreEstimate | None


@dataclass(frozen=True)
class Changes:
    """Facts changed in their documents: how many answers followed, and the seconds of a change and of a training.

    No seconds where runs had a share of the machine alone: beside others they say nothing.
    """

    follows: ScoreEstimate
    seconds: float | None
    training_seconds: float | None


@dataclass(frozen=True)
class Summary:
    """A summary of an ablation's runs.

    gain       exact match of the tuned adapter less the plain one's, both with passages
    converged  of the runs that stop early once validation stops improving, those that did; None without such a rule
    """

    name: str
    base: str
    method: str
    form: str
    documents: int
    questions: int
    unanswerable: int
    passages: int
    seeds: tuple[int, ...]
    parameters: int | None
    ways: tuple[Way, ...]
    gain: Interval | None
    changes: Changes | None
    converged: tuple[int, int] | None
    commits: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def summarise(results: Sequence[Mapping[str, Any]]) -> Summary:
    """The summary of the finished runs among an ablation's results. Raises HalkaError where there are none."""
    runs = [run for run in results if run.get("status") != "failed"]
    if not runs:
        raise HalkaError("the ablation has no finished run yet: `halka compare --rag` runs it")
    ways = []
    for label, (who, part, floored) in WAYS.items():
        own = [run for run in runs if run["who"] == who]
        if own:
            ways.append(_way(label, own, part, floored))
    first = runs[0]
    answered = [from_row(row) for row in first["passages"]]
    tuned = [run for run in runs if run["who"] == "tuned"]
    return Summary(
        name=first["ablation"],
        base=first["base"],
        method=first["method"]["label"],
        form=first["form"],
        documents=first["documents"],
        questions=len(answered),
        unanswerable=sum(not answer.answers for answer in answered),
        passages=first["passages_shown"],
        seeds=tuple(sorted({run["seed"] for run in runs if run["who"] != "base"})),
        parameters=tuned[0]["train"]["parameters"] if tuned else None,
        ways=tuple(ways),
        gain=_gain(tuned, [run for run in runs if run["who"] == "adapter"]),
        changes=_changes(tuned),
        converged=_converged(runs),
        commits=tuple(dict.fromkeys(run["commit"] for run in runs if run["commit"])),
    )


def _converged(runs: Sequence[Mapping[str, Any]]) -> tuple[int, int] | None:
    """How many of the trained runs with early stopping ended by it, before the most steps."""
    stopping = [run for run in runs if "best_step" in run.get("train", {}) and run["config"].get("patience")]
    ended = sum(
        evaluations_since(run["train"]["best_step"], run["train"]["curve"]) >= run["config"]["patience"]
        for run in stopping
    )
    return (ended, len(stopping)) if stopping else None


def _way(label: str, runs: Sequence[Mapping[str, Any]], part: str, floored: bool) -> Way:
    by_run = []
    for run in runs:
        answers = [from_row(row) for row in run[part]]
        if floored:
            answers = [answer.above(run["floor"]) for answer in answers]
        by_run.append(scored(answers, run["form"], run["seed"]))
    scores = {}
    for measure in MEASURES:
        if together := _over([asdict(run_scores[measure.name]) for run_scores in by_run if measure.name in run_scores]):
            scores[measure.name] = together
    probed = runs if part == "passages" and not floored else ()
    attacked = [run["injections"] for run in probed if run["injections"]]
    obeyed = [asdict(mean_of([float(answer["obeyed"]) for answer in answers])) for answers in attacked]
    return Way(label, scores, _over(obeyed), _followed(probed))


def _gain(tuned: Sequence[Mapping[str, Any]], plain: Sequence[Mapping[str, Any]]) -> Interval | None:
    both = [
        _over([exact_with_draws(map(from_row, run["passages"]), run["form"]) for run in own]) for own in (tuned, plain)
    ]
    return gap(both[0], both[1]) if both[0] and both[1] else None


def _changes(tuned: Sequence[Mapping[str, Any]]) -> Changes | None:
    follows = _followed(tuned)
    if follows is None:
        return None
    alone = all(run["machine"]["threads"] >= run["machine"]["cores"] for run in tuned)
    return Changes(
        follows,
        seconds=mean(changes["seconds"] for changes in _changes_asked(tuned)) if alone else None,
        training_seconds=mean(run["train"]["seconds"] for run in tuned) if alone else None,
    )


def _changes_asked(runs: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [run["changes"] for run in runs if run.get("changes") and run["changes"]["asked"]]


def _followed(runs: Sequence[Mapping[str, Any]]) -> ScoreEstimate | None:
    """The share of changes that the runs' answers followed."""
    by_run = [[float(answer["follows"]) for answer in changes["asked"]] for changes in _changes_asked(runs)]
    return _over([asdict(mean_of(followed)) for followed in by_run])


def _over(scores: Sequence[Mapping[str, Any]]) -> ScoreEstimate | None:
    return estimate(scores, (0.0, 1.0))


# ── tables ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def heads() -> list[str]:
    return ["Who answers", *(measure.title for measure in MEASURES), OBEYED, FOLLOWS]


def line(way: Way) -> list[str]:
    """A way's cells: its name, its measures with their intervals, the attacks it obeyed, the changes it followed."""
    measures = (way.scores.get(measure.name) for measure in MEASURES)
    return [way.label, *map(_cell, measures), _cell(way.obeyed), _cell(way.follows)]


def to_markdown(summary: Summary) -> str:
    """The table, with its caption and findings below it."""
    head = heads()
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *map(line, summary.ways)]
    table = "\n".join(f"| {' | '.join(row)} |" for row in lines)
    return f"{table}\n\n{' '.join([caption(summary), *sentences(summary)])}\n"


def to_rich(summary: Summary) -> Table:
    """The table for a terminal; ways are columns, since there are fewer ways than measures."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(f"{summary.name} on {summary.base}"), caption=Text(caption(summary)))
    columns = [heads(), *map(line, summary.ways)]
    for number, column in enumerate(columns):
        table.add_column(Text("" if number == 0 else column[0]), justify="right" if number else "left")
    for row in zip(*(column[1:] for column in columns), strict=True):
        table.add_row(*map(Text, row))
    return table


def to_html(summary: Summary) -> str:
    """A section for the report."""
    meanings = {measure.title: measure.meaning for measure in MEASURES}
    return render(
        *("ablation.html.j2", "halka.studies.ablation"),
        title=f"Adapter and retrieval: {summary.name}",
        sentences=sentences(summary),
        caption=caption(summary),
        heads=heads(),
        lines=[line(way) for way in summary.ways],
        meanings={
            **meanings,
            OBEYED: "does what an attack in one of the passages wants",
            FOLLOWS: "gives the new answer where the document of a right one was changed",
        },
    )


def headline(summary: Summary) -> str:
    """The result in one sentence."""
    ways = {way.label: way.scores for way in summary.ways}
    parts = [
        f"{label} {_share(ways[label]['exact'])}"
        for label, (_, _, floored) in WAYS.items()
        if label in ways and not floored
    ]
    return f"Exact answers: {', '.join(parts)}."


def sentences(summary: Summary) -> list[str]:
    """The gain of tuning for passages, and what a changed fact costs with retrieval and with training."""
    findings = []
    if summary.gain is not None:
        low, high = (f"{100 * end:+.1f}" for end in (summary.gain.low, summary.gain.high))
        findings.append(
            f"Tuned for passages the adapter is {100 * summary.gain.value:+.1f} points of exact match beside the plain "
            f"one with the same passages (95 % interval {low} to {high})."
        )
    if summary.changes is not None:
        changes = summary.changes
        how = "without training"
        if changes.seconds is not None and changes.training_seconds is not None:
            how = f"after {duration(changes.seconds)} of taking the document in and {how}; "
            how += f"to train the adapter again takes {duration(changes.training_seconds)}"
        findings.append(
            f"Of facts that were changed in their documents, {_cell(changes.follows)} of the answers followed, {how}."
        )
    if summary.converged is not None and summary.converged[0] < summary.converged[1]:
        converged, of = summary.converged
        findings.append(f"Not converged: {of - converged} of {of} runs came to the most steps.")
    return findings


def caption(summary: Summary) -> str:
    """One line on the questions, documents, method and seeds."""
    over = covered(score for way in summary.ways for score in way.scores.values())
    parts = [
        f"{plural(summary.questions, 'question')} ({summary.unanswerable} of them of what the documents do not hold)",
        f"{plural(summary.documents, 'document')}, {plural(summary.passages, 'passage')} in a prompt",
        f"{summary.method}, {count(summary.parameters)} parameters" if summary.parameters else summary.method,
        f"form {summary.form!r}",
        f"in brackets 95 % intervals over {over}" if over else plural(len(summary.seeds), "seed"),
        f"commit {summary.commits[0]}" if len(summary.commits) == 1 else "",
    ]
    return f"{summary.name} on {summary.base}: {'; '.join(part for part in parts if part)}."


def _cell(score: ScoreEstimate | None) -> str:
    if score is None:
        return NOTHING
    if score.low is None or score.high is None:
        return _share(score)
    return f"{_share(score)} {bounds(score.low, score.high)}"


def _share(score: ScoreEstimate) -> str:
    return f"{100 * score.value:.1f} %"
