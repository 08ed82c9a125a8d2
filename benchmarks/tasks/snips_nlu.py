"""SNIPS: a spoken command becomes one line of JSON, `{"intent":"GetWeather","slots":{"city":"Dhaka"}}`.

Coucke et al., 2018, "Snips Voice Platform" (arXiv:1805.10190); CC0 1.0; github.com/sonos/nlu-benchmark, the folder
2017-06-custom-intent-engines. Its files (train_<intent>_full.json, validate_<intent>.json) are looked for in
$HALKA_DATA/snips_nlu, or in ../shared/data/snips_nlu beside the project.

The splits are fixed. Test: the 700 published validation commands, 100 an intent, used for nothing else. Validation:
210 commands taken from the published training files. Train: what remains of those, 13,357 commands, after dropping
repeats and commands that also stand in the test, whatever their case. The intents are mixed in all three, so that the
first examples of a split stand for the whole.
"""

import json
import os
import random
from pathlib import Path

from halka.data.examples import Example, Message
from halka.data.task import Task

INTENTS = (
    "AddToPlaylist",
    "BookRestaurant",
    "GetWeather",
    "PlayMusic",
    "RateBook",
    "SearchCreativeWork",
    "SearchScreeningEvent",
)
SYSTEM = "Command to JSON: intent and slots."
VALIDATION = 210


def task() -> Task:
    """The task; raises FileNotFoundError, naming the source, where the data is absent."""
    test = [row for intent in INTENTS for row in read(f"validate_{intent}.json")]
    seen = {command.lower() for command, _ in test}
    rest: list[tuple[str, str]] = []
    for intent in INTENTS:
        for command, answer in read(f"train_{intent}_full.json"):
            if command.lower() not in seen:
                seen.add(command.lower())
                rest.append((command, answer))
    rest, test = mixed(rest), mixed(test)
    return Task(
        name="snips_nlu",
        train=examples(rest[VALIDATION:]),
        validation=examples(rest[:VALIDATION]),
        test=examples(test),
        metrics=("json_exact", "json_valid", "json_field:intent", "json_field_f1:slots"),
        primary="json_exact",
        max_new_tokens=80,
        licence="CC0-1.0",
        source="github.com/sonos/nlu-benchmark",
    )


def read(file: str) -> list[tuple[str, str]]:
    """A file's commands and their JSON; a slot named twice has a list of texts."""
    root = Path(os.environ.get("HALKA_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data")
    path = root / "snips_nlu" / file
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: take the SNIPS data from github.com/sonos/nlu-benchmark (CC0), put its json files "
            "into a folder snips_nlu and set HALKA_DATA to the folder that holds it"
        )
    encoding = "latin-1" if file == "train_PlayMusic_full.json" else "utf-8"
    ((intent, rows),) = json.loads(path.read_text(encoding)).items()
    return [(tidy("".join(part["text"] for part in row["data"])), answer(intent, row["data"])) for row in rows]


def answer(intent: str, parts: list[dict[str, str]]) -> str:
    """The command's parts, some of which name a slot as their `entity`, as JSON, slots in the command's order."""
    found: dict[str, list[str]] = {}
    for part in parts:
        if "entity" in part:
            found.setdefault(part["entity"], []).append(tidy(part["text"]))
    slots = {slot: texts[0] if len(texts) == 1 else texts for slot, texts in found.items()}
    return json.dumps({"intent": intent, "slots": slots}, ensure_ascii=False, separators=(",", ":"))


def examples(rows: list[tuple[str, str]]) -> tuple[Example, ...]:
    return tuple(
        Example((Message("system", SYSTEM), Message("user", command), Message("assistant", answer)))
        for command, answer in rows
    )


def mixed(rows: list[tuple[str, str]]) -> list[tuple[str, str]]:
    order = random.Random(0)
    return sorted(rows, key=lambda _: order.random())


def tidy(text: str) -> str:
    return " ".join(text.split())
