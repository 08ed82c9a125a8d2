"""The verdict: a pure function of the evidence. Its rules stand here; `thresholds.py` has what they decide by.

What the hardware cannot train, not even one example at a time, is left out before.

1. Nothing is of use: the best is not far enough above answers that need no model (`needed`), or misses the target.
   Where nothing can be trained, the base is too large. As long as the loss still falls with more examples, the data are
   too few; as long as a trial's curve still falls by `LEARNING`, it was too short, and tuning goes on. Of fewer than
   `FEW_EXAMPLES` more come first; without a trial tuning is untried, and is tried; only else the base is too weak.
2. A target that is reached is reached: the cheapest choice that does (`CHOICES` has their order).
3. More or better data come first where they promise `WORTH_GATHERING` beyond all else.
4. What is expected within `TOLERANCE` of the best, and above answers that need no model, is as good, unless another
   such leaves less than `HALF` of its loss (what is nearly all right is good whatever it leaves). The cheapest of those
   is taken.
5. Where there are fewer than `FEW_EXAMPLES`, more come first, unless what there is suffices: no curve over so few tells
   what training on more would bring. Retrieval needs none.

The confidence is the share of draws from the prospects' intervals in which the same is chosen, times `UNSURE` for each
thing that was not looked at, and times `UNTRIED` where a rule of thumb chose (few, untried, hardware). In a draw all
scores are of the same held-out questions; losses are drawn apart.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from halka.advisor.advice import CHOICES, TRAINED, Advice, Prospect
from halka.advisor.commands import commands, settings
from halka.advisor.evidence import Evidence
from halka.advisor.prospects import Bar, falls_with_data, prospects, still_learns, trainable
from halka.advisor.reasons import changes, missing, reasons
from halka.advisor.thresholds import (
    FEW_EXAMPLES,
    HALF,
    LEARNING,
    OF_THE_REST,
    OF_USE,
    TOLERANCE,
    UNSURE,
    UNTRIED,
    WORTH_GATHERING,
)
from halka.evaluation.metrics import Score
from halka.util.errors import HalkaError

DRAWS = 2000


def advise_from(evidence: Evidence) -> Advice:
    """What the evidence says to do. The same evidence gives the same advice.

    Raises ValueError where there is no evidence at all.
    """
    there = trainable(evidence)
    found, bar = prospects(there), _bar(there)
    if found:
        scores = {each.choice: each.score.value for each in found}
        losses = {each.choice: each.loss.value for each in found if each.loss is not None}
        choice, rule = chosen(scores, bar, losses)
        confidence = _confidence(found, choice, bar)
    elif evidence.fit is not None:
        choice, rule, confidence = ("peft" if bar.trainable else "base"), "hardware", 1.0
    else:
        raise HalkaError(
            "there is nothing to advise from: every probe that asks base or hardware was skipped or could not run "
            f"({'; '.join(f'{name}: {why}' for name, why in evidence.missing.items()) or 'none was there'}): skip fewer"
        )
    lacking = missing(evidence)
    if rule in ("few", "untried", "hardware"):
        confidence *= UNTRIED
    return Advice(
        choice=choice,
        confidence=round(confidence * UNSURE ** len(lacking), 3),
        prospects=found,
        reasons=reasons(evidence, choice, rule, found, bar),
        change=changes(evidence, choice, rule, found),
        missing=lacking,
        commands=commands(there, choice),
        settings=settings(there, choice),
    )


def needed(trivial: float) -> float:
    """The score from which something is of use, by what answers that need no model score."""
    return trivial + min(OF_USE, OF_THE_REST * (1 - trivial))


def chosen(scores: Mapping[str, float], bar: Bar, losses: Mapping[str, float] | None = None) -> tuple[str, str]:
    """The choice, and the rule that made it.

    The rules are useless, hardware, learning, few, untried, target, data, best, cheapest and loss.
    """
    ways = {each: scores[each] for each in CHOICES if each in scores and each != "data"}
    best = max(ways.values(), default=0.0)
    gathered = max(best, scores.get("data", 0.0))
    few = bar.examples is not None and bar.examples < FEW_EXAMPLES
    if gathered < bar.needed:
        return _where_nothing_is_of_use({each: ways[each] for each in TRAINED if each in ways}, bar, few)
    if bar.target is not None and best >= bar.target:
        return next(each for each, score in ways.items() if score >= bar.target), "target"
    if "data" in scores and (gathered - best > WORTH_GATHERING or best < bar.needed):
        return "data", "data"
    good = [
        each for each, score in ways.items() if score >= best - TOLERANCE and (score > bar.trivial or score == best)
    ]
    known = losses or {}
    least = min((known[each] for each in good if each in known), default=0.0)
    kept = [each for each in good if HALF * known.get(each, 0.0) <= least or ways[each] >= 1 - TOLERANCE]
    choice = kept[0]
    if few and choice != "rag" and best < 1 - TOLERANCE:
        return "data", "few"
    if choice != good[0]:
        return choice, "loss"
    return choice, "best" if ways[choice] == best else "cheapest"


def _where_nothing_is_of_use(tried: Mapping[str, float], bar: Bar, few: bool) -> tuple[str, str]:
    """The first rule's choice; `tried` are the scores of what was trained."""
    if not bar.trainable:
        return "base", "hardware"
    if bar.falling:
        return "data", "useless"
    if bar.learning and tried:
        return max(tried, key=tried.__getitem__), "learning"
    if few:
        return "data", "few"
    return ("base", "useless") if tried else ("peft", "untried")


