"""`KeptAnswers`: a run's answers as they come, so that a process that goes on asks for the missing ones alone."""

from __future__ import annotations

import hashlib
from pathlib import Path

from halka.data.examples import Example
from halka.studies.json_lines import JsonLines
from halka.util.own_version import own_version


class KeptAnswers:
    """Answers in a file of `folder`, by the prompt: one line of JSON each, with the version of Halka that answered.

    They are of one model and adapter, and greedy: whoever trains the adapter anew drops them. Those of another version
    are left out: a result names one commit, and other code may answer otherwise.
    """

    def __init__(self, folder: Path, version: str | None = None):
        self.lines, self.version = JsonLines(folder / "answers.jsonl"), version or own_version()

    @staticmethod
    def key(example: Example) -> str:
        """A prompt's key: a hash of its messages."""
        return hashlib.sha256(repr(example.messages).encode()).hexdigest()[:20]

    def add(self, key: str, text: str) -> None:
        """Keep the answer to the prompt with this key."""
        self.lines.add([self.version, key, text])

    def all(self) -> dict[str, str]:
        """This version's answers by key."""
        return {key: text for version, key, text in self.lines.all() if version == self.version}

    def drop(self) -> None:
        """Forget all answers."""
        self.lines.drop()
