"""An ablation's runs: the base, and of each seed a plain adapter and one tuned for passages; each answers the test.

Where the ablation says so, full fine-tuning is beside them, plain and tuned for passages, too.

folder/
  collection/    the documents, as MiniLM embeds them; collection-…/ where the ablation names another embedder
  work/, runs/   see `halka.studies.runner`; a run whose process was stopped in training goes on from its checkpoint
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from halka.rag.sources import digest_of
from halka.studies.ablation.scores import from_row, scored
from halka.studies.ablation.settings import Ablation, read_questions
from halka.studies.places import Here, Result
from halka.studies.runner import Event, Runner, alone_in

SCHEMA = 2
Who = Literal["base", "adapter", "tuned", "full", "tuned-full"]
ADAPTERS: tuple[Who, ...] = ("adapter", "tuned")
FULL: tuple[Who, ...] = ("full", "tuned-full")


@dataclass(frozen=True)
class Run:
    """Who answers: the base, what was trained on questions alone, or tuned for answering from passages.

    ablation   the ablation as plain data, and (`beside`) the folder of its file
    folder     the study's
    """

    who: Who
    seed: int
    key: str
    ablation: dict[str, Any]
    beside: str
    folder: str

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

    All share one process, base and collection. Raises HalkaError for data that cannot be used, and where another
    process runs there.
    """
    runs = runs_of(ablation, folder)
    with alone_in(Path(folder)):
        yield from runner(folder, retry).go(lambda results: ([runs], 0))


def runner(folder: str | Path, retry: bool = False) -> Runner[Run]:
    """The runner of an ablation's runs in `folder`."""
    return Runner(Path(folder), Here("halka.studies.ablation.measure"), _outcome, retry=retry)


def results(ablation: Ablation, folder: str | Path) -> list[Result]:
    """The results of the ablation's runs, as far as they are there, failed ones included."""
    own = runner(folder)
    return [result for run in runs_of(ablation, folder) if (result := own.result(run)) is not None]


def runs_of(ablation: Ablation, folder: str | Path) -> list[Run]:
    """The ablation's runs; other documents, questions or settings give other keys. Raises HalkaError as `run` does."""
    trained = ADAPTERS if ablation.full_lr is None else (*ADAPTERS, *FULL)
    answerers: list[tuple[Who, int]] = [("base", 0), *((who, seed) for seed in ablation.seeds for who in trained)]
    names = ("documents", "questions", "examples", "seeds", "name", "full_lr")
    left_out = dict.fromkeys(names, True) | {"method": {"text", "train"}}
    work = ablation.model_dump(exclude=left_out)
    work |= {"questions": read_questions(ablation).digest, "documents": digest_of(ablation.documents), "schema": SCHEMA}
    settings, beside, place = ablation.model_dump(mode="json"), str(ablation.folder), str(Path(folder).resolve())

    def key(who: Who, seed: int) -> str:
        own = {"full_lr": ablation.full_lr} if who in FULL else {}
        text = json.dumps({**work, **own, "who": who, "seed": seed}, sort_keys=True, default=str)
        return f"{who}-seed{seed}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"

    return [Run(who, seed, key(who, seed), settings, beside, place) for who, seed in answerers]


def _outcome(result: Result) -> str:
    scores = scored([from_row(row) for row in result["passages"]], result["form"])
    return f"exact {scores['exact'].value:.3f} with passages"
