"""The advice folder: results of probes, so that none is run twice, and the files that the advised commands read.

folder/
  plan.json       what was settled when the base was first loaded (`ProbePlan`)
  strength.json, knowledge.json, learnability.json, cleanliness.json, fit.json   a probe's result, and its key
  pilot/KEY/      the pilot's checkpoints while it trains
  documents/      the collection, for `halka ask --collections FOLDER --collection documents`
  train.jsonl, held-out.jsonl   the examples as they were split
  prompted.jsonl, prompted-with-passages.jsonl   held-out examples in the prompts that scored best
  train-with-passages.jsonl, held-out-with-passages.jsonl   examples with retrieved passages, where those are trained on
  advice.json, report.html   written by `halka advise`
  run-METHOD-KEY/             what the advised `halka train` writes; other data or settings have another KEY
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from shutil import rmtree
from typing import Any, TypeVar

from halka.advisor.evidence import from_json
from halka.data.examples import Example
from halka.util.errors import HalkaError
from halka.util.files import write_text

PLAN, PILOT = "plan.json", "pilot"
COLLECTION = "documents"
TRAIN, HELD_OUT = "train.jsonl", "held-out.jsonl"
PROMPTED, PROMPTED_WITH_PASSAGES = "prompted.jsonl", "prompted-with-passages.jsonl"
TRAIN_WITH_PASSAGES, HELD_OUT_WITH_PASSAGES = "train-with-passages.jsonl", "held-out-with-passages.jsonl"
T = TypeVar("T")


@dataclass(frozen=True)
class Room:
    """How the pilot trains so that it fits into memory, and why full fine-tuning is not tried, if it is not."""

    checkpointing: bool
    without_full: str | None = None


@dataclass
class ProbePlan:
    """What was settled when the base was first loaded, so that resuming changes nothing. Field names are the file's.

    key         of the question
    held_out    held-out examples that are used; None before the base was loaded
    length, shown_length   90th percentile of the training examples' tokens, without and with passages
    answer      seconds that an answer takes
    documents   number of documents
    missing     what could not be used, and why
    spent       seconds that each probe took
    rooms       how the pilot trains, by its key
    shown       key of the examples that were written with passages
    """

    key: str
    held_out: int | None = None
    length: int | None = None
    shown_length: int | None = None
    answer: float = 0.0
    documents: int = 0
    missing: dict[str, str] = field(default_factory=dict)
    spent: dict[str, float] = field(default_factory=dict)
    rooms: dict[str, Room] = field(default_factory=dict)
    shown: str | None = None


class AdviceFolder:
    """The folder, made if it does not exist. Raises HalkaError for one with other contents."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if self.path.exists() and any(self.path.iterdir()) and not (self.path / PLAN).exists():
            raise HalkaError(f"{self.path} is not empty and holds no advice: name a new folder")
        self.path.mkdir(parents=True, exist_ok=True)
        if not (self.path / PLAN).exists():
            write_text(self.path / PLAN, "{}\n")

    def load_result(self, probe: str, key: str, kind: type[T]) -> T | None:
        """The probe's result for the same key; None if there is none."""
        saved = _read(self.path / f"{probe}.json")
        return _from_json(kind, saved.get("found")) if saved.get("key") == key else None

    def save_result(self, probe: str, key: str, result: Any) -> None:
        """Write a probe's result, a dataclass of `evidence.py`."""
        saved = {"key": key, "found": asdict(result)}
        write_text(self.path / f"{probe}.json", json.dumps(saved, indent=1, ensure_ascii=False) + "\n")

    def load_plan(self, key: str) -> ProbePlan:
        """What was settled for the question with this key; a new plan for another question."""
        saved = _read(self.path / PLAN)
        plan = _from_json(ProbePlan, saved) if saved.get("key") == key else None
        return ProbePlan(key) if plan is None else plan

    def save_plan(self, plan: ProbePlan) -> None:
        write_text(self.path / PLAN, json.dumps(asdict(plan), ensure_ascii=False) + "\n")

    def write_examples(self, name: str, examples: Iterable[Example]) -> None:
        """Write a data file with the examples as messages."""
        rows = (
            {"messages": [asdict(message) for message in example.messages], "references": example.references}
            for example in examples
        )
        write_text(self.path / name, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))

    def pilot_folder(self, key: str) -> Path:
        """The folder of this pilot's checkpoints. Those of other pilots are removed."""
        own = self.path / PILOT / key
        for other in own.parent.iterdir() if own.parent.exists() else ():
            if other != own:
                rmtree(other)
        return own

    def remove_pilots(self) -> None:
        """Remove all checkpoints."""
        if (self.path / PILOT).exists():
            rmtree(self.path / PILOT)


def _read(path: Path) -> Mapping[str, Any]:
    """A JSON object; an empty one if the file is missing or damaged."""
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return saved if isinstance(saved, dict) else {}


def _from_json(kind: type[T], value: Any) -> T | None:
    """A dataclass from JSON; None for what another version wrote in another shape."""
    try:
        return from_json(kind, value) if isinstance(value, dict) else None
    except (TypeError, KeyError):
        return None
