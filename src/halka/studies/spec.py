"""`Spec`: one run of a comparison, and the name of its result, which stays the same from version to version."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from halka.studies.hosts import Result
from halka.studies.runner import now
from halka.util.dtypes import Dtype, Quantize

SCHEMA = 1
DIGEST = len("-01234567.json")
NAME_BYTES = 245  # the most of a result's name: of a file's 255, the one that is written beside it takes ten
BASE = "base"  # the method of a run without tuning

Purpose = Literal["search", "final"]

NEW_DEFAULTS = ("alpha",)
"""Fields of methods that had another default when runs were first recorded, and no run named what it did not set.

A run that has none, or null, is of the default of then: of α, twice the rank.
"""


def named_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """A method's fields as the names of its runs have them: null of `NEW_DEFAULTS` as none, which runs of then had."""
    return {name: value for name, value in fields.items() if value is not None or name not in NEW_DEFAULTS}


@dataclass(frozen=True)
class Spec:
    """One run of an experiment.

    data        the digest of the task's examples and metrics
    base_files  that of the base's files, where it is a folder
    train       TrainConfig's fields, with lr and seed
    purpose     a "search" run ends with its validation loss; a "final" one is evaluated
    examples    the most examples of a split, by split
    forgetting  a text file; None for the page that comes with Halka
    text        what virtual tokens start as
    score_every  steps between scores on the validation examples in a final run
    best_by     what decides which evaluation is the best; by "score" each one scores
    """

    experiment: str
    task: str
    base: str
    method: str
    label: str
    fields: Mapping[str, Any]
    train: Mapping[str, Any]
    data: str = ""
    purpose: Purpose = "final"
    dtype: Literal[Dtype, "auto"] = "bfloat16"
    quantize: Quantize | None = None
    examples: Mapping[str, int] = field(default_factory=dict)
    forgetting: str | None = None
    text: str | None = None
    score_every: int | None = None
    best_by: Literal["loss", "score"] = "loss"
    base_files: str | None = None

    @property
    def key(self) -> str:
        """A file name, the same for the same work under the same label, whatever the task's file is called."""
        work = {name: value for name, value in asdict(self).items() if name not in ("label", "task")}
        since = {"quantize": None, "text": None, "score_every": None, "best_by": "loss", "base_files": None}
        for name, before in since.items():  # runs keep the names that they had before these fields existed
            if work[name] == before:
                del work[name]
        work["fields"] = named_fields(self.fields)
        rate = "" if self.train["lr"] is None else f"-lr{self.train['lr']:g}"
        safe = "".join(letter if letter.isalnum() else "-" for letter in self.label.lower()).strip("-")
        rest = f"{rate}-seed{self.train['seed']}-{self.purpose}"
        if len(f"{safe}{rest}".encode()) + DIGEST > NAME_BYTES:  # no older run is called so: no file can be
            work["label"], safe = self.label, safe[:60]
        text = json.dumps({**work, "schema": SCHEMA}, sort_keys=True)
        return f"{safe}{rest}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"

    @property
    def title(self) -> str:
        rate = "" if self.train["lr"] is None else f", lr {self.train['lr']:g}"
        return f"{self.label}{rate}, seed {self.train['seed']}{' (search)' if self.purpose == 'search' else ''}"

    def failed(self, error: str) -> Result:
        """The measurement that records why the run failed."""
        return {
            "schema": SCHEMA,
            "status": "failed",
            "error": error,
            "experiment": self.experiment,
            "task": Path(self.task).stem,
            "base": self.base,
            "method": {"name": self.method, "label": self.label, "fields": dict(self.fields)},
            "lr": self.train.get("lr"),
            "seed": self.train.get("seed", 0),
            "purpose": self.purpose,
            "date": now(),
        }