def _bar(evidence: Evidence) -> Bar:
    target, learned, strength = evidence.subject.target, evidence.learnability, evidence.strength
    trivial = 0.0 if strength is None else max(each.value for each in strength.trivial.values())
    options = () if evidence.fit is None else evidence.fit.options
    return Bar(
        needed=needed(trivial) if target is None else target,
        trivial=trivial,
        target=target,
        falling=learned is not None and falls_with_data(learned),
        learning=learned is not None and still_learns(learned, LEARNING),
        examples=evidence.subject.train,
        trainable=not options or any(each.largest_batch != 0 for each in options),
    )


def _confidence(found: tuple[Prospect, ...], choice: str, bar: Bar) -> float:
    """The share of draws in which the same is chosen."""
    rng = np.random.default_rng(0)
    lucks = _lucks(found, rng)
    losses = {each.choice: (each.loss, rng.standard_normal(DRAWS)) for each in found if each.loss is not None}
    same = 0
    for draw in range(DRAWS):
        drawn = {each.choice: min(1.0, _at(each.score, lucks[each.choice][draw])) for each in found}
        left = {each: _at(loss, luck[draw]) for each, (loss, luck) in losses.items()}
        same += chosen(drawn, bar, left)[0] == choice
    return same / DRAWS


def _lucks(found: tuple[Prospect, ...], rng: np.random.Generator) -> dict[str, np.ndarray]:
    """How far each score lies from what was seen, in standard deviations, draw by draw.

    All that were asked the same questions are asked the same draw of them, so what they share tells nothing apart.
    Those of which no answers are known, or all are worth the same, are drawn by themselves.
    """
    asked = max(len(each.values) for each in found)
    questions = rng.integers(max(1, asked), size=(DRAWS, asked))
    lucks = {}
    for each in found:
        luck, values = rng.standard_normal(DRAWS), np.array(each.values)
        if len(values) == asked and len({*each.values}) > 1:
            means = values[questions].mean(axis=1)
            luck = (means - means.mean()) / means.std()
        lucks[each.choice] = luck
    return lucks


def _at(score: Score, luck: float) -> float:
    """A value of the interval, as if it were normal on either side; not below 0."""
    side = score.high - score.value if luck > 0 else score.value - score.low
    return max(0.0, score.value + luck * side / 1.96)
