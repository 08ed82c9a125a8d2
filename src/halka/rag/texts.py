"""Read a file's text and the offsets of its pages: passages are cut from it, and citations point into it.

To read another kind of file, add its reader to `READERS`; markitdown, the extra `documents`, reads those of `EXTRA`.
"""

from __future__ import annotations

import bisect
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from pathlib import Path
from zipfile import is_zipfile

from halka.util.errors import DataError
from halka.util.text import printable

EXTRA = (".docx", ".pptx", ".xlsx", ".xls", ".epub", ".msg", ".ipynb", ".csv", ".json", ".xml")
"""The kinds that need the extra `documents`."""
UNREAD = (
    *(".doc", ".ppt", ".rtf", ".odt", ".ods", ".odp", ".pages", ".ps", ".djvu", ".mobi"),
    *(".tex", ".adoc", ".org", ".log", ".jsonl", ".tsv", ".eml"),
)
"""The kinds of documents that nothing here reads. A folder's pictures, programs and styles are no documents."""
ZIPPED = (".docx", ".pptx", ".xlsx", ".epub")
PAGE_BREAK = "\n\n"


class Unreadable(DataError):
    """Raised for a file whose text cannot be read; the message says why, and what to do."""


@dataclass(frozen=True)
class Text:
    """The text of a file.

    text      with `\\n` as line ends; offsets count its characters
    pages     the offsets at which its pages begin; empty if it has none
    markdown  whether headings are marked with #
    """

    text: str
    pages: tuple[int, ...] = ()
    markdown: bool = False

    def page(self, offset: int) -> int | None:
        """The number, from 1, of the page with the character at this offset; None if there are no pages."""
        return bisect.bisect_right(self.pages, offset) or None


def read_text(path: Path) -> Text:
    """The text of a file, read by its suffix. Raises Unreadable for another kind, damage, or no text."""
    suffix = path.suffix.lower()
    try:
        if suffix in READERS:
            read = READERS[suffix](path)
        elif suffix in EXTRA:
            read = _converted(path)
        else:
            raise Unreadable(
                f"{path}: files of the kind {suffix or 'without an ending'} are not read: convert it to text"
            )
    except OSError as error:
        raise Unreadable(f"{path}: {(error.strerror or str(error)).lower()}") from None
    except (Unreadable, ImportError):
        raise
    except RecursionError as error:
        raise Unreadable(f"{path} is nested too deep to be read: simplify it, or save it as text") from error
    except Exception as error:  # each reader's library has its own errors; the file is at fault
        raise Unreadable(f"{path} cannot be read ({type(error).__name__}): is it whole?") from error
    check_unicode(str(path), read.text)
    if not read.text.strip():
        raise Unreadable(f"{path} holds no text" + (" (a scan?): recognise it first" if suffix == ".pdf" else ""))
    return _composed(read)


def _composed(read: Text) -> Text:
    pieces = [composed(read.text[start:end]) for start, end in pairwise((0, *read.pages, len(read.text)))]
    return replace(read, text="".join(pieces), pages=tuple(accumulate(map(len, pieces[:-1]))))


def read_as(name: str, path: Path) -> Text:
    """The text of a file that is known by another name. Raises Unreadable as `read_text` does, with that name."""
    try:
        return read_text(path)
    except Unreadable as error:
        raise Unreadable(str(error).replace(str(path), name)) from None


def composed(text: str) -> str:
    """The text in one form (Unicode's NFC), as questions are, too: é is one character then, Bengali's য় two."""
    return unicodedata.normalize("NFC", text)


def check_unicode(name: str, text: str = "") -> None:
    """Raises Unreadable for a name or text with surrogates or bytes of another encoding, and for a text with zeros."""
    for value, what in ((name, "a name"), (text, "text")):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise Unreadable(
                f"{printable(name)} has {what} that is no Unicode, from character {error.start}: change it"
            ) from None
    if "\0" in text:
        raise Unreadable(f"{printable(name)} is binary, not text")


def is_readable(path: Path) -> bool:
    """Whether there is a reader for files of this kind, and this one is not hidden."""
    return path.suffix.lower() in (*READERS, *EXTRA) and not path.name.startswith((".", "~$"))


def _plain(path: Path) -> Text:
    return Text(_decoded(path))


def _markdown(path: Path) -> Text:
    return Text(_decoded(path), markdown=True)


def _decoded(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8-sig")  # with universal newlines
    except UnicodeDecodeError as error:
        raise Unreadable(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}): save it as UTF-8") from None
    return text


def _html(path: Path) -> Text:
    from bs4 import BeautifulSoup
    from markdownify import MarkdownConverter

    page = BeautifulSoup(path.read_bytes(), "lxml")  # in the encoding that it declares, where end tags may lack
    for element in page(["script", "style", "template", "noscript", "nav", "head"]):
        element.decompose()
    converter = MarkdownConverter(
        heading_style="ATX",
        strip=["a", "img"],
        escape_asterisks=False,  # words stay as they are written, so that user_id is found
        escape_underscores=False,
    )
    return Text(_without_gaps(converter.convert_soup(page)), markdown=True)


def _pdf(path: Path) -> Text:
    from pypdfium2 import PdfDocument, PdfiumError

    try:
        document = PdfDocument(path)
    except PdfiumError as error:
        locked = "password" in str(error).lower()
        reason = "is encrypted: save it without a password" if locked else f"is no whole PDF ({error}): fetch it again"
        raise Unreadable(f"{path} {reason}") from None
    pages, starts, length = [], [], 0
    try:
        for page in document:
            text = page.get_textpage().get_text_bounded()
            text = (
                text.replace("\r\n", "\n")
                .replace("\r", "\n")
                .replace("\ufffe\n", "")
                .replace("\ufffe", "")
                .replace("\0", "")
            )
            starts.append(length)
            pages.append(text)
            length += len(text) + len(PAGE_BREAK)
    except PdfiumError as error:
        raise Unreadable(f"{path}: page {len(pages) + 1} cannot be read ({error}): fetch it again") from None
    finally:
        document.close()
    return Text(PAGE_BREAK.join(pages), tuple(starts))


def _converted(path: Path) -> Text:
    try:
        from markitdown import MarkItDown  # type: ignore[import-not-found]
    except ImportError:
        raise Unreadable(
            f"{path}: files of the kind {path.suffix} need the extra: pip install 'halka[documents]'"
        ) from None
    if path.suffix.lower() in ZIPPED and not is_zipfile(path):  # markitdown would read it as plain text
        raise Unreadable(f"{path} is no whole {path.suffix} file: fetch it again")
    result = MarkItDown(enable_plugins=False).convert_local(str(path))
    return Text(_without_gaps(result.text_content), markdown=True)


def _without_gaps(text: str) -> str:
    """Markdown with at most one empty line in a row and no spaces at line ends."""
    lines: list[str] = []
    for line in text.replace("\r\n", "\n").replace("\r", "\n").split("\n"):
        line = line.rstrip()
        if line or (lines and lines[-1]):
            lines.append(line)
    return "\n".join(lines).strip("\n")


READERS: dict[str, Callable[[Path], Text]] = {
    ".md": _markdown,
    ".markdown": _markdown,
    ".txt": _plain,
    ".text": _plain,
    ".rst": _plain,
    ".html": _html,
    ".htm": _html,
    ".pdf": _pdf,
}
