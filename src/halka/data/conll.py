"""CoNLL files: a word a line, its tag in the last column, an empty line after each sentence."""

from __future__ import annotations

from collections.abc import Iterator

from halka.util.errors import HalkaError

SUFFIXES = (".conll", ".bio", ".iob")
DOCUMENT = "-DOCSTART-"


def sentences(text: str) -> Iterator[tuple[int, list[list[str]]]]:
    """Each sentence's lines, split into columns, with the number of its first line; document marks are left out."""
    lines: list[list[str]] = []
    first = 0
    for number, line in enumerate([*text.split("\n"), ""], start=1):
        columns = line.split()
        if columns and columns[0] != DOCUMENT:
            first = first if lines else number
            lines.append(columns)
        elif lines:
            yield first, lines
            lines = []


def tagged(lines: list[list[str]]) -> dict[str, object]:
    """A sentence's words and tags. Raises ValueError for a line without a tag."""
    if alone := [columns[0] for columns in lines if len(columns) < 2]:
        raise HalkaError(f"the word {alone[0]!r} has no tag: a line is a word and its tag, with blanks between")
    return {"words": [columns[0] for columns in lines], "tags": [columns[-1] for columns in lines]}
