"""Reads an uploaded file's text in a process of its own: `python -m halka.server.resources.reading FILE`.

A document may be made to crash its reader, keep it busy, or take all memory: then this process ends, and no other.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from halka.rag.texts import Text, Unreadable, read_as, read_text
from halka.server.jobs.process import environment

PLAIN = (".md", ".markdown", ".txt", ".text", ".rst")  # decoded, and nothing more
SECONDS, MEMORY = 120, 4 * 10**9
READER = (sys.executable, "-m", "halka.server.resources.reading")


def read_apart(name: str, path: Path, reader: Sequence[str] = READER, seconds: float = SECONDS) -> Text:
    """The text of a file that is known by another name. Raises Unreadable, also where its reader fails."""
    if path.suffix.lower() in PLAIN:
        return read_as(name, path)
    try:
        done = subprocess.run(
            [*reader, str(path)], capture_output=True, timeout=seconds, env=environment(os.environ), check=False
        )
    except subprocess.TimeoutExpired:
        raise Unreadable(f"{name} takes longer than {seconds:g} seconds to read: simplify it, or split it") from None
    if done.returncode:
        cause = f"signal {signal.Signals(-done.returncode).name}" if done.returncode < 0 else "an error"
        raise Unreadable(f"{name} cannot be read: its reader ended with {cause}. Is it whole?")
    result = json.loads(done.stdout)
    if "reason" in result:
        raise Unreadable(result["reason"].replace(str(path), name))
    return Text(result["text"], tuple(result["pages"]), result["markdown"])


def main(path: str) -> None:
    """Print the text of a file, or why it cannot be read, as JSON."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    try:
        result = asdict(read_text(Path(path)))
    except Unreadable as error:
        result = {"reason": str(error)}
    print(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
