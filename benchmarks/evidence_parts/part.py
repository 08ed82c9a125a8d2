"""A part of the evidence page: sentences, tables, figures and what is not measured yet, as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from halka.report.svg import Plot
from halka.report.table import Cell, escaped

PICTURES = "pictures/evidence"
"""Where the page's figures are, seen from docs."""


@dataclass(frozen=True)
class Table:
    """A table: its first column is a name, the others are figures."""

    head: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    caption: str = ""


@dataclass(frozen=True)
class Notes:
    """Sentences, one a line."""

    sentences: tuple[str, ...]


@dataclass(frozen=True)
class Missing:
    """What no result says yet, and the commands that measure it, in turn; none where another part has them."""

    commands: tuple[str, ...]
    what: str = ""

    @property
    def words(self) -> str:
        return f"Not measured yet{f', {self.what}' if self.what else ''}{':' if self.commands else '.'}"


Block = str | Table | Notes | Missing | Plot
"""A paragraph, or one of the others."""


@dataclass(frozen=True)
class Part:
    """One part of the page; `is_measured` is whether it says anything of results."""

    name: str
    title: str
    blocks: tuple[Block, ...]

    @property
    def is_measured(self) -> bool:
        return any(not isinstance(block, Missing) for block in self.blocks)

    @property
    def plots(self) -> list[Plot]:
        return [block for block in self.blocks if isinstance(block, Plot)]


def table(head: Sequence[str], rows: Sequence[Sequence[str | Cell]], caption: str = "") -> Table:
    """A table of texts and cells."""
    cells = tuple(tuple(cell if isinstance(cell, Cell) else Cell(cell) for cell in row) for row in rows)
    return Table(tuple(head), cells, caption)


def to_markdown(part: Part) -> str:
    return "\n\n".join(map(_markdown, part.blocks)) + "\n"


def _markdown(block: Block) -> str:
    if isinstance(block, str):
        return escaped(block)
    if isinstance(block, Notes):
        return "\n".join(f"- {escaped(sentence)}" for sentence in block.sentences)
    if isinstance(block, Missing):
        return f"{escaped(block.words)} {', then '.join(f'`{command}`' for command in block.commands)}".strip()
    if isinstance(block, Plot):
        return f"![{escaped(block.title)}]({PICTURES}/{block.name}.svg)\n\n{escaped(block.takeaway)}"
    lines = [map(escaped, block.head), ("---", *["---:"] * (len(block.head) - 1))]
    lines += [[_cell(cell) for cell in row] for row in block.rows]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{text}\n\n{escaped(block.caption)}" if block.caption else text


def _cell(cell: Cell) -> str:
    text = cell.whole if cell.sort is not None else escaped(cell.whole)
    return f"**{text}**" if cell.best else text
