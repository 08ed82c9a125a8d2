"""A text to passages: cut where its structure ends, within the embedder's limit, each an exact slice of the text."""

from __future__ import annotations

import bisect
import re
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from halka.rag.texts import Text
from halka.util.errors import HalkaError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

HEADING = re.compile(r"^(#{1,6})[ \t]+([^ \t\n].*)$", re.MULTILINE)  # with the #s at its end
FENCE = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)
HEADING_TOKENS = 24  # of a passage's tokens, for the headings that it stands under
CHARACTERS = 16  # besides spaces, at most, for each token that there may be: a run of them may be one, however long
RUN = 10_000  # characters of such a run that are cut at a time: the time that it takes grows with their square


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
    """Cuts texts into passages of at most `limit` tokens, headings included, as the embedder counts them.

    None has more than 16 characters, spaces left out, for each of those tokens.
    """

    def __init__(self, tokenizer: Tokenizer, limit: int):
        from semantic_text_splitter import MarkdownSplitter, TextSplitter

        special = len(tokenizer.encode("", add_special_tokens=True).ids)
        if limit <= special + 2 * HEADING_TOKENS:
            raise HalkaError(
                f"passages of {limit} tokens are too short to cut: {special + 2 * HEADING_TOKENS + 1} at least"
            )
        self._tokenizer, self._limit = tokenizer, limit
        capacity = limit - special - HEADING_TOKENS
        self._markdown: Any = MarkdownSplitter.from_huggingface_tokenizer(tokenizer, capacity)
        self._plain: Any = TextSplitter.from_huggingface_tokenizer(tokenizer, capacity)
        self._most = CHARACTERS * capacity

    def cut(self, document: str, text: Text, readers: tuple[str, ...]) -> Iterator[Passage]:
        """The passages of a document, in order; every character that is no space is in one of them."""
        headings = _headings(text, self._short) if text.markdown else []
        starts = [at for at, _ in headings]
        titles, pieces = {*starts}, list[tuple[int, int]]()
        for start, end in self._pieces(text):
            if pieces and self._is_title(text.text, pieces[-1], titles):
                with_title = text.text[pieces[-1][0] : end]
                if not self._is_long(with_title) and self._fits(with_title):
                    start = pieces.pop()[0]  # a title that was cut off from its text
            pieces.append((start, end))
        for number, (start, end) in enumerate(pieces):
            above = bisect.bisect_right(starts, start)
            heading = headings[above - 1][1] if above else ""
            piece = text.text[start:end]
            if start in titles and not self._fits(f"{heading}\n{piece}"):
                heading = ""  # it stands there
            yield Passage(document, number, piece, start, end, text.page(start), heading, readers)

    def _pieces(self, text: Text) -> Iterator[tuple[int, int]]:
        """Where the text is cut: by its structure, and what has too many characters for its tokens once more."""
        splitter = self._markdown if text.markdown else self._plain
        for base, stretch in _stretches(text.text):
            for start, piece in splitter.chunk_indices(stretch):
                if not self._is_long(piece):
                    yield base + start, base + start + len(piece)
                    continue
                for at, part in _parts(piece, self._most):
                    for within, small in splitter.chunk_indices(part):  # whose tokens may be others, and more
                        yield base + start + at + within, base + start + at + within + len(small)

    def _is_long(self, text: str) -> bool:
        return len(text) > self._most and sum(map(len, text.split())) > self._most

    def _is_title(self, text: str, span: tuple[int, int], starts: Container[int]) -> bool:
        """Whether a piece is a heading and nothing else."""
        return span[0] in starts and "\n" not in text[slice(*span)].strip()

    def _fits(self, text: str) -> bool:
        return len(self._tokenizer.encode(text).ids) <= self._limit

    def _short(self, heading: str) -> str:
        """As much of the end of a heading, in whole words, as what is left for it holds."""
        heading = _tail(heading)
        words = [0, *(match.end() for match in re.finditer(" ", heading)), len(heading)]
        return heading[words[bisect.bisect_left(words, True, key=lambda at: self._is_short(heading[at:]))] :]

    def _is_short(self, heading: str) -> bool:
        return len(self._tokenizer.encode(heading, add_special_tokens=False).ids) < HEADING_TOKENS


def _headings(text: Text, short: Callable[[str], str]) -> list[tuple[int, str]]:
    """Where headings stand, and the path of titles from the outermost to each: `Guide › Install`, made short."""
    code = [match.span() for match in FENCE.finditer(text.text)]
    found: list[tuple[int, str]] = []
    path: list[tuple[int, str]] = []
    for match in HEADING.finditer(text.text):
        fence = bisect.bisect_right(code, match.start(), key=lambda span: span[0])
        if fence and match.start() < code[fence - 1][1]:
            continue
        level, title = len(match[1]), match[2].rstrip("#").rstrip(" \t") or "#"
        path = [(depth, above) for depth, above in path if depth < level] + [(level, _tail(title))]
        found.append((match.start(), short(" › ".join(each for _, each in path if each))))
    return found


def _stretches(text: str) -> Iterator[tuple[int, str]]:
    """The text, or where there are very long runs without spaces what stands between them, and their parts."""
    ends = [len(text)]
    if len(text) > 2 * RUN:
        runs = (match.span() for match in re.finditer(r"\S+", text) if match.end() - match.start() > 2 * RUN)
        ends = [at for start, end in runs for at in (*range(start, end, RUN), end)] + ends
    for start, end in pairwise([0, *ends]):
        if start < end:
            yield start, text[start:end]


def _parts(text: str, most: int) -> Iterator[tuple[int, str]]:
    """A text in parts of at most so many characters, each with its offset; cut at the last line end or space there."""
    start = 0
    while start < len(text):
        end = start + most
        if end < len(text):
            gaps = (text.rfind(gap, start + 1, end) for gap in ("\n\n", "\n", " "))
            end = next((at for at in gaps if at > start), end)
        yield start, text[start:end]
        start = end


def _tail(heading: str) -> str:
    """The end of a heading, in whole words, beyond which none is read."""
    most = CHARACTERS * HEADING_TOKENS
    return heading if len(heading) <= most else heading[-most:].partition(" ")[2]
