"""Text for people, Cards and headers: one line, a plural, an empty table for a terminal, a template's fingerprint."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table
    from transformers import PreTrainedTokenizerBase

JOINERS = "\u200c\u200d"  # part of the spelling in Bengali and other scripts


def one_line(value: object) -> str:
    """The value as one line of text, without control characters and marks that change the writing direction."""
    return " ".join("".join(c if c.isprintable() or c in JOINERS else " " for c in str(value)).split())


def not_unicode(text: str) -> str | None:
    """What a text has that is no character, as a sentence's end; None where it is Unicode throughout."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        fault = f"the byte {code - 0xDC00:#x}" if 0xDC80 <= code <= 0xDCFF else f"half a character ({code:#x})"
        return f"is not UTF-8: it has {fault} at character {error.start + 1}"
    return None


def printable(name: str) -> str:
    """A name that can be printed: bytes that are not Unicode become escapes."""
    return name.encode("utf-8", "backslashreplace").decode()


def fits_header(text: str) -> bool:
    """Whether an HTTP header can hold the text; an error of one that it cannot would quote it, a key, too."""
    return text.isascii() and text.isprintable()


def plural(number: int, noun: str) -> str:
    """1 run, 3 runs; 1 query, 3 queries."""
    many = f"{noun[:-1]}ies" if noun.endswith("ry") else f"{noun}s"
    return f"{number} {noun if number == 1 else many}"


def columns(*titles: str, right: Collection[str] = ()) -> Table:
    """An empty table without borders; the columns named in `right` are aligned to the right."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for title in titles:
        table.add_column(title, justify="right" if title in right else "left", overflow="fold")
    return table


def chat_template_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Twelve hexadecimal digits of the chat template's sha256, "none" without a template."""
    if tokenizer.chat_template is None:
        return "none"
    return hashlib.sha256(tokenizer.get_chat_template().encode()).hexdigest()[:12]
