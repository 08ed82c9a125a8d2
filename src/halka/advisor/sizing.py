"""How much is asked and trained: as many held-out examples as the time allows, and a pilot that fits into memory."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any

from halka.advisor.conditions import CLOSED, DOCUMENTS
from halka.advisor.pilot import BATCH_TOKENS, PLANS
from halka.advisor.planned import Room
from halka.advisor.questions import Questions
from halka.advisor.request import Need
from halka.data.examples import Example
from halka.data.tokens import encode_all
from halka.estimating import prepared, rehearse
from halka.estimating.hardware import PROCESS
from halka.methods import build_method
from halka.models import context
from halka.models.loading import place_of
from halka.report.units import size
from halka.util.machine import available

LEAST_HELD_OUT = 16
ASKING = 0.35  # share of the time for making answers; the rest is the pilot's
MEASURED = 64  # examples whose length with passages is looked at
TRIED = 8  # examples that tell how long an answer takes
SHARE = 0.5  # of the memory that is available, above which a pilot recomputes its activations: others need some, too
CHARACTERS = 3  # a token, where the tokenizer is not here; more of Latin letters, fewer of others


def nine_in_ten(lengths: Sequence[int]) -> int:
    """What nine in ten stay below, and not less than 16."""
    return max(16, int(statistics.quantiles([*lengths, *lengths], n=10, method="inclusive")[-1]))


def lengths_of(questions: Questions) -> tuple[int, int | None]:
    """The tokens that nine in ten training examples stay below, as they are and, with documents, with passages.

    They are no more than the base's context holds, to which training cuts them.
    """
    room = context(questions.model, None)

    def told(examples: Sequence[Example]) -> int:
        lengths = [len(each) for each in encode_all(examples, questions.model.tokenizer).items]
        return nine_in_ten(lengths) if room is None else min(nine_in_ten(lengths), room)

    shown = [questions.put(each, DOCUMENTS) for each in questions.train[:MEASURED]] if questions.find else []
    return told(questions.train), told(shown) if shown else None


def guessed_length(examples: Sequence[Example]) -> int:
    """The tokens that nine in ten examples stay below, by their characters."""
    return nine_in_ten([sum(len(one.content) for one in each.messages) // CHARACTERS for each in examples])


# ── time ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def answer_seconds(questions: Questions) -> float:
    """How long the base takes to answer a held-out example, as a few tell."""
    some = questions.held_out[:TRIED]
    started = time.perf_counter()
    questions.answers(None, [questions.put(each, CLOSED) for each in some])
    return (time.perf_counter() - started) / len(some)


def answers_each(questions: Questions) -> int:
    """How many times as long as an answer takes is spent on each held-out example."""
    return 3 + len(PLANS) + (0 if questions.find is None else 8)  # closed ones; with examples they cost twice


def affordable(questions: Questions, seconds: float, answer: float) -> int:
    """How many held-out examples are asked, if `seconds` are for all and an answer takes so long."""
    count = max(LEAST_HELD_OUT, int(ASKING * seconds / (answer * answers_each(questions))))
    return min(count, len(questions.held_out))


def pilot_seconds(seconds: float, spent: float, answers: float) -> float:
    """What is left for training after what was spent, and what the trials' answers will take; not less than a share."""
    return max(seconds - spent - answers, (1 - ASKING) * seconds / 2)


# ── memory ──────────────────────────────────────────────────────────────────────────────────────────────────────────


class NoRoom(RuntimeError):
    """Something does not fit into the memory that is free here; the message has the figures."""


def base_lacks(base_bytes: int) -> str | None:
    """Why a base cannot be loaded here; None where it can. It passes the main memory on its way to a GPU."""
    room, gpu = _here()
    room, takes = min(room, available()), base_bytes + (0 if gpu else PROCESS)
    return f"the base takes {size(takes)} where {size(room)} are free here" if takes > room else None


def pilot_room(need: Need, config: Any, lengths: Sequence[int]) -> Room:
    """How the pilot fits into what is available here; its passes go one after another, so the largest counts.

    lengths   tokens of the trials' examples, and of those with passages where there are some

    Raises NoRoom where the small adapters do not, whatever is recomputed.
    """
    room, gpu = _here()

    def needed(method: str, trials: int, length: int, checkpointing: bool) -> int:
        rows = trials * max(1, min(need.batch_size, BATCH_TOKENS // length))
        how: dict[str, Any] = {"dtype": need.dtype, "quantize": need.quantize, "checkpointing": checkpointing}
        _, setup = prepared(config, rows=rows, length=length, **how)
        return rehearse(config, build_method(method, {}), setup, gpu=gpu).memory.total + (0 if gpu else PROCESS)

    small = [(len(PLANS), lengths[0]), *((1, length) for length in lengths[1:])]
    checkpointing = any(needed("lora", *each, False) > SHARE * room for each in small)
    least = max(needed("lora", *each, True) for each in small) if checkpointing else 0
    if least > room:
        raise NoRoom(f"the pilot takes {size(least)} where {size(room)} are free here")
    if not need.full:
        return Room(checkpointing)
    whole = needed("full", 1, lengths[0], checkpointing)
    if not checkpointing and whole > SHARE * room:
        checkpointing, whole = True, needed("full", 1, lengths[0], True)
    if whole > room:
        return Room(checkpointing, f"it takes {size(whole)} to be tried where {size(room)} are free here")
    return Room(checkpointing)


def _here() -> tuple[int, bool]:
    """Bytes that can be held where a base is loaded to, on a CPU those of the process too; whether that is a GPU."""
    place = place_of()
    return available(place), place.type == "cuda"
