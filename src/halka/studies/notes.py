"""What a run notes while it trains, so that a process that goes on from its checkpoint has what an earlier one saw."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from halka.studies.json_lines import JsonLines

Note = dict[str, Any]


class Notes:
    """The notes in `folder`, by step: one line of JSON each; of two of one step the later counts."""

    def __init__(self, folder: Path):
        self.lines = JsonLines(folder / "notes.jsonl")

    def add(self, step: int, **values: Any) -> None:
        """Note the values of a step."""
        self.lines.add({"step": step, **values})

    def drop(self) -> None:
        """Forget all steps: the run begins anew."""
        self.lines.drop()

    def all(self) -> list[Note]:
        """The notes in the order of their steps."""
        notes = {note["step"]: note for note in self.lines.all()}
        return [notes[step] for step in sorted(notes)]
