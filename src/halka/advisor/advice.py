"""`Advice`: what to do, how sure that is, why, and what to run next; `advise_from` derives it from the evidence."""

from __future__ import annotations

import hashlib
import json
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

from halka.advisor.advice_folder import (
    COLLECTION,
    HELD_OUT,
    HELD_OUT_WITH_PASSAGES,
    PROMPTED,
    PROMPTED_WITH_PASSAGES,
    TRAIN_WITH_PASSAGES,
)
from halka.advisor.evidence import BOTH, Evidence, Option, Trial, best_condition, listed_fields
from halka.advisor.reasons import Reason, changes, gaps, reasons
from halka.advisor.statistics import HORIZON, lowest_before_rising
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
from halka.advisor.words import CHOICES, TRAINED, Choice
from halka.methods import build_method, described
from halka.report.units import percent
from halka.util.errors import HalkaError


class Larger(NamedTuple):
    """A base to try instead: millions of parameters, and megabytes that LoRA takes on it as it is and in NF4.

    They are `halka.estimate`'s, of one example of 256 tokens with checkpointing on a GPU, without the process.
    """

    parameters: int
    plain: int
    nf4: int


LARGER = {  # by names on the hub; all have the licence Apache-2.0
    "HuggingFaceTB/SmolLM2-360M-Instruct": Larger(362, 1030, 950),
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": Larger(1711, 4120, 1790),
    "Qwen/Qwen2.5-7B-Instruct": Larger(7616, 16_380, 8520),
    "Qwen/Qwen2.5-14B-Instruct": Larger(14_770, 31_290, 13_140),
    "Qwen/Qwen2.5-32B-Instruct": Larger(32_764, 68_600, 22_470),
}
MILLION = 10**6

Settings = dict[str, Any]
Command = list[str]


@dataclass(frozen=True)
class Advice:
    """The advice.

    choice       a key of `CHOICES`
    confidence   0 to 1: how likely the same choice is, given the intervals, times a factor for what is missing
    prospects    what each choice is expected to score, the cheapest first
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
    change: tuple[Reason, ...]
    missing: tuple[Reason, ...]
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
    missing = (*(Reason(name, f"{name}: {why}") for name, why in evidence.missing.items()), *gaps(evidence))
    if rule in ("few", "untried", "hardware"):
        certainty *= RULE_OF_THUMB
    return Advice(
        choice=choice,
        confidence=round(certainty * GAP ** len(missing), 3),
        prospects=expected,
        reasons=reasons(evidence, choice, rule, expected, criteria),
        change=changes(evidence, choice, rule, expected),
        missing=missing,
        commands=commands(usable, choice),
        settings=settings(usable, choice),
    )


# ── settings for training ───────────────────────────────────────────────────────────────────────────────────────────


def settings(evidence: Evidence, choice: Choice) -> Settings:
    """Method, its fields, learning rate, steps and batch, as the pilot chose them; empty where nothing is trained."""
    if choice not in TRAINED:
        return {}
    trial, learned = advised_trial(evidence, choice), evidence.learnability
    if trial is None or learned is None:
        return _usual_settings(evidence, choice)
    batch_size = trial.rows or learned.batch_size
    steps = _steps(trial, math.ceil(evidence.subject.train / batch_size))
    memory = _memory_settings(evidence, trial.method, batch_size, trial.passages)
    return {"method": trial.method, **trial.settings, "lr": trial.lr, "steps": steps, **memory}


def _usual_settings(evidence: Evidence, choice: Choice) -> Settings:
    """Settings without a pilot: the first small method that fits, with its defaults."""
    fit = evidence.fit
    small = [option for option in (fit.options if fit else ()) if option.method != "full" and option.largest_batch != 0]
    method = "full" if choice == "full" else small[0].method if small else "lora"
    fields = listed_fields(method, described(build_method(method, {}))["fields"])
    return {"method": method, **fields, **_memory_settings(evidence, method, 8 if fit is None else fit.batch_size)}


def advised_trial(evidence: Evidence, choice: Choice) -> Trial | None:
    """The pilot's trial that the choice goes on from; the small adapter's for a choice that trains nothing."""
    learned = evidence.learnability
    if learned is None:
        return None
    return learned.full if choice == "full" else learned.best(passages=choice == "peft+rag")


def _steps(trial: Trial, epoch: int) -> int:
    """To where the trial's curve was lowest, if it rises after that; else `HORIZON` times as far, at least an epoch."""
    lowest = lowest_before_rising(trial.curve)
    return max(HORIZON * trial.steps, epoch) if lowest is None else int(lowest)


def _memory_settings(evidence: Evidence, method: str, batch_size: int, passages: bool = False) -> Settings:
    """What makes the method fit: smaller batches, several of them a step; checkpointing; a quantised base.

    Where nothing makes it fit, the settings that need least.
    """
    fit = evidence.fit
    option = None if fit is None else fit.option(method, passages=passages)
    largest = batch_size if option is None or option.largest_batch is None else option.largest_batch
    # Otherwise the largest, also where it is larger: on a CPU it may fit where a smaller one does not.
    fits = fit is None or option is None or option.fits is not False or batch_size < fit.batch_size
    rows = max(1, min(batch_size, largest) if fits else largest)
    values: Settings = {"batch_size": rows}
    if rows < batch_size:
        values["accumulate"] = math.ceil(batch_size / rows)
    if option is not None and option.checkpointing:
        values["checkpointing"] = True
    return values | _loading(evidence, option)


def _loading(evidence: Evidence, option: Option | None = None) -> Settings:
    """How the base is loaded, where that differs from the default."""
    subject = evidence.subject
    quantize = (option.quantize if option is not None else None) or subject.quantize
    dtype = {} if subject.dtype == "bfloat16" else {"dtype": subject.dtype}
    return dtype | ({} if quantize is None else {"quantize": quantize})


