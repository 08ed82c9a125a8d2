"""`JsonLines`: records that a run appends one by one, so that a process that goes on has what an earlier one saw."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


class JsonLines:
    """A file with a line of JSON a record; one that a crash or a full disk cut short is left out."""

    def __init__(self, path: Path):
        self.path = path

    def add(self, record: Any) -> None:
        """Append a record, on a line of its own also behind one that was cut short."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a+b") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
            begins = b"\n" if file.read(1) not in (b"", b"\n") else b""
            file.write(begins + json.dumps(record).encode() + b"\n")

    def all(self) -> list[Any]:
        """The records, in their order."""
        lines = self.path.read_bytes().splitlines() if self.path.exists() else []
        return [record for line in lines if (record := _read(line)) is not None]

    def drop(self) -> None:
        """Forget all."""
        self.path.unlink(missing_ok=True)


def _read(line: bytes) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None
