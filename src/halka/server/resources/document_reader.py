"""Reads an uploaded file's text in a process of its own: `python -m halka.server.resources.document_reader FILE MOST`.

A document may be made to crash its reader, keep it busy, or take all memory: then this process ends, and no other. Of
what it writes only so much is read, so that a small file that expands does not fill the server's memory either.
"""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from halka.rag.texts import Text, Unreadable, read_as, read_text
from halka.server.apart import cause_of, limit_memory, output_of
from halka.util.python import program

PLAIN = (".md", ".markdown", ".txt", ".text", ".rst")  # decoded, and nothing more
SECONDS, MEMORY = 120, 4 * 10**9
WIDEST = 4  # bytes of a character in UTF-8
BESIDE = 1 << 20  # bytes of JSON beside the text
READER = program("halka.server.resources.document_reader")


def read_apart(
    name: str,
    path: Path,
    characters: int,
    *,
    reader: Sequence[str] = READER,
    seconds: float = SECONDS,
    check: Callable[[], object] = lambda: None,
) -> Text:
    """The text of a file that is known by another name, of at most so many characters.

    `check` is called every second: an error that it raises ends the reader. Raises Unreadable, also where that fails.
    """
    too_long = Unreadable(f"{name} has more than {characters:,} characters, the most of a document here: split it")
    if path.suffix.lower() in PLAIN:
        if path.stat().st_size > WIDEST * characters or len((text := read_as(name, path)).text) > characters:
            raise too_long
        return text
    output, status = output_of([*reader, str(path), str(characters)], seconds, WIDEST * characters + BESIDE, check)
    if output is None:
        raise too_long
    if status is None:
        raise Unreadable(f"{name} takes longer than {seconds:g} seconds to read: simplify it, or split it")
    if status:
        raise Unreadable(f"{name} cannot be read: its reader ended with {cause_of(status)}. Is it whole?")
    result = json.loads(output)
    if "reason" in result:
        raise Unreadable(result["reason"].replace(str(path), name))
    if len(result["text"]) > characters:
        raise too_long
    return Text(result["text"], tuple(result["pages"]), result["markdown"])


def main(path: str, characters: str) -> None:
    """Print the text of a file, or why it cannot be read, as JSON.

    Of a text that is too long it prints one character too many.
    """
    limit_memory(MEMORY, resource.RLIMIT_AS)
    try:
        result = asdict(read_text(Path(path)))
        result["text"] = result["text"][: int(characters) + 1]
    except Unreadable as error:
        result = {"reason": str(error)}
    sys.stdout.buffer.write(json.dumps(result, ensure_ascii=False).encode())


if __name__ == "__main__":
    main(*sys.argv[1:])
