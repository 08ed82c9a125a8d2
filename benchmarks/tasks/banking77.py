"""BANKING77: a bank customer's message gets one of 77 intents, such as "card arrival", written out.

Casanueva et al., 2020, "Efficient Intent Detection with Dual Sentence Encoders" (arXiv:2003.04807); CC BY 4.0;
github.com/PolyAI-LDN/task-specific-datasets, the folder banking_data. Its files train.csv and test.csv are looked for
in $HALKA_DATA/banking77, or in ../shared/data/banking77 beside the project.

The splits are fixed. Test: the published test. Validation: 308 messages of the published training file. Train: what
remains of that, after dropping repeats and messages that also stand in the test, whatever their case. The intents are
mixed in all three, so that the first examples of a split stand for the whole.
"""

import csv
import os
import random
from pathlib import Path

from halka.data.examples import Example, Message
from halka.data.task import Task

SYSTEM = "Name the intent."
VALIDATION = 308


def task() -> Task:
    """The task; raises FileNotFoundError, naming the source, where the data is absent."""
    seen = set[str]()
    test, rest = unseen(read("test.csv"), seen), unseen(read("train.csv"), seen)
    return Task(
        name="banking77",
        train=examples(rest[VALIDATION:]),
        validation=examples(rest[:VALIDATION]),
        test=examples(test),
        metrics=("accuracy", "macro_f1"),
        primary="accuracy",
        max_new_tokens=16,
        licence="CC-BY-4.0",
        source="github.com/PolyAI-LDN/task-specific-datasets",
    )


def read(file: str) -> list[tuple[str, str]]:
    """A file's messages and their intents, as words."""
    root = Path(os.environ.get("HALKA_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data")
    path = root / "banking77" / file
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: take {file} from github.com/PolyAI-LDN/task-specific-datasets (CC BY 4.0), put it "
            "into a folder banking77 and set HALKA_DATA to the folder that holds it"
        )
    with path.open(encoding="utf-8", newline="") as rows:
        return [(" ".join(row["text"].split()), row["category"].replace("_", " ")) for row in csv.DictReader(rows)]


def unseen(rows: list[tuple[str, str]], seen: set[str]) -> list[tuple[str, str]]:
    """The rows in a mixed order, each message once and none that was seen before."""
    order = random.Random(0)
    kept = []
    for message, intent in sorted(rows, key=lambda _: order.random()):
        if message.lower() not in seen:
            seen.add(message.lower())
            kept.append((message, intent))
    return kept


def examples(rows: list[tuple[str, str]]) -> tuple[Example, ...]:
    return tuple(
        Example((Message("system", SYSTEM), Message("user", message), Message("assistant", intent)))
        for message, intent in rows
    )
