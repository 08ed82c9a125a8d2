"""What to run next: every choice as commands with their flags filled in, and the settings that they train with."""

from __future__ import annotations

import hashlib
import json
import math
import shlex
from collections.abc import Callable
from itertools import pairwise
from typing import Any

from halka.advisor.advice import TRAINED
from halka.advisor.conditions import BOTH, best_asked
from halka.advisor.evidence import Evidence, Option, Trial, own_fields
from halka.advisor.folder import COLLECTION, HELD_OUT, HELD_OUT_SHOWN, PROMPTED, PROMPTED_SHOWN, SHOWN
from halka.advisor.statistics import lowest_before_rising
from halka.advisor.thresholds import FARTHER
from halka.core import described
from halka.methods import build_method

LARGER = {  # names on the hub, with their parameters; all are Apache-2.0
    "HuggingFaceTB/SmolLM2-360M-Instruct": 362 * 10**6,
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": 1711 * 10**6,
    "Qwen/Qwen2.5-7B-Instruct": 7616 * 10**6,
    "Qwen/Qwen2.5-14B-Instruct": 14_770 * 10**6,
    "Qwen/Qwen2.5-32B-Instruct": 32_764 * 10**6,
}
PACKED = 0.6  # bytes a parameter of a base in NF4, with its scales


def commands(evidence: Evidence, choice: str) -> tuple[str, ...]:
    """The commands of a choice, ready to be pasted."""
    return tuple(shlex.join(each) for each in COMMANDS[choice](evidence))


# ── what is trained ─────────────────────────────────────────────────────────────────────────────────────────────────


def settings(evidence: Evidence, choice: str) -> dict[str, Any]:
    """Method, its fields, learning rate and steps as the pilot chose them; empty where nothing is to be trained."""
    if choice not in TRAINED:
        return {}
    trial = _trial(evidence, choice)
    if trial is None:
        fit = evidence.fit
        small = [each for each in (fit.options if fit else ()) if each.method != "full" and each.largest_batch != 0]
        method = "full" if choice == "full" else small[0].method if small else "lora"
        own = own_fields(method, described(build_method(method, {}))["fields"])
        return {"method": method, **own, **_room(evidence, method, 8 if fit is None else fit.batch_size)}
    assert evidence.learnability is not None
    batch_size = evidence.learnability.batch_size
    how = {"lr": trial.lr, "steps": _steps(trial, math.ceil(evidence.subject.train / batch_size))}
    return {"method": trial.method, **trial.own, **how, **_room(evidence, trial.method, batch_size, trial.passages)}


def _trial(evidence: Evidence, choice: str) -> Trial | None:
    learned = evidence.learnability
    if learned is None:
        return None
    if choice == "full":
        return next((each for each in learned.trials if each.method == "full"), None)
    return learned.best(passages=choice == "peft+rag")


def _steps(trial: Trial, once: int) -> int:
    """To where its curve was lowest, if it rises from there; else as far as it was followed, and at least `once`.

    once   the steps in which every example is seen once
    """
    lowest = lowest_before_rising(trial.curve)
    return max(FARTHER * trial.steps, once) if lowest is None else int(lowest)


def _room(evidence: Evidence, method: str, batch_size: int, passages: bool = False) -> dict[str, Any]:
    """What makes the method fit: smaller batches of which several make a step, checkpointing, a packed base.

    Where nothing does, it is what needs least.
    """
    option = _option(evidence, method, passages)
    largest = batch_size if option is None or option.largest_batch is None else option.largest_batch
    fits = option is None or option.fits is not False  # else a batch of more may: what a heap holds goes up and down
    most = max(1, min(batch_size, largest) if fits else largest)
    told: dict[str, Any] = {"batch_size": most}
    if most < batch_size:
        told["accumulate"] = math.ceil(batch_size / most)
    if option is not None and option.checkpointing:
        told["checkpointing"] = True
    return told | _form(evidence, option)


def _form(evidence: Evidence, option: Option | None) -> dict[str, Any]:
    """How the base is loaded, where that is not the usual way."""
    subject = evidence.subject
    quantize = (option.quantize if option is not None else None) or subject.quantize
    dtype = {} if subject.dtype == "bfloat16" else {"dtype": subject.dtype}
    return dtype | ({} if quantize is None else {"quantize": quantize})


def _loaded(form: dict[str, Any]) -> dict[str, Any]:
    """Of the settings that train an adapter those that load its base."""
    return {key: form[key] for key in ("dtype", "quantize") if key in form}


def _option(evidence: Evidence, method: str, passages: bool) -> Option | None:
    return None if evidence.fit is None else evidence.fit.option(method, passages=passages)


# ── the commands ────────────────────────────────────────────────────────────────────────────────────────────────────


def _halka(evidence: Evidence, command: str, form: dict[str, Any] | None = None) -> list[str]:
    """A command that loads the base."""
    form = _form(evidence, None) if form is None else form
    told = [part for key, value in form.items() for part in _flag(key, value)]
    return ["halka", command, "--base", evidence.subject.base, *told]


