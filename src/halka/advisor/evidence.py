"""What the probes measured, as plain dataclasses that are written to JSON and read back unchanged.

Losses are means per token, in nats. Scores are of the task's metric, scaled to 0 to 1, higher is better. Both carry
their 95 % interval. Field names are the JSON's keys: they do not change.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import GenericAlias
from typing import Any, Literal, TypeVar, get_args

from pydantic import ConfigDict, TypeAdapter

from halka.evaluation.metrics import Score
from halka.methods import all_methods, build_method, described
from halka.methods.lora import with_alpha
from halka.util.dtypes import Dtype, Quantize

T = TypeVar("T")

Condition = Literal["closed", "examples", "documents", "both"]
"""How the base is prompted: the question alone, after worked examples, with retrieved passages, with both."""

CLOSED, EXAMPLES, DOCUMENTS, BOTH = CONDITIONS = get_args(Condition)

ProbeName = Literal["fit", "cleanliness", "strength", "knowledge", "learnability"]

ALWAYS_LISTED = ("rank", "targets")
"""Fields of a method that its settings list even where they are the defaults."""


@dataclass(frozen=True)
class Subject:
    """What the evidence is about: the base, the data, the metric, and how they were used.

    train, held_out   numbers of examples; `split_off` where the held-out ones were taken from the training examples
    length            the 90th percentile of the training examples' lengths in tokens
    documents         number of documents
    passages          passages in a prompt
    tasks             tasks like this one, for storage and serving
    target            the score that suffices, 0 to 1, if the user named one
    flags             flags of `halka train` that name the data
    again             flags of `halka advise` that ask the same question again
    out               the advice folder
    key               hash of base, data, documents and settings
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
    dtype: Dtype = "bfloat16"
    quantize: Quantize | None = None
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
    """The base without training, beside baselines that need no model.

    shots     worked examples in the prompt under the condition "examples", if the context has room for them
    losses    of the answers, under "closed" and "examples"
    unigram   the loss of a unigram model of the training answers
    scores    by condition; none under "examples" where time was left for a few answers alone
    values    each held-out answer's value, by condition; all probes keep the same order of examples
    trivial   scores of "majority" (always the most frequent answer) and "copy" (the question itself)
    """

    shots: int
    losses: Mapping[str, Score]
    unigram: float
    scores: Mapping[str, Score]
    values: Mapping[str, tuple[float, ...]]
    trivial: Mapping[str, Score]

    @property
    def best_trivial(self) -> float:
        """The best score of answers that need no model."""
        return max(score.value for score in self.trivial.values())


