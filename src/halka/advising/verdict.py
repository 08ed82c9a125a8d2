"""The verdict: a pure function of the evidence. Its thresholds stand here, each with where it comes from.

1. What is expected within `TOLERANCE` of the best is as good, unless another such leaves less than `HALF` of its loss;
   of those the cheapest is chosen (`CHOICES`).
2. More or better data comes first where it promises `WORTH_GATHERING` beyond that.
3. If the best of all is not `OF_USE` above answers that need no model (or misses the target), the base is too weak,
   or, as long as the loss still falls with more examples, the data are too few.

The confidence is the share of draws from the prospects' intervals in which the same is chosen.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from functools import partial

from halka.advising.advice import CHOICES, Advice, Prospect
from halka.advising.commands import commands, settings
from halka.advising.evidence import Evidence
from halka.advising.prospects import falls_with_data, prospects
from halka.advising.reasons import changes, missing, reasons

TOLERANCE = 0.08  # score; set on the benchmark's first half (benchmarks/advisor.py): what 64 test items cannot tell
WORTH_GATHERING = 0.12  # score; set there, too: gathering data costs people's time, training does not
HALF = 0.5  # of the loss: a few dozen answers are counted right or wrong by luck, of their tokens' losses half is none
OF_USE = 0.1  # score above the best trivial answer, below which nothing was learned that helps anyone; a convention
DRAWS = 2000
UNSURE = 0.8  # factor on the confidence for each thing that was not looked at; a convention


def advise_from(evidence: Evidence) -> Advice:
    """What the evidence says to do. The same evidence gives the same advice.

    Raises ValueError where there is no evidence at all.
    """
    found = prospects(evidence)
    needed = _needed(evidence)
    if found:
        rule = _rule(evidence, found, needed)
        choice = rule({each.choice: each.score.value for each in found})
        confidence = _confidence(found, choice, rule)
    elif evidence.fit is not None:
        fits = any(each.fits is not False for each in evidence.fit.options)
        choice, confidence = ("peft" if fits else "base"), 0.5
    else:
        raise ValueError("every probe was skipped or found nothing: there is nothing to advise from")
    lacking = missing(evidence)
    return Advice(
        choice=choice,
        confidence=round(confidence * UNSURE ** len(lacking), 3),
        prospects=found,
        reasons=reasons(evidence, choice, found, needed),
        change=changes(evidence, choice, found),
        missing=lacking,
        commands=commands(evidence, choice),
        settings=settings(evidence, choice),
    )


def chosen(
    scores: Mapping[str, float],
    needed: float,
    target: float | None = None,
    losses: Mapping[str, float] | None = None,
    *,
    falling: bool = False,
) -> str:
    """The choice by what each is expected to score and lose, and whether the loss falls with data: the rules above."""
    ways = {each: scores[each] for each in CHOICES if each in scores and each != "data"}
    best = max(ways.values(), default=0.0)
    gathered = max(best, scores.get("data", 0.0))
    if gathered < needed:
        return "data" if falling else "base"
    if "data" in scores and (gathered - best > WORTH_GATHERING or best < needed):
        return "data"
    if target is not None and target <= best:
        return next(each for each, score in ways.items() if score >= target)
    good = [each for each, score in ways.items() if score >= best - TOLERANCE]
    known = losses or {}
    least = min((known[each] for each in good if each in known), default=0.0)
    return next(each for each in good if HALF * known.get(each, 0.0) <= least)


def _rule(evidence: Evidence, found: tuple[Prospect, ...], needed: float) -> Callable[[Mapping[str, float]], str]:
    """`chosen`, with all that is not drawn."""
    learned = evidence.learnability
    return partial(
        chosen,
        needed=needed,
        target=evidence.subject.target,
        losses={each.choice: each.loss for each in found if each.loss is not None},
        falling=learned is not None and falls_with_data(learned),
    )


def _needed(evidence: Evidence) -> float:
    """The score below which an answer is of no use."""
    if evidence.subject.target is not None:
        return evidence.subject.target
    strength = evidence.strength
    return OF_USE + (0.0 if strength is None else max(each.value for each in strength.trivial.values()))


def _confidence(found: tuple[Prospect, ...], choice: str, rule: Callable[[Mapping[str, float]], str]) -> float:
    draw = random.Random(0)
    same = 0
    for _ in range(DRAWS):
        drawn = {each.choice: _drawn(draw, each) for each in found}
        same += rule(drawn) == choice
    return same / DRAWS


def _drawn(draw: random.Random, prospect: Prospect) -> float:
    """A score from the interval, as if it were normal on either side of the value."""
    score, sigma = prospect.score, draw.gauss(0, 1)
    side = score.high - score.value if sigma > 0 else score.value - score.low
    return min(1.0, max(0.0, score.value + sigma * side / 1.96))
