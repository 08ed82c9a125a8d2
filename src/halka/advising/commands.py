"""What to run next: every choice as commands with their flags filled in, and the settings that they train with."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from itertools import pairwise
from typing import Any

from halka.advising.evidence import Evidence, Option, Trial
from halka.advising.learning import FARTHER, best_of
from halka.core import described
from halka.methods import made

LARGER = {  # names on the hub, with their parameters; all are Apache-2.0
    "HuggingFaceTB/SmolLM2-360M-Instruct": 362 * 10**6,
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": 1711 * 10**6,
    "Qwen/Qwen2.5-7B-Instruct": 7616 * 10**6,
    "Qwen/Qwen2.5-14B-Instruct": 14_770 * 10**6,
    "Qwen/Qwen2.5-32B-Instruct": 32_764 * 10**6,
}
PACKED = 0.6  # bytes a parameter of a base in NF4, with its scales
COLLECTION, PROMPTED, ASKED = "documents", "prompted.jsonl", "questions.jsonl"
"""In the advisor's folder: the documents, the held-out examples as the base is best asked, the training questions."""


def settings(evidence: Evidence, choice: str) -> dict[str, Any]:
    """Method, its fields, learning rate and steps as the pilot chose them; empty where nothing is to be trained."""
    if choice not in ("peft", "peft+rag", "full"):
        return {}
    trial = _trial(evidence, choice)
    if trial is None:
        return {"method": "full" if choice == "full" else "lora", **_room(evidence, "lora")}
    usual = described(made(trial.method, {}))["fields"]
    own = {key: value for key, value in trial.fields.items() if value != usual[key] or key == "rank"}
    assert evidence.learnability is not None
    how = {"lr": trial.lr, "steps": _steps(trial), "batch_size": evidence.learnability.batch_size}
    return {"method": trial.method, **own, **how, **_room(evidence, trial.method)}


def commands(evidence: Evidence, choice: str) -> tuple[str, ...]:
    """The commands of a choice, ready to be pasted."""
    return tuple(shlex.join(each) for each in COMMANDS[choice](evidence))


def _train(evidence: Evidence, choice: str, flags: list[str], out: str) -> list[str]:
    said = ["halka", "train", "--base", evidence.subject.base]
    for key, value in settings(evidence, choice).items():
        said += _flag(key, value)
    return [*said, *flags, "-o", out]


def _flag(key: str, value: Any) -> list[str]:
    name = "--" + key.replace("_", "-")
    if isinstance(value, bool):
        return [name] if value else ["--no-" + key.replace("_", "-")]
    told = (
        ",".join(map(str, value))
        if isinstance(value, tuple | list)
        else f"{value:g}"
        if isinstance(value, float)
        else value
    )
    return [name, str(told)]


def _steps(trial: Trial) -> int:
    """To where its curve was lowest, or on, as far as it was followed, if that was at its end."""
    lowest = min(trial.curve, key=lambda point: point[1], default=(trial.steps, 0.0))[0]
    return lowest if lowest < trial.steps else FARTHER * trial.steps


def _trial(evidence: Evidence, choice: str) -> Trial | None:
    trials = () if evidence.learnability is None else evidence.learnability.trials
    if choice == "full":
        return next((each for each in trials if each.method == "full"), None)
    return best_of([each for each in trials if each.method != "full"], passages=choice == "peft+rag")


def _room(evidence: Evidence, method: str) -> dict[str, Any]:
    """What makes the method fit: a packed base, checkpointing."""
    option = _option(evidence, method)
    if option is None:
        return {}
    return ({"quantize": option.quantize} if option.quantize else {}) | (
        {"checkpointing": True} if option.checkpointing else {}
    )


def _option(evidence: Evidence, method: str) -> Option | None:
    return (
        None if evidence.fit is None else next((each for each in evidence.fit.options if each.method == method), None)
    )


def _evaluate(evidence: Evidence, adapter: str | None, data: list[str]) -> list[str]:
    own = [] if adapter is None else ["--adapter", adapter]
    return ["halka", "evaluate", "--base", evidence.subject.base, *own, *data, "--metrics", evidence.subject.metric]


def _prompt(evidence: Evidence) -> list[list[str]]:
    return [_evaluate(evidence, None, ["--data", f"{evidence.subject.out}/{PROMPTED}"])]


def _peft(evidence: Evidence) -> list[list[str]]:
    return [_train(evidence, "peft", [*evidence.subject.flags], "runs/advised")]


def _full(evidence: Evidence) -> list[list[str]]:
    return [_train(evidence, "full", [*evidence.subject.flags], "runs/advised")]


def _rag(evidence: Evidence) -> list[list[str]]:
    return [["halka", "ask", "--base", evidence.subject.base, *_collection(evidence), "your question"]]


def _both(evidence: Evidence) -> list[list[str]]:
    out = evidence.subject.out
    rows = ["-o", f"{out}/passages.jsonl", "--collections", out]
    return [
        ["halka", "docs", "examples", COLLECTION, f"{out}/{ASKED}", *rows],
        _train(evidence, "peft+rag", ["--data", f"{out}/passages.jsonl", "--validation", "0.1"], "runs/advised"),
        [
            *("halka", "ask", "--base", evidence.subject.base, "--adapter", "runs/advised/adapter"),
            *(*_collection(evidence), "your question"),
        ],
    ]


def _collection(evidence: Evidence) -> list[str]:
    return ["--collection", COLLECTION, "--collections", evidence.subject.out]


def _data(evidence: Evidence) -> list[list[str]]:
    base, flags = evidence.subject.base, evidence.subject.flags
    files = [after for flag, after in pairwise(flags) if flag == "--data"]
    look = [["halka", "data", "preview", *files, "--base", base]] if files else []
    return [*look, _again(evidence, base)]


def _base(evidence: Evidence) -> list[list[str]]:
    return [_again(evidence, _larger(evidence))]


def _larger(evidence: Evidence) -> str:
    """The first of `LARGER` with twice the parameters, whose packed weights the hardware holds; else the first such."""
    twice = [name for name, parameters in LARGER.items() if parameters >= 2 * evidence.subject.parameters]
    memory = None if evidence.fit is None else evidence.fit.memory
    fits = [name for name in twice if memory is None or PACKED * LARGER[name] <= memory]
    return (fits or twice or [*LARGER][-1:])[0]


def _again(evidence: Evidence, base: str) -> list[str]:
    subject = evidence.subject
    documents = [part for path in subject.paths for part in ("--documents", path)]
    return ["halka", "advise", "--base", base, *subject.flags, *documents]


COMMANDS: dict[str, Callable[[Evidence], list[list[str]]]] = {
    "prompt": _prompt,
    "rag": _rag,
    "peft": _peft,
    "peft+rag": _both,
    "full": _full,
    "data": _data,
    "base": _base,
}