# ── commands ────────────────────────────────────────────────────────────────────────────────────────────────────────


def commands(evidence: Evidence, choice: Choice) -> tuple[str, ...]:
    """The commands of a choice, as lines for a shell."""
    return tuple(shlex.join(command) for command in _commands(evidence, choice))


def _commands(evidence: Evidence, choice: Choice) -> list[Command]:
    match choice:
        case "prompt":
            return [_evaluate(evidence, PROMPTED)]
        case "rag":
            return [_evaluate(evidence, PROMPTED_WITH_PASSAGES), *_ask_without_training(evidence)]
        case "peft" | "peft+rag" | "full":
            return _tuned(evidence, choice)
        case "data":
            return [*_preview(evidence), _advise_again(evidence, evidence.subject.base)]
        case "base":
            other = _other_base(evidence)
            return [] if other is None else [_advise_again(evidence, other[0], nf4=other[1])]


def _tuned(evidence: Evidence, choice: Choice) -> list[Command]:
    """Trains, evaluates what came of it and, with passages, asks it."""
    values = settings(evidence, choice)
    loading = {key: values[key] for key in ("dtype", "quantize") if key in values}
    question = json.dumps((evidence.subject.key, choice, values), sort_keys=True)  # other data have another folder
    run = _in_folder(evidence, f"run-{values['method']}-{hashlib.sha256(question.encode()).hexdigest()[:6]}")
    adapter = ["--adapter", f"{run}/adapter"]
    data, held_out, ask = [*evidence.subject.flags], HELD_OUT, []
    if choice == "peft+rag":
        held_out = HELD_OUT_WITH_PASSAGES
        data = ["--data", _in_folder(evidence, TRAIN_WITH_PASSAGES), "--validation", _in_folder(evidence, held_out)]
        ask = [[*_halka(evidence, "ask", loading), *adapter, *_ask_flags(evidence)]]
    train = [*_halka(evidence, "train", values), *data, "-o", run]
    return [train, _evaluate(evidence, held_out, loading, adapter), *ask]


def _evaluate(
    evidence: Evidence, examples: str, loading: Settings | None = None, adapter: Sequence[str] = ()
) -> Command:
    """Evaluates the base, with an adapter or without, on examples of the advice folder."""
    subject, data = evidence.subject, ["--data", _in_folder(evidence, examples)]
    metric = ["--metrics", subject.metric, "--max-new-tokens", str(subject.max_new_tokens)]
    return [*_halka(evidence, "evaluate", loading), *adapter, *data, *metric]


def _ask_without_training(evidence: Evidence) -> list[Command]:
    """`halka ask` only where passages alone scored best, because it shows no worked examples."""
    knowledge = evidence.knowledge
    with_examples = knowledge is not None and knowledge.scores and best_condition(knowledge.scores) == BOTH
    return [] if with_examples else [[*_halka(evidence, "ask"), *_ask_flags(evidence)]]


def _ask_flags(evidence: Evidence) -> list[str]:
    subject = evidence.subject
    collection = ["--collection", COLLECTION, "--collections", subject.out]
    limits = ["--passages", str(subject.passages), "--max-new-tokens", str(subject.max_new_tokens)]
    return [*collection, *limits, "your question"]


def _preview(evidence: Evidence) -> list[Command]:
    pairs = [*pairwise(evidence.subject.again)]
    files = [value for flag, value in pairs if flag == "--data"]
    shape = [part for pair in pairs if pair[0] == "--shape" for part in pair]
    return [["halka", "data", "preview", *files, "--base", evidence.subject.base, *shape]] if files else []


def _advise_again(evidence: Evidence, base: str, *, nf4: bool = False) -> Command:
    again = [*evidence.subject.again]
    if nf4:  # in place of another form; full fine-tuning cannot train a quantised base
        again = [flag for flag in again if flag != "--full"]
        if "--quantize" in again:
            del again[(at := again.index("--quantize")) : at + 2]
        again += ["--quantize", "nf4"]
    return ["halka", "advise", "--base", base, *again]


def _other_base(evidence: Evidence) -> tuple[str, bool] | None:
    """The smallest base of `LARGER` that fits the hardware and has at least twice the parameters, and whether in NF4.

    Where the base cannot be trained at all, the largest smaller one. None where none fits.
    """
    parameters, fit = evidence.subject.parameters / MILLION, evidence.fit
    room = math.inf if fit is None or fit.memory is None else (fit.memory - fit.process) / MILLION
    forms = {name: base.plain > room for name, base in LARGER.items() if min(base.plain, base.nf4) <= room}
    if fit is not None and "nf4" in fit.untried:
        forms = {name: nf4 for name, nf4 in forms.items() if not nf4}
    if fit is not None and all(option.largest_batch == 0 for option in fit.options) and fit.options:
        return next(((name, forms[name]) for name in reversed(forms) if LARGER[name].parameters < parameters), None)
    return next(((name, forms[name]) for name in forms if LARGER[name].parameters >= 2 * parameters), None)


def _halka(evidence: Evidence, command: str, values: Settings | None = None) -> Command:
    """A command that loads the base."""
    values = _loading(evidence) if values is None else values
    flags = [part for key, value in values.items() for part in _flag(key, value)]
    return ["halka", command, "--base", evidence.subject.base, *flags]


def _flag(key: str, value: Any) -> list[str]:
    name = key.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no-{name}"]
    if isinstance(value, tuple | list):
        return [f"--{name}", ",".join(map(str, value))]
    return [f"--{name}", f"{value:g}" if isinstance(value, float) else str(value)]


def _in_folder(evidence: Evidence, name: str) -> str:
    return f"{evidence.subject.out}/{name}"
