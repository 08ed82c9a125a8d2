"""`Advice`: what to do, how sure that is, why, and what would change it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from halka.advisor import words as advice_words
from halka.advisor.thresholds import HIGH, MEDIUM
from halka.evaluation.metrics import Score

CHOICES = {name: title for name, (_, title) in advice_words.CHOICES.items()}
"""What can be advised, the cheapest first."""

TRAINED = ("peft", "peft+rag", "full")
"""Of these what trains something."""


@dataclass(frozen=True)
class Prospect:
    """What a choice is expected to score, 0 to 1 with its 95 % interval, how that is known, and the answers' loss.

    values   what each held-out answer was worth from which the score is told; none where it is not told from answers
    """

    choice: str
    score: Score
    how: str
    loss: Score | None = None
    values: tuple[float, ...] = ()


@dataclass(frozen=True)
class Reason:
    """A rule that spoke: its name, what it saw in numbers, and what follows."""

    rule: str
    text: str


@dataclass(frozen=True)
class Advice:
    """The verdict.

    choice       a key of `CHOICES`
    confidence   how likely, 0 to 1, that no cheaper choice is as good and no other better, by the probes' intervals
    prospects    what each choice is expected to score, those that the evidence tells of
    reasons      rules that led here, the weightiest first
    change       what would change this advice
    missing      what was not there to be looked at, and what that leaves open
    settings     of the method, where one is to be trained: method, its fields, lr, steps, …
    commands     what to run next, ready to be pasted
    """

    choice: str
    confidence: float
    prospects: tuple[Prospect, ...]
    reasons: tuple[Reason, ...]
    change: tuple[str, ...]
    missing: tuple[str, ...]
    commands: tuple[str, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def title(self) -> str:
        return CHOICES[self.choice]

    @property
    def sure(self) -> str:
        """The confidence as a word."""
        return "high" if self.confidence >= HIGH else "medium" if self.confidence >= MEDIUM else "low"
