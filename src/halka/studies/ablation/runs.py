"""An ablation's runs: the base, and of each seed a plain adapter and one tuned for passages; each answers the test.

Where the ablation says so, full fine-tuning is beside them, plain and tuned for passages, too.

folder/
  collection/      the documents, as MiniLM embeds them; collection-…/ where the ablation names another embedder
  searched-*.json  what the searches of all runs came to
  work/, runs/     see `halka.studies.runner`; a run whose process was stopped goes on from its checkpoint, and then
                   with the answers that are missing, or are of another version of Halka
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from halka.rag.sources import digest_of
from halka.studies.ablation.scores import from_row, scored
from halka.studies.ablation.settings import FULL, Ablation, Who, questions_of
from halka.studies.hosts import Here, Result
from halka.studies.runner import Event, Runner, alone_in
from halka.studies.spec import named_fields
from halka.util.base_folders import folder_digest

SCHEMA = 3
PLAIN = frozenset({"lessons", "without"})
IRRELEVANT: dict[Who, frozenset[str]] = {
    "base": PLAIN | {"train"},
    "adapter": PLAIN,
    "tuned": frozenset(),
    "full": PLAIN,
    "tuned-full": frozenset(),
}
"""The settings that change nothing for who answers: other ones are not other work."""


@dataclass(frozen=True)
class Run:
    """Who answers: the base, what was trained on questions alone, or tuned for answering from passages.

    ablation   the ablation as plain data, and (`beside`) the folder of its file
    folder     the study's
    data       the digests of the data that it is named by
    """

    who: Who
    seed: int
    key: str
    ablation: dict[str, Any]
    beside: str
    folder: str
    data: dict[str, str]

    @property
    def title(self) -> str:
        return self.who if self.who == "base" else f"{self.who}, seed {self.seed}"

    @property
    def is_tuned(self) -> bool:
        """Whether it is tuned for answering from passages."""
        return self.who in ("tuned", "tuned-full")

    def failed(self, error: str) -> Result:
        """The result that records why the run failed."""
        return {"schema": SCHEMA, "status": "failed", "error": error, "who": self.who, "seed": self.seed}


def run(ablation: Ablation, folder: str | Path, *, retry: bool = False) -> Iterator[Event]:
    """Run the ablation's missing runs in `folder`, and yield what happens.

    All share one process, base and collection, or each has a process where several run at a time. Raises HalkaError for
    data that cannot be used, and where another process runs there.
    """
    runs = runs_of(ablation, folder)
    groups = [runs] if ablation.jobs == 1 else [[one] for one in runs]
    with alone_in(Path(folder)):
        yield from runner(folder, retry, ablation.jobs).go(lambda results: (groups, 0))


def runner(folder: str | Path, retry: bool = False, jobs: int = 1) -> Runner[Run]:
    """The runner of an ablation's runs in `folder`."""
    return Runner(Path(folder), Here("halka.studies.ablation.measure", jobs), _outcome, retry=retry)


def results(ablation: Ablation, folder: str | Path) -> list[Result]:
    """The results of the ablation's runs, as far as they are there, failed ones included."""
    own = runner(folder)
    return [result for run in runs_of(ablation, folder) if (result := own.result(run)) is not None]


def runs_of(ablation: Ablation, folder: str | Path) -> list[Run]:
    """The ablation's runs; another base, other documents, questions or settings give other keys.

    Raises HalkaError as `run` does.
    """
    arms = ablation.answerers
    answerers: list[tuple[Who, int]] = [("base", 0)] if "base" in arms else []
    answerers.extend((who, seed) for seed in ablation.seeds for who in arms if who != "base")
    names = ("documents", "questions", "examples", "seeds", "name", "full_lr", "arms", "jobs")
    left_out = dict.fromkeys(names, True) | {"method": {"text", "train"}}
    work = ablation.model_dump(exclude=left_out)
    method, changed = work.pop("method"), ablation.method.new_defaults()
    data = data_of(ablation)
    work |= data | {"schema": SCHEMA}
    if files := folder_digest(ablation.place(ablation.base)):
        work["base_files"] = files
    settings, beside, place = ablation.model_dump(mode="json"), str(ablation.folder), str(Path(folder).resolve())

    def key(who: Who, seed: int) -> str:
        own = {name: value for name, value in work.items() if name not in IRRELEVANT[who]}
        own["method"] = named_fields(method if who == "base" or who in FULL else changed | method)
        if who in FULL:
            own |= {"full_lr": ablation.full_lr}
        elif who != "base" and ablation.method.rate is None:
            own |= {"lr": None}  # by the base's width; runs of before had the method's own there
        text = json.dumps({**own, "who": who, "seed": seed}, sort_keys=True, default=str)
        return f"{who}-seed{seed}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"

    return [Run(who, seed, key(who, seed), settings, beside, place, data) for who, seed in answerers]


def data_of(ablation: Ablation) -> dict[str, str]:
    """The digests of the ablation's questions and documents. Raises HalkaError as `run` does."""
    return {"questions": questions_of(ablation).digest, "documents": digest_of(ablation.documents)}


def _outcome(result: Result) -> str:
    scores = scored([from_row(row) for row in result["passages"]], result["form"])
    return f"exact {scores['exact'].value:.3f} with passages"
