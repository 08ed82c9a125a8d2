"""`Advice`: what to do, how sure that is, why, and what would change it; `advise_from` derives it from the evidence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from halka.advisor.commands import commands, settings
from halka.advisor.evidence import Evidence
from halka.advisor.reasons import Reason, changes, missing, reasons
from halka.advisor.verdict import (
    GAP,
    HIGH,
    MEDIUM,
    RULE_OF_THUMB,
    Criteria,
    Prospect,
    choose,
    confidence,
    prospects,
    trainable,
)
from halka.advisor.words import CHOICES, Choice
from halka.report.units import percent
from halka.util.errors import HalkaError


@dataclass(frozen=True)
class Advice:
    """The advice.

    choice       a key of `CHOICES`
    confidence   0 to 1: how likely the same choice is, given the intervals, times a factor for what is missing
    prospects    what each choice is expected to score
    reasons      the rule that decided, then what else was measured
    change       what would change the advice
    missing      what could not be measured, or would make the advice surer
    commands     what to run next
    settings     for training, if that is advised: method, its fields, lr, steps, …
    """

    choice: Choice
    confidence: float
    prospects: tuple[Prospect, ...]
    reasons: tuple[Reason, ...]
    change: tuple[str, ...]
    missing: tuple[str, ...]
    commands: tuple[str, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def title(self) -> str:
        return CHOICES[self.choice].title

    @property
    def sure(self) -> str:
        """The confidence in a word: high, medium or low."""
        return "high" if self.confidence >= HIGH else "medium" if self.confidence >= MEDIUM else "low"

    @property
    def headline(self) -> str:
        """Title and confidence, as a sentence."""
        return f"{self.title[:1].upper()}{self.title[1:]}, with {self.sure} confidence ({percent(self.confidence)})."


def advise_from(evidence: Evidence) -> Advice:
    """The advice that follows from the evidence; the same evidence gives the same advice.

    Raises HalkaError if neither base nor hardware was probed.
    """
    usable = trainable(evidence)
    expected, criteria = prospects(usable), Criteria.of(usable)
    if expected:
        scores: dict[Choice, float] = {prospect.choice: prospect.score.value for prospect in expected}
        losses: dict[Choice, float] = {
            prospect.choice: prospect.loss.value for prospect in expected if prospect.loss is not None
        }
        choice, rule = choose(scores, criteria, losses)
        certainty = confidence(expected, choice, criteria)
    elif evidence.fit is not None:
        choice, rule, certainty = ("peft" if criteria.trainable else "base"), "hardware", 1.0
    else:
        why = "; ".join(f"{probe}: {reason}" for probe, reason in evidence.missing.items()) or "none was run"
        raise HalkaError(
            f"nothing to advise from: no probe of the base or the hardware has a result ({why}): skip fewer"
        )
    gaps = missing(evidence)
    if rule in ("few", "untried", "hardware"):
        certainty *= RULE_OF_THUMB
    return Advice(
        choice=choice,
        confidence=round(certainty * GAP ** len(gaps), 3),
        prospects=expected,
        reasons=reasons(evidence, choice, rule, expected, criteria),
        change=changes(evidence, choice, rule, expected),
        missing=gaps,
        commands=commands(usable, choice),
        settings=settings(usable, choice),
    )
