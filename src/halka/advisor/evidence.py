"""What the probes found: plain data that goes to JSON unchanged and comes back. Nothing here decides anything,
except which trial is the best.

Losses are means a token, in nats; scores are of the task's metric as a share of its range, 0 to 1, higher is better.
Each has its 95 % interval.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, Union, get_args, get_origin, get_type_hints

from halka.core import described
from halka.evaluation.metrics import Score
from halka.methods import all_methods, build_method

TOLD = ("rank", "targets")  # of a method's fields, whatever they are


@dataclass(frozen=True)
class Subject:
    """Whose evidence it is: the base, the data, the metric, and what of them was looked at.

    train, held_out   numbers of examples; `split_off` where the held-out ones were taken from those to train on
    length            tokens that nine in ten training examples stay below
    max_new_tokens, dtype, quantize, passages   how the base was loaded and asked
    documents         how many there are
    flags, again      how `halka train` names the data, and what `halka advise` is given to ask again
    out               the folder with the evidence
    target            the score that is needed, 0 to 1, if one was named
    key               of which question it is: other data, base, documents or ways of asking have another
    """

    base: str
    parameters: int
    data: str
    train: int
    held_out: int
    metric: str
    length: int
    split_off: bool = False
    max_new_tokens: int = 64
    dtype: str = "bfloat16"
    quantize: str | None = None
    passages: int = 3
    documents: int = 0
    flags: tuple[str, ...] = ()
    again: tuple[str, ...] = ()
    out: str = "advice"
    tasks: int = 1
    target: float | None = None
    key: str = ""


@dataclass(frozen=True)
class Strength:
    """The base without training, beside what needs no model.

    shots     worked examples in the prompt under the condition "examples"
    losses    of the answers, by condition: "closed" and "examples"
    unigram   the loss of guessing each token by how often it stands in the training answers
    scores    by condition
    values    each held-out example's worth, by condition, in one order for all probes
    trivial   scores of "majority" (always the commonest answer) and "copy" (the question itself)
    """

    shots: int
    losses: Mapping[str, Score]
    unigram: float
    scores: Mapping[str, Score]
    values: Mapping[str, tuple[float, ...]]
    trivial: Mapping[str, Score]


@dataclass(frozen=True)
class Knowledge:
    """What falls with examples is form; what falls only with documents is knowledge.

    losses   by condition ("closed", "examples", "documents", "both"; the last two only with documents), and of that by
             part: "all", "form" (tokens that a quarter of the other answers have, too), "content" (the rest)
    tokens   how many tokens each part has
    found    the share of examples whose answer stands in the passages that were found for it
    scores, values   under "documents" and "both"
    """

    losses: Mapping[str, Mapping[str, Score]]
    tokens: Mapping[str, int]
    found: float | None = None
    scores: Mapping[str, Score] = field(default_factory=dict)
    values: Mapping[str, tuple[float, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Trial:
    """A short training run: `curve` has (step, held-out loss); `expected` is its loss if it went on for long.

    examples   how many it was given to train on
    seen       how many of them its steps came to, the shorter trials not to all; None where that was not kept
    passages   whether questions came with passages
    score, values   of its answers, where they were asked for
    """

    name: str
    method: str
    fields: Mapping[str, Any]
    lr: float
    examples: int
    passages: bool
    steps: int
    parameters: int
    curve: tuple[tuple[int, float], ...]
    loss: Score
    expected: Score | None = None
    score: Score | None = None
    values: tuple[float, ...] = ()
    seen: int | None = None

    @property
    def own(self) -> dict[str, Any]:
        """Those of its fields that are told (`own_fields`)."""
        return own_fields(self.method, self.fields)


@dataclass(frozen=True)
class Learnability:
    """What short training runs learned.

    trials     all of them; those of one kind that saw fewer examples are the curve over data size
    examples   how many there are to train on, of which a pilot is given a part; 0 where that was not kept
    owned      the loss to expect of them all, where the trials saw fewer
    more       the loss to expect with `times` as many; None where all trials saw about as many
    agreement  how far two trials agree with each other beyond chance, and with the given answers (Cohen's kappa);
               None where answers are not of few kinds. Models that agree with each other and not with the labels tell
               of wrong labels
    suspects   places of held-out examples to which all trials give the same answer, another than theirs
    """

    batch_size: int
    seconds: float
    trials: tuple[Trial, ...]
    times: int = 4
    more: Score | None = None
    agreement: tuple[float, float] | None = None
    suspects: tuple[str, ...] = ()
    examples: int = 0
    owned: Score | None = None

    def best(self, *, passages: bool = False) -> Trial | None:
        """Of the small adapters on all of the data, with or without passages, the one with the lowest loss."""
        alike = [each for each in self.trials if each.passages == passages and each.method != "full"]
        most = max((each.examples for each in alike), default=0)
        return min((each for each in alike if each.examples == most), key=lambda each: each.loss.value, default=None)


@dataclass(frozen=True)
class Cleanliness:
    """What is wrong with the data by itself: numbers of examples, and some of their places.

    repeated        stand in the training data twice
    contradictory   ask what another asks, and have another answer
    leaked          held-out examples whose question stands in the training data
    answers         different answers among the training examples
    held_out        how many held-out examples were looked at: all, where the base may be asked fewer
    """

    repeated: int
    contradictory: int
    leaked: int
    answers: int
    places: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    held_out: int = 0


@dataclass(frozen=True)
class Option:
    """One way of training on the hardware. Bytes and seconds; None is unknown."""

    method: str
    quantize: str | None
    checkpointing: bool
    memory: int
    fits: bool | None
    largest_batch: int | None
    trained: int
    step_seconds: float | None
    stored: int
    served: int


@dataclass(frozen=True)
class Fit:
    """What every family needs on the hardware: `memory` bytes of it, None if they are not known.

    options   of each family what fits best: as it is, with checkpointing, on a packed base
    parts     bytes by part of each method as it is: weights, gradients, optimizer, activations, allocator
    process   bytes beside a run's own
    shown     the options of what is trained with passages, for prompts that are as long as those
    untried   forms of the base that could not be tried where others did not fit, and why
    """

    device: str
    memory: int | None
    process: int
    length: int
    batch_size: int
    tasks: int
    options: tuple[Option, ...]
    parts: Mapping[str, Mapping[str, int]]
    shown: tuple[Option, ...] = ()
    untried: Mapping[str, str] = field(default_factory=dict)

    def option(self, method: str, *, passages: bool = False) -> Option | None:
        """How a method is trained there, with or without passages; None where that was not looked at."""
        options = self.shown if passages and self.shown else self.options
        return next((each for each in options if each.method == method), None)


@dataclass(frozen=True)
class Evidence:
    """All of it; None is a probe that was skipped or had nothing to look at, and `missing` says why."""

    subject: Subject
    strength: Strength | None = None
    knowledge: Knowledge | None = None
    learnability: Learnability | None = None
    cleanliness: Cleanliness | None = None
    fit: Fit | None = None
    missing: Mapping[str, str] = field(default_factory=dict)


def own_fields(method: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Rank and places, and what is not the method's usual; of a method that is not here, all."""
    if method not in all_methods():
        return dict(fields)
    usual = described(build_method(method, {}))["fields"]
    return {key: value for key, value in fields.items() if key in TOLD or value != usual.get(key)}


def restored(kind: Any, told: Any) -> Any:
    """The data of type `kind` that was written as JSON. Raises TypeError or KeyError for what is not of that shape."""
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        return None if told is None else restored(next(each for each in get_args(kind) if each is not type(None)), told)
    if is_dataclass(kind):
        hints = get_type_hints(kind)
        known = {each.name for each in fields(kind)}
        if unknown := told.keys() - known:
            raise TypeError(f"{kind} has no {', '.join(sorted(unknown))}")
        return kind(**{name: restored(hints[name], value) for name, value in told.items()})  # type: ignore[operator]
    if origin is tuple:
        inner = get_args(kind)
        kinds = [inner[0]] * len(told) if inner[1:] == (...,) else inner
        return tuple(restored(each, value) for each, value in zip(kinds, told, strict=True))
    if origin in (dict, Mapping):
        return {key: restored(get_args(kind)[1], value) for key, value in told.items()}
    return told
