"""The advisor's folder: what is done is kept there, and found again; a folder of anything else is left alone.

folder/
  plan.json       what is settled once for a question (`planned.py`)
  strength.json, knowledge.json, learnability.json, cleanliness.json, fit.json   a probe's result, and of what it is
  pilot/KEY/      the pilot's checkpoints, while it is trained
  documents/      the collection, for `halka ask --collections FOLDER --collection documents`
  train.jsonl, held-out.jsonl   the examples, by what they are for
  prompted.jsonl, prompted-with-passages.jsonl   the held-out ones as the base is best asked, the second with documents
  train-with-passages.jsonl, held-out-with-passages.jsonl   the examples with passages, where those are to be trained on
  advice.json, report.html   what `halka advise` made of it
  run-METHOD-KEY/             what the advised `halka train` makes; another question, or settings, have another KEY
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from shutil import rmtree
from typing import Any, TypeVar

from halka.advisor.evidence import restored
from halka.advisor.planned import Planned
from halka.util.errors import HalkaError
from halka.util.files import write_text

PLAN, PILOT = "plan.json", "pilot"
COLLECTION = "documents"
TRAIN, HELD_OUT = "train.jsonl", "held-out.jsonl"
PROMPTED, PROMPTED_SHOWN = "prompted.jsonl", "prompted-with-passages.jsonl"
SHOWN, HELD_OUT_SHOWN = "train-with-passages.jsonl", "held-out-with-passages.jsonl"
T = TypeVar("T")


class Kept:
    """The folder, made if it is not there. Raises ValueError for one that holds something else."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        if self.folder.exists() and any(self.folder.iterdir()) and not (self.folder / PLAN).exists():
            raise HalkaError(f"{self.folder} holds something, and no advice: name a new folder")
        self.folder.mkdir(parents=True, exist_ok=True)
        if not (self.folder / PLAN).exists():
            write_text(self.folder / PLAN, "{}\n")

    def found(self, probe: str, key: str, kind: type[T]) -> T | None:
        """The probe's result on the same question, if it is there."""
        known = _read(self.folder / f"{probe}.json")
        return _restored(kind, known.get("found")) if known.get("key") == key else None

    def keep(self, probe: str, key: str, found: Any) -> None:
        told = {"key": key, "found": asdict(found)}
        write_text(self.folder / f"{probe}.json", json.dumps(told, indent=1, ensure_ascii=False) + "\n")

    def plan(self, key: str) -> Planned:
        """What was settled for this question; nothing for another."""
        plan = _read(self.folder / PLAN)
        known = _restored(Planned, plan) if plan.get("key") == key else None
        return Planned(key) if known is None else known

    def write_plan(self, plan: Planned) -> None:
        write_text(self.folder / PLAN, json.dumps(asdict(plan), ensure_ascii=False) + "\n")

    def write_rows(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        write_text(self.folder / name, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))

    def begin_pilot(self, key: str) -> Path:
        """Where the pilot of this question keeps its checkpoints; those of other questions are of no more use."""
        own = self.folder / PILOT / key
        for other in own.parent.iterdir() if own.parent.exists() else ():
            if other != own:
                rmtree(other)
        return own

    def end_pilots(self) -> None:
        """No checkpoints are of use any more."""
        if (self.folder / PILOT).exists():
            rmtree(self.folder / PILOT)


def _read(path: Path) -> Mapping[str, Any]:
    """What a file of ours says; nothing for one that is not whole, or is not there."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _restored(kind: type[T], told: Any) -> T | None:
    """What was written as JSON; nothing for what another version wrote in another shape."""
    try:
        return restored(kind, told) if isinstance(told, dict) else None
    except (TypeError, KeyError):
        return None