def _flag(key: str, value: Any) -> list[str]:
    name = "--" + key.replace("_", "-")
    if isinstance(value, bool):
        return [name] if value else ["--no-" + key.replace("_", "-")]
    if isinstance(value, tuple | list):
        return [name, ",".join(map(str, value))]
    return [name, f"{value:g}" if isinstance(value, float) else str(value)]


def _in(evidence: Evidence, name: str) -> str:
    return f"{evidence.subject.out}/{name}"


def _run(evidence: Evidence, choice: str) -> str:
    """Where what is trained is kept: another question, or other settings, have another folder."""
    form = settings(evidence, choice)
    told = json.dumps((evidence.subject.key, choice, form), sort_keys=True)
    return _in(evidence, f"run-{form['method']}-{hashlib.sha256(told.encode()).hexdigest()[:6]}")


def _prompt(evidence: Evidence) -> list[list[str]]:
    return [_best_asked(evidence, PROMPTED)]


def _best_asked(evidence: Evidence, name: str) -> list[str]:
    return [*_halka(evidence, "evaluate"), "--data", _in(evidence, name), *_judged(evidence)]


def _judged(evidence: Evidence) -> list[str]:
    return ["--metrics", evidence.subject.metric, "--max-new-tokens", str(evidence.subject.max_new_tokens)]


def _trained(evidence: Evidence, choice: str) -> list[list[str]]:
    """Training on all examples, and how good it is then."""
    form = settings(evidence, choice)
    return [
        [*_halka(evidence, "train", form), *evidence.subject.flags, "-o", _run(evidence, choice)],
        [*_tuned(evidence, "evaluate", choice), "--data", _in(evidence, HELD_OUT), *_judged(evidence)],
    ]


def _tuned(evidence: Evidence, command: str, choice: str) -> list[str]:
    """A command that loads the base with what was trained."""
    loaded = _loaded(settings(evidence, choice))
    return [*_halka(evidence, command, loaded), "--adapter", f"{_run(evidence, choice)}/adapter"]


def _rag(evidence: Evidence) -> list[list[str]]:
    """How good it is as it was best asked; `halka ask` only where that was without examples, as it shows none."""
    told = evidence.knowledge
    examples = told is not None and told.scores and best_asked(told.scores) == BOTH
    ask = [] if examples else [[*_halka(evidence, "ask"), *_asking(evidence)]]
    return [_best_asked(evidence, PROMPTED_SHOWN), *ask]


def _both(evidence: Evidence) -> list[list[str]]:
    form, held_out = settings(evidence, "peft+rag"), _in(evidence, HELD_OUT_SHOWN)
    data = ["--data", _in(evidence, SHOWN), "--validation", held_out]
    return [
        [*_halka(evidence, "train", form), *data, "-o", _run(evidence, "peft+rag")],
        [*_tuned(evidence, "evaluate", "peft+rag"), "--data", held_out, *_judged(evidence)],
        [*_tuned(evidence, "ask", "peft+rag"), *_asking(evidence)],
    ]


def _asking(evidence: Evidence) -> list[str]:
    subject = evidence.subject
    place = ["--collection", COLLECTION, "--collections", subject.out]
    how = ["--passages", str(subject.passages), "--max-new-tokens", str(subject.max_new_tokens)]
    return [*place, *how, "your question"]


def _data(evidence: Evidence) -> list[list[str]]:
    again = [*pairwise(evidence.subject.again)]
    files = [after for flag, after in again if flag == "--data"]
    shape = [part for pair in again if pair[0] == "--shape" for part in pair]
    look = [["halka", "data", "preview", *files, "--base", evidence.subject.base, *shape]] if files else []
    return [*look, _again(evidence, evidence.subject.base)]


def _base(evidence: Evidence) -> list[list[str]]:
    return [_again(evidence, _other_base(evidence))]


def _again(evidence: Evidence, base: str) -> list[str]:
    return ["halka", "advise", "--base", base, *evidence.subject.again]


def _other_base(evidence: Evidence) -> str:
    """The first of `LARGER` with twice the parameters that the hardware holds when it is packed, else the first such.

    Where not even the base can be trained, the largest smaller one that the hardware holds, else the smallest.
    """
    subject, fit = evidence.subject, evidence.fit
    holds = [each for each in LARGER if fit is None or fit.memory is None or PACKED * LARGER[each] <= fit.memory]
    if fit is not None and all(each.largest_batch == 0 for each in fit.options) and fit.options:
        smaller = [each for each in holds if LARGER[each] < subject.parameters]
        return (smaller or [*LARGER][:1])[-1]
    twice = [each for each in LARGER if LARGER[each] >= 2 * subject.parameters]
    return ([each for each in twice if each in holds] or twice or [*LARGER][-1:])[0]


COMMANDS: dict[str, Callable[[Evidence], list[list[str]]]] = {
    "prompt": _prompt,
    "rag": _rag,
    "peft": lambda evidence: _trained(evidence, "peft"),
    "peft+rag": _both,
    "full": lambda evidence: _trained(evidence, "full"),
    "data": _data,
    "base": _base,
}
