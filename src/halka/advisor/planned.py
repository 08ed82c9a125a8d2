"""`Planned`: what is settled once for a question, so that going on with it changes nothing."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Room:
    """How a pilot is trained so that it fits: with checkpointing or not, and why full fine-tuning is not tried."""

    checkpointing: bool
    without_full: str | None = None


@dataclass
class Planned:
    """What the base told when it was loaded first, and what has been done since.

    key         of which question it is
    held_out    how many held-out examples are asked; None before the base was loaded
    length, shown_length   tokens that nine in ten training examples stay below, as they are and with passages
    answer      seconds that an answer takes
    documents   how many there are
    missing     what could not be used, and why
    spent       seconds that each probe took that asks the base
    rooms       by the pilot's key how it is trained
    shown       of which examples those with passages were left
    """

    key: str
    held_out: int | None = None
    length: int | None = None
    shown_length: int | None = None
    answer: float = 0.0
    documents: int = 0
    missing: dict[str, str] = field(default_factory=dict)
    spent: dict[str, float] = field(default_factory=dict)
    rooms: dict[str, Room] = field(default_factory=dict)
    shown: str | None = None
