"""A case of the advisor's benchmark: a user's data with its splits, and how public sets are read.

Public sets are looked for in $HALKA_DATA, or in ../shared/data beside the project.
"""

from __future__ import annotations

import gzip
import json
import os
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from halka.data.examples import Example, Message
from halka.data.task import Task, load_task

TRAIN, MORE, VALIDATION, TEST = 96, 768, 32, 64
TIMES = 4  # as many examples as there are, at least, are what could be gathered
EPOCHS = 1.5
DATA = Path(os.environ.get("HALKA_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")


@dataclass(frozen=True)
class Case:
    """A user's data: what they have, and what nobody has yet.

    kind        what is to be learned, in words
    train       what they have to train on
    more        what they would have after gathering more, or after mending the labels
    validation, test
    metric      what answers are worth, one by one
    documents   by name; none if there are none
    epochs      passes over `train` that an option trains for, where that is more than its usual steps
    """

    name: str
    kind: str
    train: tuple[Example, ...]
    more: tuple[Example, ...]
    validation: tuple[Example, ...]
    test: tuple[Example, ...]
    metric: str
    max_new_tokens: int
    documents: Mapping[str, str] = field(default_factory=dict)
    epochs: float = EPOCHS


def case(
    name: str,
    kind: str,
    pool: Sequence[Example],
    test: Sequence[Example],
    metric: str,
    max_new_tokens: int,
    train: int = TRAIN,
    documents: Mapping[str, str] | None = None,
    validation: int = VALIDATION,
) -> Case:
    """The first of the pool for validation, the next to train on, all after them as what could be gathered."""
    rest = pool[validation:]
    held_out = tuple(pool[:validation])
    more = tuple(rest[: max(MORE, TIMES * train)])
    return Case(name, kind, more[:train], more, held_out, tuple(test[:TEST]), metric, max_new_tokens, documents or {})


def example(question: str, answer: str, system: str = "", references: Iterable[str] = ()) -> Example:
    first = [Message("system", system)] if system else []
    return Example((*first, Message("user", question), Message("assistant", answer)), tuple(references))


def published(name: str) -> Task:
    return load_task(Path(__file__).parent / "tasks" / f"{name}.py")


def mixed(items: Iterable[Any], seed: int = 0) -> list[Any]:
    found = [*items]
    random.Random(seed).shuffle(found)
    return found


def lines(path: str) -> list[str]:
    whole = DATA / path
    if not whole.is_file():
        raise FileNotFoundError(f"{whole} is missing: set HALKA_DATA to the folder that holds the public data sets")
    with (gzip.open if path.endswith(".gz") else open)(whole, "rt", encoding="utf-8", newline="") as file:
        return file.read().split("\n")


def rows(path: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines(path) if line.strip()]
