"""The advisor's folder: what is done is kept there, and found again; a folder of anything else is left alone.

folder/
  plan.json       how many examples the time allowed, how long they are, and the time that was spent
  strength.json, knowledge.json, learnability.json, cleanliness.json, fit.json   a probe's result, and of what it is
  pilot/KEY/      the pilot's checkpoints, while it is trained
  documents/      the collection, for `halka ask --collections FOLDER --collection documents`
  train.jsonl, held-out.jsonl, prompted.jsonl   what the next commands read
  prompted-with-passages.jsonl                  the same with documents
  train-with-passages.jsonl, held-out-with-passages.jsonl   the same where passages are to be trained on
  advice.json, report.html   what `halka advise` made of it
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from shutil import rmtree
from typing import Any, TypeVar

from halka.advising.evidence import restored
from halka.files import write_text

PLAN, PILOT = "plan.json", "pilot"
T = TypeVar("T")


class Kept:
    """The folder, made if it is not there. Raises ValueError for one that holds something else."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        if self.folder.exists() and any(self.folder.iterdir()) and not (self.folder / PLAN).exists():
            raise ValueError(f"{self.folder} holds something, and no advice: name a new folder")
        self.folder.mkdir(parents=True, exist_ok=True)
        if not (self.folder / PLAN).exists():
            write_text(self.folder / PLAN, "{}\n")

    def has(self, probe: str, key: str) -> bool:
        return _read(self.folder / f"{probe}.json").get("key") == key

    def result(self, probe: str, key: str, kind: type[T], run: Callable[[], T]) -> T:
        """The probe's result: what is there of the same question, or what it gives now, which is kept."""
        path = self.folder / f"{probe}.json"
        known = _read(path)
        if known.get("key") == key:
            return restored(kind, known["found"])
        found = run()
        told = {"key": key, "found": asdict(found)}  # type: ignore[call-overload]
        write_text(path, json.dumps(told, indent=1, ensure_ascii=False) + "\n")
        return found

    def plan(self, key: str) -> dict[str, Any]:
        """What was planned for this question; nothing for another."""
        plan = _read(self.folder / PLAN)
        return dict(plan) if plan.get("key") == key else {"key": key}

    def write_plan(self, plan: Mapping[str, Any]) -> None:
        write_text(self.folder / PLAN, json.dumps(dict(plan)) + "\n")

    def write_rows(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        write_text(self.folder / name, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))

    def pilot(self, key: str) -> Path:
        """Where the pilot of this question keeps its checkpoints."""
        return self.folder / PILOT / key

    def end_pilot(self, key: str) -> None:
        """Its checkpoints are of no more use."""
        if self.pilot(key).exists():
            rmtree(self.pilot(key))
            if not any((self.folder / PILOT).iterdir()):
                (self.folder / PILOT).rmdir()


def _read(path: Path) -> Mapping[str, Any]:
    """What a file of ours says; nothing for one that is not whole, or is not there."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
