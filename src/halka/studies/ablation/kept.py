"""`KeptAnswers`: a run's answers as they come, so that a process that goes on asks for the missing ones alone."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from halka.data.examples import Example
from halka.util.own_version import own_version


class KeptAnswers:
    """Answers in a file of `folder`, by the prompt: one line of JSON each, with the version of Halka that answered.

    They are of one model and adapter, and greedy: whoever trains the adapter anew drops them. Those of another version
    are left out: a result names one commit, and other code may answer otherwise.
    """

    def __init__(self, folder: Path, version: str | None = None):
        self.path, self.version = folder / "answers.jsonl", version or own_version()

    @staticmethod
    def key(example: Example) -> str:
        """A prompt's key: a hash of its messages."""
        return hashlib.sha256(repr(example.messages).encode()).hexdigest()[:20]

    def add(self, key: str, text: str) -> None:
        """Keep the answer to the prompt with this key."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps([self.version, key, text]) + "\n")

    def all(self) -> dict[str, str]:
        """This version's answers by key; a line that was cut short is left out."""
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
        rows = [row for line in lines if (row := _read(line)) is not None]
        return {key: text for version, key, text in rows if version == self.version}

    def drop(self) -> None:
        """Forget all answers."""
        self.path.unlink(missing_ok=True)


def _read(line: str) -> tuple[str, str, str] | None:
    try:
        version, key, text = json.loads(line)
    except ValueError:
        return None
    return version, key, text
