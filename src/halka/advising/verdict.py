"""The verdict: a pure function of the evidence. Its rules and thresholds stand here, each with where it comes from.

1. Nothing is of use: the best is not `OF_USE` above answers that need no model, or misses the target. As long as the
   loss still falls with more examples, the data are too few; as long as a trial's curve still falls by `LEARNING`, it
   was too short, and tuning goes on; else the base is too weak.
2. A target that is reached is reached: the cheapest choice that does (`CHOICES` has their order).
3. Of fewer than `FEW` examples no curve tells what more would bring: they come first, unless what there is suffices.
4. More or better data come first where they promise `WORTH_GATHERING` beyond all else.
5. What is expected within `TOLERANCE` of the best is as good, unless another such leaves less than `HALF` of its loss
   (what is nearly all right is good whatever it leaves); of those the cheapest.

The confidence is the share of draws from the prospects' intervals in which the same is chosen, times `UNSURE` for each
thing that was not looked at. The prospects are drawn apart from each other, though all were asked the same questions.
"""

from __future__ import annotations

import random
from collections.abc import Mapping

from halka.advising.advice import CHOICES, Advice, Prospect
from halka.advising.commands import commands, settings
from halka.advising.evidence import Evidence
from halka.advising.prospects import Bar, falls_with_data, prospects, still_learns
from halka.advising.reasons import changes, missing, reasons
from halka.metrics import Score

TOLERANCE = 0.08  # score; set on the benchmark's first half (benchmarks/advisor.py): what 64 test items cannot tell
WORTH_GATHERING = 0.12  # score; set there, too: gathering data costs people's time, training does not
HALF = 0.5  # of the loss: a few dozen answers are counted right or wrong by luck, of their tokens' losses half is none
OF_USE = 0.1  # score above the best trivial answer, below which nothing was learned that helps anyone; a convention
LEARNING = 1 / 3  # of the loss, if training went on four times as long; set after a case that was held aside (SNIPS)
FEW = (
    50  # examples: where published guidance on fine-tuning begins; stated after a case that was held aside (few_lamps)
)
DRAWS = 2000
UNSURE = 0.8  # a convention


def advise_from(evidence: Evidence) -> Advice:
    """What the evidence says to do. The same evidence gives the same advice.

    Raises ValueError where there is no evidence at all.
    """
    found, bar = prospects(evidence), _bar(evidence)
    if found:
        scores = {each.choice: each.score.value for each in found}
        losses = {each.choice: each.loss.value for each in found if each.loss is not None}
        choice, rule = chosen(scores, bar, losses)
        confidence = _confidence(found, choice, bar)
    elif evidence.fit is not None:
        fits = any(each.largest_batch != 0 for each in evidence.fit.options)
        choice, rule, confidence = ("peft" if fits else "base"), "hardware", 0.5
    else:
        raise ValueError(
            "there is nothing to advise from: every probe that asks base or hardware was skipped or could not run "
            f"({'; '.join(f'{name}: {why}' for name, why in evidence.missing.items()) or 'none was there'}): skip fewer"
        )
    lacking = missing(evidence)
    return Advice(
        choice=choice,
        confidence=round(confidence * UNSURE ** len(lacking), 3),
        prospects=found,
        reasons=reasons(evidence, choice, rule, found, bar),
        change=changes(evidence, choice, found),
        missing=lacking,
        commands=commands(evidence, choice),
        settings=settings(evidence, choice),
    )


def chosen(scores: Mapping[str, float], bar: Bar, losses: Mapping[str, float] | None = None) -> tuple[str, str]:
    """The choice, and the rule that made it: useless, learning, target, few, data, best, cheapest or loss."""
    ways = {each: scores[each] for each in CHOICES if each in scores and each != "data"}
    best = max(ways.values(), default=0.0)
    gathered = max(best, scores.get("data", 0.0))
    if gathered < bar.needed:
        trained = [each for each in ("peft", "peft+rag", "full") if each in ways]
        if bar.falling or not (bar.learning and trained):
            return ("data" if bar.falling else "base"), "useless"
        return max(trained, key=ways.__getitem__), "learning"
    if bar.target is not None and best >= bar.target:
        return next(each for each, score in ways.items() if score >= bar.target), "target"
    if bar.examples is not None and bar.examples < FEW and best < 1 - TOLERANCE:
        return "data", "few"
    if "data" in scores and (gathered - best > WORTH_GATHERING or best < bar.needed):
        return "data", "data"
    good = [each for each, score in ways.items() if score >= best - TOLERANCE]
    known = losses or {}
    least = min((known[each] for each in good if each in known), default=0.0)
    kept = [each for each in good if HALF * known.get(each, 0.0) <= least or ways[each] >= 1 - TOLERANCE]
    choice = kept[0]
    if choice != good[0]:
        return choice, "loss"
    return choice, "best" if ways[choice] == best else "cheapest"


def _bar(evidence: Evidence) -> Bar:
    target, learned, strength = evidence.subject.target, evidence.learnability, evidence.strength
    trivial = 0.0 if strength is None else max(each.value for each in strength.trivial.values())
    return Bar(
        needed=trivial + OF_USE if target is None else target,
        trivial=trivial,
        target=target,
        falling=learned is not None and falls_with_data(learned),
        learning=learned is not None and still_learns(learned, LEARNING),
        examples=evidence.subject.train,
    )


def _confidence(found: tuple[Prospect, ...], choice: str, bar: Bar) -> float:
    draw = random.Random(0)
    same = 0
    for _ in range(DRAWS):
        scores = {each.choice: min(1.0, _drawn(draw, each.score)) for each in found}
        losses = {each.choice: _drawn(draw, each.loss) for each in found if each.loss is not None}
        same += chosen(scores, bar, losses)[0] == choice
    return same / DRAWS


def _drawn(draw: random.Random, score: Score) -> float:
    """A value from the interval, as if it were normal on either side; not below 0."""
    sigma = draw.gauss(0, 1)
    side = score.high - score.value if sigma > 0 else score.value - score.low
    return max(0.0, score.value + sigma * side / 1.96)
