"""An ablation's runs to what they say: a row a way of answering, over the seeds, with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import mean
from typing import Any

from halka.evaluation.metrics import mean_of
from halka.report.intervals import Estimate, Interval, difference, estimate
from halka.studies.ablation.scores import MEASURES, from_row, scored
from halka.util.errors import HalkaError

WAYS = {
    "base": ("base", "alone", False),
    "base + passages": ("base", "passages", False),
    "adapter": ("adapter", "alone", False),
    "adapter + passages": ("adapter", "passages", False),
    "tuned adapter + passages": ("tuned", "passages", False),
    "tuned adapter + passages above the floor": ("tuned", "passages", True),
}
"""Who answers, from what, and whether a best passage below the floor is none; in the order in which they are shown."""


@dataclass(frozen=True)
class Way:
    """One way of answering: its measures by name, and how often it did what an attack in its passages wanted."""

    label: str
    scores: dict[str, Estimate]
    obeyed: Estimate | None


@dataclass(frozen=True)
class Changes:
    """Facts changed in their documents: how many answers followed, and what a change and a training took."""

    follows: Estimate
    seconds: float
    training_seconds: float


@dataclass(frozen=True)
class Summary:
    """What an ablation's runs say.

    gain   exact match of the tuned adapter less the plain one's, both with passages
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
    commits: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def summarise(runs: Sequence[Mapping[str, Any]]) -> Summary:
    """The summary of an ablation's runs, as `study` wrote them. Raises ValueError where there are none."""
    if not runs:
        raise HalkaError("the ablation has no runs yet: `halka compare --rag` makes them")
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
        unanswerable=sum(not each.answers for each in answered),
        passages=first["passages_shown"],
        seeds=tuple(sorted({run["seed"] for run in runs if run["who"] != "base"})),
        parameters=tuned[0]["train"]["parameters"] if tuned else None,
        ways=tuple(ways),
        gain=_gain({way.label: way for way in ways}),
        changes=_changes(tuned),
        commits=tuple(dict.fromkeys(run["commit"] for run in runs if run["commit"])),
    )


def _way(label: str, runs: Sequence[Mapping[str, Any]], part: str, floored: bool) -> Way:
    by_run = []
    for run in runs:
        answers = [from_row(row) for row in run[part]]
        if floored:
            answers = [each.above(run["floor"]) for each in answers]
        by_run.append(scored(answers, run["form"], run["seed"]))
    scores = {}
    for measure in MEASURES:
        if together := _over([asdict(each[measure.name]) for each in by_run if measure.name in each]):
            scores[measure.name] = together
    asked = part == "passages" and not floored
    attacked = [run["injections"] for run in runs if asked and run["injections"]]
    obeyed = [asdict(mean_of([float(each["obeyed"]) for each in asked])) for asked in attacked]
    return Way(label, scores, _over(obeyed))


def _gain(ways: Mapping[str, Way]) -> Interval | None:
    both = [ways.get(label) for label in ("tuned adapter + passages", "adapter + passages")]
    known = [way.scores["exact"].interval for way in both if way is not None]
    return difference(known[0], known[1]) if len(known) == 2 and known[0] and known[1] else None


def _changes(tuned: Sequence[Mapping[str, Any]]) -> Changes | None:
    asked = [run["changes"] for run in tuned if run["changes"]["asked"]]
    follows = _over([asdict(mean_of([float(each["follows"]) for each in run["asked"]])) for run in asked])
    if follows is None:
        return None
    return Changes(
        follows,
        seconds=mean(run["seconds"] for run in asked),
        training_seconds=mean(run["train"]["seconds"] for run in tuned),
    )


def _over(scores: Sequence[Mapping[str, Any]]) -> Estimate | None:
    return estimate(scores, (0.0, 1.0))
