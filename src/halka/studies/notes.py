"""What a run notes while it trains, so that a process that goes on from its checkpoint has what an earlier one saw."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

Note = dict[str, Any]


class Notes:
    """The notes in `folder`, by step: one line of JSON each; of two of one step the later counts."""

    def __init__(self, folder: Path):
        self.path = folder / "notes.jsonl"

    def add(self, step: int, **values: Any) -> None:
        """Note the values of a step."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")

    def drop(self) -> None:
        """Forget all steps: the run begins anew."""
        self.path.unlink(missing_ok=True)

    def all(self) -> list[Note]:
        """The notes in the order of their steps; a line that was cut short is left out."""
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
        notes = {note["step"]: note for line in lines if (note := _read(line)) is not None}
        return [notes[step] for step in sorted(notes)]


def _read(line: str) -> Note | None:
    try:
        return json.loads(line)
    except ValueError:
        return None
