"""A text to passages: cut where its structure ends, within the embedder's limit, each an exact slice of the text."""

from __future__ import annotations

import re
from collections.abc import Container, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from halka.rag.texts import Text

if TYPE_CHECKING:
    from tokenizers import Tokenizer

HEADING = re.compile(r"^(#{1,6})[ \t]+(.+?)[ \t]*#*$", re.MULTILINE)
FENCE = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)
HEADING_TOKENS = 24  # of a passage's tokens, for the headings that it stands under


@dataclass(frozen=True)
class Passage:
    """A piece of a document.

    document    whose piece it is
    number      which of its pieces, from 0
    text        the characters from `start` to `end` of the document's text
    page        where it begins, from 1; None where the document has no pages
    heading     the headings that it stands under, outermost first
    readers     who may read it
    """

    document: str
    number: int
    text: str
    start: int
    end: int
    page: int | None = None
    heading: str = ""
    readers: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        return f"{self.document}#{self.number}"

    @property
    def searched(self) -> str:
        """What is embedded and indexed: the text under its headings."""
        return f"{self.heading}\n{self.text}" if self.heading else self.text


class Cutter:
    """Cuts texts into passages of at most `limit` tokens, headings included, as the embedder counts them."""

    def __init__(self, tokenizer: Tokenizer, limit: int):
        from semantic_text_splitter import MarkdownSplitter, TextSplitter

        special = len(tokenizer.encode("", add_special_tokens=True).ids)
        if limit <= special + 2 * HEADING_TOKENS:
            raise ValueError(
                f"passages of {limit} tokens are too short to cut: {special + 2 * HEADING_TOKENS + 1} at least"
            )
        self._tokenizer, self._limit = tokenizer, limit
        capacity = limit - special - HEADING_TOKENS
        self._markdown: Any = MarkdownSplitter.from_huggingface_tokenizer(tokenizer, capacity)
        self._plain: Any = TextSplitter.from_huggingface_tokenizer(tokenizer, capacity)

    def cut(self, document: str, text: Text, readers: tuple[str, ...]) -> Iterator[Passage]:
        """The passages of a document, in order; every character that is no space is in one of them."""
        headings = _headings(text) if text.markdown else []
        splitter = self._markdown if text.markdown else self._plain
        starts = {at for at, _ in headings}
        pieces: list[tuple[int, int]] = []
        for start, piece in splitter.chunk_indices(text.text):
            end = start + len(piece)
            if pieces and self._is_title(text.text, pieces[-1], starts) and self._fits(text.text[pieces[-1][0] : end]):
                start = pieces.pop()[0]  # a title that was cut off from its text
            pieces.append((start, end))
        for number, (start, end) in enumerate(pieces):
            above = [title for at, title in headings if at <= start]
            heading = self._short(above[-1]) if above else ""
            piece = text.text[start:end]
            if start in starts and not self._fits(f"{heading}\n{piece}"):
                heading = ""  # it stands there
            yield Passage(document, number, piece, start, end, text.page(start), heading, readers)

    def _is_title(self, text: str, span: tuple[int, int], starts: Container[int]) -> bool:
        """Whether a piece is a heading and nothing else."""
        return span[0] in starts and "\n" not in text[slice(*span)].strip()

    def _fits(self, text: str) -> bool:
        return len(self._tokenizer.encode(text).ids) <= self._limit

    def _short(self, heading: str) -> str:
        """As much of the end of a heading as the tokens left for it hold."""
        while heading and len(self._tokenizer.encode(heading, add_special_tokens=False).ids) > HEADING_TOKENS - 1:
            _, _, shorter = heading.partition(" ")
            heading = shorter if shorter != heading else ""
        return heading


def _headings(text: Text) -> list[tuple[int, str]]:
    """Where headings stand, and the path of titles from the outermost to each: `Guide › Install`."""
    code = [match.span() for match in FENCE.finditer(text.text)]
    found: list[tuple[int, str]] = []
    path: list[tuple[int, str]] = []
    for match in HEADING.finditer(text.text):
        if any(start <= match.start() < end for start, end in code):
            continue
        level = len(match[1])
        path = [(depth, title) for depth, title in path if depth < level] + [(level, match[2])]
        found.append((match.start(), " › ".join(title for _, title in path)))
    return found
