"""What the searches of an ablation's runs come to, the same for all runs: made once, kept in the study's folder."""

from __future__ import annotations

import hashlib
import json
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

from halka.rag.changes import Alternatives, change_of
from halka.rag.collection import Collection
from halka.rag.passages import Passage
from halka.rag.questions import holds
from halka.rag.store import Scope
from halka.studies.ablation.settings import Questions
from halka.util.files import write_text

Search = Callable[[str], tuple[list[Passage], float | None]]
"""From a question to the passages in its prompt, and the best one's score."""


@dataclass(frozen=True)
class ChangedFact:
    """A test question whose document got another answer: its place in the test, and its prompt's passages then."""

    place: int
    new: str
    shown: list[Passage]


@dataclass(frozen=True)
class Searched:
    """The searches of an ablation.

    shown     the passages in each test question's prompt
    best      the score of the best passage of each
    floor     the score that answerable questions reach
    changes   the facts that were changed, one after another; each document was put back
    left_out  the facts that cannot be changed (`change_of`), or that another passage of the prompt holds, too
    seconds   of taking a changed document in, on average
    """

    shown: list[list[Passage]]
    best: list[float | None]
    floor: float
    changes: list[ChangedFact]
    left_out: int
    seconds: float | None


def kept_in(folder: Path, work: Mapping[str, Any], make: Callable[[], Searched]) -> Searched:
    """The searches of this work, from the folder's file of them, or made and written there."""
    digest = hashlib.sha256(json.dumps(work, sort_keys=True).encode()).hexdigest()[:12]
    path = folder / f"searched-{digest}.json"
    if path.exists():
        return _read(json.loads(path.read_text(encoding="utf-8")))
    searched = make()
    write_text(path, json.dumps(asdict(searched)) + "\n")
    return searched


def changed_facts(
    questions: Questions,
    shown: list[list[Passage]],
    collection: Collection,
    texts: Mapping[str, str],
    search: Search,
) -> tuple[list[ChangedFact], int, float | None]:
    """Change the fact of each test question in the document that answers it, search again, and put the document back.

    texts   the documents that are rows, by name; others are files

    Returns the changes, how many facts cannot be changed, and the mean seconds of taking a document in. The collection
    must not be searched meanwhile.
    """
    alternatives = Alternatives([*questions.test, *questions.validation, *questions.train])
    draw, changes, left_out, seconds = random.Random(0), list[ChangedFact](), 0, list[float]()
    for place, (asked, passages) in enumerate(zip(questions.test, shown, strict=True)):
        gold = next((passage for passage in passages if holds(passage, asked)), None)
        if gold is None or not asked.answers:
            continue
        document = gold.document
        change = change_of(asked, text_of(document, collection, texts), alternatives, draw, document)
        if change is None:
            left_out += 1
            continue
        new, after = change
        started = time.perf_counter()
        list(collection.put([(document, after)]))
        seconds.append(time.perf_counter() - started)
        passages_now, _ = search(asked.question)
        own = texts.get(document)
        list(collection.refresh() if own is None else collection.put([(document, own)]))
        if any(holds(passage, replace(asked, document=None)) for passage in passages_now):
            left_out += 1
        else:
            changes.append(ChangedFact(place, new, passages_now))
    return changes, left_out, mean(seconds) if seconds else None


def text_of(document: str, collection: Collection, texts: Mapping[str, str]) -> str:
    """A document's text; of a file, the text of its passages."""
    if document in texts:
        return texts[document]
    entry = collection.document(document)
    passages = collection.store.passages(document, range(entry.passages), Scope(frozenset(entry.readers)))
    return "\n\n".join(passage.text for passage in passages)


def _read(content: dict[str, Any]) -> Searched:
    changes = [
        ChangedFact(change["place"], change["new"], [*map(_passage, change["shown"])]) for change in content["changes"]
    ]
    shown = [[*map(_passage, passages)] for passages in content["shown"]]
    return Searched(**{**content, "shown": shown, "changes": changes})


def _passage(fields: dict[str, Any]) -> Passage:
    return Passage(**{**fields, "readers": tuple(fields["readers"])})
