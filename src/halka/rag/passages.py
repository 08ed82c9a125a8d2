"""Cut a text into passages: along its structure, within the embedder's limit, each an exact slice of the text."""

from __future__ import annotations

import bisect
import re
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from halka.rag.texts import Text
from halka.util.errors import HalkaError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

HEADING = re.compile(r"^(#{1,6})[ \t]+([^ \t\n].*)$", re.MULTILINE)  # with the #s at its end
FENCE = re.compile(r" {0,3}(`{3,}(?=[^`]*$)|~{3,})")
ITEM = re.compile(r" {0,3}(?:[-+*]|\d{1,9}[.)])(?: {1,4}(?! )|$)")  # the beginning of a list's item
HEADING_TOKENS = 24  # tokens of a passage reserved for its headings
CHARACTERS = 16  # the most characters, without spaces, for each token, since a long run may be one token
RUN = 10_000  # characters of such a run to cut at a time, since the splitter's time is quadratic
STRETCH = 500_000  # characters to cut at a time: some seconds


@dataclass(frozen=True)
class Passage:
    """A piece of a document.

    document    the document's name
    number      of the passage in its document, from 0
    text        the characters from `start` to `end` of the document's text
    page        the page where it begins, from 1; None if the document has no pages
    heading     the headings above it, outermost first
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
        """The text to embed and index: headings and text."""
        return f"{self.heading}\n{self.text}" if self.heading else self.text


def joined(passages: Iterable[Passage]) -> str:
    """The text that these passages were cut from, in order; the white space between them is line ends."""
    parts, end = list[str](), 0
    for passage in passages:
        parts += ["\n" * (passage.start - end), passage.text]
        end = passage.end
    return "".join(parts)


class Cutter:
    """Cuts texts into passages of at most `limit` tokens, headings included, as the embedder counts them.

    No passage has more than 16 characters, not counting spaces, for each of those tokens. Raises HalkaError for a limit
    that leaves no room beside headings.
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
        """The passages of a document, in order; every character but spaces is in one of them."""
        headings = _headings(text, self._short) if text.markdown else []
        starts = [at for at, _ in headings]
        titles = {*starts}
        for number, (start, end) in enumerate(self._with_titles(text, titles)):
            above = bisect.bisect_right(starts, start)
            heading = headings[above - 1][1] if above else ""
            piece = text.text[start:end]
            if start in titles and not self._fits(f"{heading}\n{piece}"):
                heading = ""  # the text begins with it
            yield Passage(document, number, piece, start, end, text.page(start), heading, readers)

    def _with_titles(self, text: Text, titles: Container[int]) -> Iterator[tuple[int, int]]:
        """The spans of the pieces; a title is joined with the text below it where both fit."""
        last: tuple[int, int] | None = None
        for start, end in self._pieces(text):
            if last is not None and self._is_title(text.text, last, titles):
                with_title = text.text[last[0] : end]
                if not self._is_long(with_title) and self._fits(with_title):
                    start, last = last[0], None
            if last is not None:
                yield last
            last = start, end
        if last is not None:
            yield last

    def _pieces(self, text: Text) -> Iterator[tuple[int, int]]:
        """The spans of the pieces: cut by structure, and again where a piece has too many characters for its tokens."""
        splitter = self._markdown if text.markdown else self._plain
        for base, stretch in _stretches(text.text):
            for start, piece in splitter.chunk_indices(stretch):
                if not self._is_long(piece):
                    yield base + start, base + start + len(piece)
                    continue
                for at, part in _parts(piece, self._most):
                    for within, small in splitter.chunk_indices(part):  # it may have more tokens than before
                        yield base + start + at + within, base + start + at + within + len(small)

    def _is_long(self, text: str) -> bool:
        return len(text) > self._most and sum(map(len, text.split())) > self._most

    def _is_title(self, text: str, span: tuple[int, int], starts: Container[int]) -> bool:
        """Whether a piece is a heading and nothing else."""
        return span[0] in starts and "\n" not in text[slice(*span)].strip()

    def _fits(self, text: str) -> bool:
        return len(self._tokenizer.encode(text).ids) <= self._limit

    def _short(self, heading: str) -> str:
        """The end of a heading, in whole words, that fits into the tokens for headings."""
        heading = _tail(heading)
        words = [0, *(match.end() for match in re.finditer(" ", heading)), len(heading)]
        return heading[words[bisect.bisect_left(words, True, key=lambda at: self._is_short(heading[at:]))] :]

    def _is_short(self, heading: str) -> bool:
        return len(self._tokenizer.encode(heading, add_special_tokens=False).ids) < HEADING_TOKENS


def _headings(text: Text, short: Callable[[str], str]) -> list[tuple[int, str]]:
    """The offsets of headings, each with the path of titles to it, shortened: `Guide › Install`."""
    code = _code_blocks(text.text)
    headings: list[tuple[int, str]] = []
    path: list[tuple[int, str]] = []
    for match in HEADING.finditer(text.text):
        fence = bisect.bisect_right(code, match.start(), key=lambda span: span[0])
        if fence and match.start() < code[fence - 1][1]:
            continue
        level, title = len(match[1]), match[2].rstrip("#").rstrip(" \t") or "#"
        path = [(depth, above) for depth, above in path if depth < level] + [(level, _tail(title))]
        headings.append((match.start(), short(" › ".join(title for _, title in path if title))))
    return headings


def _code_blocks(text: str) -> list[tuple[int, int]]:
    """The spans of fenced code, as CommonMark has it, but that code in a list may be indented less than its item.

    A block that is not closed goes to the end of the text, or of the item.
    """
    blocks, items = list[tuple[int, int]](), [0]  # the columns where the contents of open items begin
    fence, start, at, end = "", 0, 0, len(text)
    for line in text.split("\n"):
        flat = line.expandtabs(4)
        body = flat.strip(" ")
        indent = len(flat) - len(flat.lstrip(" "))
        if fence:
            if len(body) >= len(fence) and {*body} == {fence[0]} and indent <= items[-1] + 3:
                blocks.append((start, at))
                fence = ""
            elif body and indent < items[-1]:
                end = min(end, at)
        elif body:
            while indent < items[-1]:
                items.pop()
            while item := ITEM.match(flat, items[-1]):
                items.append(item.end())
            if opening := FENCE.match(flat, items[-1]):
                fence, start, end = opening[1], at, len(text)
        at += len(line) + 1
    return [*blocks, (start, end)] if fence else blocks


def _stretches(text: str) -> Iterator[tuple[int, str]]:
    """The text with its offset, or its parts: of very long runs without spaces, and of what is between them."""
    ends = [len(text)]
    if len(text) > 2 * RUN:
        runs = (match.span() for match in re.finditer(r"\S+", text) if match.end() - match.start() > 2 * RUN)
        ends = [at for start, end in runs for at in (*range(start, end, RUN), end)] + ends
    for start, end in pairwise([0, *ends]):
        for at, part in _parts(text[start:end], STRETCH):
            yield start + at, part


def _parts(text: str, most: int) -> Iterator[tuple[int, str]]:
    """Parts of a text of at most `most` characters with their offsets, cut at the last line end or space if any."""
    start = 0
    while start < len(text):
        end = start + most
        if end < len(text):
            gaps = (text.rfind(gap, start + 1, end) for gap in ("\n\n", "\n", " "))
            end = next((at for at in gaps if at > start), end)
        yield start, text[start:end]
        start = end


def _tail(heading: str) -> str:
    """The end of a very long heading, in whole words."""
    most = CHARACTERS * HEADING_TOKENS
    return heading if len(heading) <= most else heading[-most:].partition(" ")[2]
