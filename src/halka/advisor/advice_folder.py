"""The advice folder, which keeps results so that no probe of the same runs twice.

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

import hashlib
import json
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from shutil import rmtree
from typing import Any, TypeVar

from halka.advisor.budget import Costs, PilotConfig
from halka.advisor.evidence import from_json
from halka.advisor.request import Request, Sample
from halka.data.examples import Example
from halka.rag.sources import digest_of
from halka.util.errors import HalkaError
from halka.util.files import check_no_file, contents, locked, write_text

SCHEMA = 6  # version of the probes' results: raised with every change of what they are or mean, so that all run again

PLAN, PILOT = "plan.json", "pilot"
COLLECTION = "documents"
TRAIN, HELD_OUT = "train.jsonl", "held-out.jsonl"
PROMPTED, PROMPTED_WITH_PASSAGES = "prompted.jsonl", "prompted-with-passages.jsonl"
TRAIN_WITH_PASSAGES, HELD_OUT_WITH_PASSAGES = "train-with-passages.jsonl", "held-out-with-passages.jsonl"
T = TypeVar("T")


def result_keys(
    request: Request,
    sample: Sample,
    seconds: float,
    base: object,
    machine: object,
    folder: Path,
    pilot: PilotConfig | None = None,
    schema: int = SCHEMA,
) -> dict[str, str]:
    """By probe a hash of all that its result depends on; under "question" one of all but the hardware.

    base      tells other weights in the same folder apart, `machine` other hardware
    folder    the advice folder: files in it are not part of the documents
    pilot     what the pilot trains, if it is not the usual
    schema    version of the results, which an older Halka's do not have
    """
    model = (request.base, base, request.dtype, request.quantize)
    prompts = {
        "base": model,
        "examples": [[asdict(example) for example in some] for some in (sample.train, sample.held_out)],
        "how": (sample.metric, request.max_new_tokens, seconds),
    }
    documents = (digest_of(request.documents, folder), request.passages) if request.documents else None
    on_this_machine = request.device == "here" or request.memory is request.device is None
    hardware = (request.memory, request.device, machine if on_this_machine else None)
    inputs: dict[str, Any] = {
        "cleanliness": [[asdict(example) for example in some] for some in (sample.all_train, sample.held_out)],
        "strength": (prompts, documents),  # documents too: they take some of the time, which limits the examples
        "knowledge": (prompts, documents),
        "learnability": (prompts, documents, request.full, request.batch_size, len(sample.all_train), pilot),
        "fit": (model, request.batch_size, request.tasks, hardware),  # and the examples' lengths, known later
    }
    inputs["question"] = (inputs["cleanliness"], inputs["learnability"])
    return {
        name: hashlib.sha256(json.dumps((schema, value), sort_keys=True, default=str).encode()).hexdigest()[:16]
        for name, value in inputs.items()
    }


def base_files(base: str) -> list[tuple[str, int, int]] | None:
    """Names, sizes and times of a base folder's files; None for a base that is not a folder."""
    folder = Path(base).expanduser()
    if not folder.is_dir():
        return None
    files = sorted(path for path in folder.iterdir() if path.is_file())
    return [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]


@dataclass(frozen=True)
class Room:
    """How the pilot trains so that it fits into memory, and why full fine-tuning is not tried, if it is not."""

    checkpointing: bool
    without_full: str | None = None


@dataclass
class ProbePlan:
    """What was settled when the base was first loaded, so that resuming changes nothing. Field names are the file's.

    key         of the question
    held_out, passages   held-out examples that are used, passages in a prompt; None before the base was loaded
    max_new_tokens   of an answer, likewise
    length, shown_length   90th percentile of the training examples' tokens, without and with passages
    costs       what work costs, as it was timed
    documents   number of documents
    missing     what could not be used, and why
    untimely    what there was no time for, and why: probes, trials, prompts with passages
    spent       seconds that each probe took
    cuts        what else was left out or ended early, by probe
    pilot       key of the pilot that `untimely` is about
    rooms       how the pilot trains, by its key
    shown       key of the examples that were written with passages
    """

    key: str
    held_out: int | None = None
    passages: int | None = None
    max_new_tokens: int | None = None
    length: int | None = None
    shown_length: int | None = None
    costs: Costs = field(default_factory=Costs)
    documents: int = 0
    missing: dict[str, str] = field(default_factory=dict)
    untimely: dict[str, str] = field(default_factory=dict)
    spent: dict[str, float] = field(default_factory=dict)
    cuts: dict[str, tuple[str, ...]] = field(default_factory=dict)
    pilot: str | None = None
    rooms: dict[str, Room] = field(default_factory=dict)
    shown: str | None = None


class AdviceFolder:
    """The folder, made if it does not exist. Raises HalkaError for a file, and for a folder with other contents."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        check_no_file(self.path)
        if contents(self.path) and not (self.path / PLAN).exists():
            raise HalkaError(f"{self.path} is not empty and holds no advice: name a new folder")
        self.path.mkdir(parents=True, exist_ok=True)
        if not (self.path / PLAN).exists():
            write_text(self.path / PLAN, "{}\n")

    def alone(self) -> AbstractContextManager[None]:
        """Keep other processes that advise out of the folder. Raises HalkaError where one is at work."""
        return locked(self.path, f"another process advises in {self.path}: wait for it, or name another folder")

    def load_result(self, probe: str, key: str, kind: type[T]) -> T | None:
        """The probe's result for the same key; None if there is none."""
        saved = _read(self.path / f"{probe}.json")
        return _converted(kind, saved.get("found")) if saved.get("key") == key else None

    def save_result(self, probe: str, key: str, result: Any) -> None:
        """Write a probe's result, a dataclass of `evidence.py`."""
        saved = {"key": key, "found": asdict(result)}
        write_text(self.path / f"{probe}.json", json.dumps(saved, indent=1, ensure_ascii=False) + "\n")

    def load_plan(self, key: str) -> ProbePlan:
        """What was settled for the question with this key; a new plan for another question."""
        saved = _read(self.path / PLAN)
        plan = _converted(ProbePlan, saved) if saved.get("key") == key else None
        return plan or ProbePlan(key)

    def save_plan(self, plan: ProbePlan) -> None:
        write_text(self.path / PLAN, json.dumps(asdict(plan), ensure_ascii=False) + "\n")

    def write_examples(self, name: str, examples: Iterable[Example]) -> None:
        """Write a data file with the examples as messages."""
        lines = (json.dumps(example.plain, ensure_ascii=False) + "\n" for example in examples)
        write_text(self.path / name, "".join(lines))

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


def _converted(kind: type[T], value: Any) -> T | None:
    """A dataclass from JSON; None for what another version wrote in another shape."""
    with suppress(ValueError):
        return from_json(kind, value)
    return None
