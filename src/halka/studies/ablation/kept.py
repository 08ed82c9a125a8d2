"""`KeptAnswers`: a run's answers as they come, so that a process that goes on asks for the missing ones alone."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from halka.data.examples import Example


class KeptAnswers:
    """Answers in a file of `folder`, by the prompt: one line of JSON each.

    They are of one model and adapter, and greedy: whoever trains the adapter anew drops them.
    """

    def __init__(self, folder: Path):
        self.path = folder / "answers.jsonl"

    @staticmethod
    def key(example: Example) -> str:
        """A prompt's key: a hash of its messages."""
        return hashlib.sha256(repr(example.messages).encode()).hexdigest()[:20]

    def add(self, key: str, text: str) -> None:
        """Keep the answer to the prompt with this key."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps([key, text]) + "\n")

    def all(self) -> dict[str, str]:
        """The answers by key; a line that was cut short is left out."""
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
        return dict(pair for line in lines if (pair := _read(line)) is not None)

    def drop(self) -> None:
        """Forget all answers."""
        self.path.unlink(missing_ok=True)


def _read(line: str) -> tuple[str, str] | None:
    try:
        key, text = json.loads(line)
    except ValueError:
        return None
    return key, text