@dataclass(frozen=True)
class Knowledge:
    """Losses of the answers with worked examples and with retrieved passages in the prompt.

    losses   by condition ("documents" and "both" only where there are documents), then by part of the answers' tokens:
             "all", "form" (those that a quarter of the other answers contain, too) and "content" (the rest)
    tokens   number of tokens of each part
    found    share of held-out examples whose answer occurs in their retrieved passages
    scores, values   under "documents" and "both"
    """

    losses: Mapping[str, Mapping[str, Score]]
    tokens: Mapping[str, int]
    found: float | None = None
    scores: Mapping[str, Score] = field(default_factory=dict)
    values: Mapping[str, tuple[float, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Trial:
    """A short training run of the pilot.

    examples   training examples that it was given
    seen       those of them that its steps reached; None in evidence of older versions
    rows       examples of a step, fewer than `Learnability.batch_size` where they are long; None likewise
    passages   whether its prompts contain retrieved passages
    curve      (step, held-out loss)
    expected   the loss extrapolated to a longer run
    score, values   of its answers to the held-out examples
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
    rows: int | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """The method's fields, as `listed_fields` selects them."""
        return listed_fields(self.method, self.fields)

    @property
    def reached(self) -> int:
        """Different examples that it was trained on."""
        return self.examples if self.seen is None else self.seen


@dataclass(frozen=True)
class Learnability:
    """The pilot: short training runs and what follows from them together.

    trials     all runs; those that differ in the number of examples alone are the curve over data size
    examples   all training examples that the user has; 0 in evidence of older versions
    owned      the loss expected from training on all of them, where the trials reached fewer
    more       the loss expected from `times` as many; None where all trials reached about as many
    agreement  Cohen's kappa of the trials with each other and with the labels; None where answers are not labels
    suspects   places of held-out examples to which all trials give the same answer, and not the labelled one
    failed     trials that were left out, each with the reason
    batch_size   the most examples of a step
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
    failed: tuple[str, ...] = ()

    def best(self, *, passages: bool = False) -> Trial | None:
        """The small adapter with the lowest loss among those given all examples, with or without passages."""
        small = [trial for trial in self.trials if trial.passages == passages and trial.method != "full"]
        most = max((trial.examples for trial in small), default=0)
        return min(
            (trial for trial in small if trial.examples == most), key=lambda trial: trial.loss.value, default=None
        )

    @property
    def full(self) -> Trial | None:
        """The trial of full fine-tuning."""
        return next((trial for trial in self.trials if trial.method == "full"), None)


@dataclass(frozen=True)
class Cleanliness:
    """Defects of the data that can be seen without a model: numbers of examples, and some of their places.

    repeated        training examples that occur twice
    contradictory   training examples with the prompt of another and a different answer
    leaked          held-out examples whose prompt is in the training data
    answers         different answers among the training examples
    held_out        held-out examples that were checked: all of them, also where the base is asked fewer
    """

    repeated: int
    contradictory: int
    leaked: int
    answers: int
    places: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    held_out: int = 0


@dataclass(frozen=True)
class Option:
    """A method in the way it is best trained on the hardware. Sizes in bytes; None is unknown.

    stored, served   bytes of all tasks on disk, and in memory when they are served together
    """

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
    """What each method needs on the hardware, which has `memory` bytes (None if unknown).

    options   each method in the first way that fits: as it is, with checkpointing, on a quantised base
    parts     bytes of each method as it is: weights, gradients, optimizer, activations, allocator
    process   bytes of the process besides the run's own
    shown     options for prompts with passages, of the method that is trained so
    untried   quantised forms that cannot be used here, and why
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
        """How a method is trained there, with or without passages; None where that was not estimated."""
        options = self.shown if passages and self.shown else self.options
        return next((option for option in options if option.method == method), None)


@dataclass(frozen=True)
class Time:
    """The minutes that the probes of the base had, and those that they took; loading it and indexing are neither.

    cuts   what was left out, or ended early, to keep them, in sentences
    """

    budget: float
    minutes: Mapping[str, float]
    cuts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Evidence:
    """Results of all probes. None is a probe that was skipped or could not run; `missing` says why.

    time   None in evidence of older versions
    """

    subject: Subject
    strength: Strength | None = None
    knowledge: Knowledge | None = None
    learnability: Learnability | None = None
    cleanliness: Cleanliness | None = None
    fit: Fit | None = None
    missing: Mapping[str, str] = field(default_factory=dict)
    time: Time | None = None

    @property
    def losses(self) -> dict[str, Mapping[str, Score]]:
        """The base's losses by condition and part."""
        losses: dict[str, Mapping[str, Score]] = {}
        if self.strength is not None:
            losses |= {condition: {"all": loss} for condition, loss in self.strength.losses.items()}
        return losses if self.knowledge is None else {**losses, **self.knowledge.losses}

    @property
    def scores(self) -> dict[str, Score]:
        """The base's scores by condition."""
        strength, knowledge = self.strength, self.knowledge
        return {**(strength.scores if strength else {}), **(knowledge.scores if knowledge else {})}


def best_condition(scores: Mapping[str, Score]) -> str:
    """The condition with the highest score; of equal ones the first, which has the shorter prompt."""
    return max(scores, key=lambda condition: scores[condition].value)


def listed_fields(method: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Rank, targets and what differs from the method's defaults; all fields of a method that Halka does not have."""
    if method not in all_methods():
        return dict(fields)
    defaults = described(build_method(method, {}))["fields"]
    named = with_alpha(fields)
    return {key: value for key, value in named.items() if key in ALWAYS_LISTED or value != defaults.get(key)}


def from_json(kind: type[T], value: Any) -> T:
    """`value`, read from JSON, as the dataclass `kind`. Raises ValueError for a value of another shape."""
    one_of_it: Any = GenericAlias(tuple, (kind,))  # pydantic takes no `config` for a dataclass itself
    return TypeAdapter(one_of_it, config=ConfigDict(extra="forbid")).validate_python([value])[0]
