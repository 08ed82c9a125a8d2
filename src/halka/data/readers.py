"""Read data files into rows, each with its line number; a row that cannot be read is a `Problem` with the reason."""

import csv
import gzip
import io
import json
import math
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from halka.util.errors import DataError
from halka.util.text import printable

CONLL = (".conll", ".bio", ".iob")
TEXTS = (".txt", ".md")
SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", *CONLL, *TEXTS)
DOCUMENT = "-DOCSTART-"  # a line of CoNLL between documents


@dataclass(frozen=True)
class Problem:
    """What is wrong with one row: its place ("train.jsonl:12") and the reason."""

    where: str
    reason: str

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}"


class Number(str):
    """A number in a JSON file, as the file writes it."""

    __slots__ = ()


@dataclass(frozen=True)
class Row:
    """One row of a file. Keys are stripped and in lower case; JSON numbers are text, `Number`s.

    `repeated` are the keys that several fields of the row had, of which the last counts.
    """

    where: str
    fields: dict[str, object]
    repeated: tuple[str, ...] = ()


def read_rows(path: str | Path) -> list[Row | Problem]:
    """All rows of a JSONL, JSON, CSV, TSV, Parquet or CoNLL file in order; text may be gzipped (`.jsonl.gz`).

    A `.txt` or `.md` file is one row, with all of it as `text`. Elsewhere blank lines are skipped. A JSON file may
    be one array or one object, whose syntax errors are the file's, or objects line by line. Bytes that are not UTF-8
    become lone surrogates, which `shapes` refuses.

    Raises:
        DataError: the file's kind is unknown, or the file as a whole cannot be read.
        OSError: the file is missing or may not be opened.
    """
    path = Path(path)
    suffixes = [suffix.lower() for suffix in path.suffixes]
    zipped = suffixes[-1:] == [".gz"]
    kind = (suffixes[:-1] if zipped else suffixes)[-1:]
    if not kind or kind[0] not in SUFFIXES or (zipped and kind[0] == ".parquet"):
        raise DataError(f"{path}: unknown kind of data file: use one of {', '.join(SUFFIXES)}, and .gz of text")
    if kind[0] == ".parquet":
        return list(_parquet(path))
    tables = {".csv": _csv, ".tsv": _csv, **dict.fromkeys(CONLL, _conll), **dict.fromkeys(TEXTS, _whole)}
    read = {".json": _json, **tables}.get(kind[0], _json_lines)
    return list(read(_text(path, zipped), printable(path.name)))


def whole_rows(path: str | Path) -> list[Row]:
    """The rows of a file. Raises DataError for the first that cannot be read, and as `read_rows`."""
    rows = []
    for row in read_rows(path):
        if isinstance(row, Problem):
            raise DataError(str(row))
        rows.append(row)
    return rows


def _text(path: Path, zipped: bool) -> str:
    data = path.read_bytes()
    if zipped:
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{path}: not a whole gzip file ({error}). Compress it again.") from error
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise DataError(f"{path}: the file is in UTF-16. Save it as UTF-8.")
    return data.decode("utf-8", errors="surrogateescape").removeprefix("\ufeff")


def row_of(where: str, fields: Mapping[str, object]) -> Row:
    """A row with its keys stripped and in lower case; NaN, pandas' missing value, is None."""
    own = {str(key).strip().lower(): None if _is_nan(value) else value for key, value in fields.items()}
    keys = fields.keys_written if isinstance(fields, Repeating) else fields
    return Row(where, own, _repeated(map(str, keys)) if len(own) < len(keys) else ())


class Repeating(dict[str, object]):
    """A JSON object in which keys are written twice, of which the last counts."""

    def __init__(self, pairs: list[tuple[str, object]]):
        super().__init__(pairs)
        self.keys_written = [key for key, _ in pairs]


def object_of(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """A JSON object, which knows whether keys are written twice in it."""
    fields = dict(pairs)
    return fields if len(fields) == len(pairs) else Repeating(pairs)


def twice_in(value: object) -> str | None:
    """A key that is written twice in an object, at any depth of a JSON value; None where none is."""
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, Repeating):
            return Counter(value.keys_written).most_common(1)[0][0]
        waiting += value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    return None


def _repeated(keys: Iterable[str]) -> tuple[str, ...]:
    """The keys, without blanks around them and in lower case, that occur more than once."""
    counts = Counter(key.strip().lower() for key in keys)
    return tuple(key for key, count in counts.items() if key and count > 1)


def _is_nan(value: object) -> bool:
    """NaN, or what pandas has in its place: NA and NaT, of which each comparison is NA."""
    return (isinstance(value, float) and math.isnan(value)) or type(value).__name__ in ("NAType", "NaTType")


def _row(where: str, value: object) -> Row | Problem:
    return row_of(where, value) if isinstance(value, dict) else Problem(where, f"not an object but {str(value)[:40]!r}")


def _decoder() -> json.JSONDecoder:
    """Numbers stay text, as the file writes them; NaN and Infinity are missing values."""
    return json.JSONDecoder(
        parse_int=Number, parse_float=Number, parse_constant=lambda _: None, object_pairs_hook=object_of
    )


def _json_reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        line = f"line {error.lineno} " if error.lineno > 1 else ""
        return f"not valid JSON: {error.msg} at {line}column {error.colno}"
    return "not readable as JSON: nested too deeply"


def _json_lines(text: str, name: str) -> Iterator[Row | Problem]:
    decode = _decoder().decode
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{name}:{number}"
        try:
            yield _row(where, decode(line))
        except (json.JSONDecodeError, RecursionError) as error:
            yield Problem(where, _json_reason(error))


def _json(text: str, name: str) -> Iterator[Row | Problem]:
    if text.lstrip()[:1] == "[":
        yield from _json_array(text, name)
        return
    try:
        yield _row(f"{name}:1", _decoder().decode(text))
    except (json.JSONDecodeError, RecursionError) as error:
        rows = list(_json_lines(text, name))
        first = text.lstrip().partition("\n")[0].rstrip()
        if isinstance(next(iter(rows), None), Problem) and not first.endswith("}"):  # no lines, but one broken object
            raise _broken(name, _json_reason(error)) from None
        yield from rows


def _broken(place: str, reason: str) -> DataError:
    return DataError(f"{place}: {reason}. Mend the file, or write JSONL, of which one broken row loses no other.")


def _json_array(text: str, name: str) -> Iterator[Row | Problem]:
    """Element by element, so that each has its line number."""
    decoder = _decoder()
    line, counted = 1, 0
    at = _next(text, text.index("[") + 1)
    closed = text[at : at + 1] == "]"
    while not closed:
        line, counted = line + text.count("\n", counted, at), at
        where = f"{name}:{line}"
        try:
            value, end = decoder.raw_decode(text, at)
        except (json.JSONDecodeError, RecursionError) as error:
            raise _broken(where, _json_reason(error)) from None
        yield _row(where, value)
        at = _next(text, end)
        closed = text[at : at + 1] == "]"
        if not closed and text[at : at + 1] != ",":
            raise _broken(where, "no comma or closing bracket after this row")
        at = at if closed else _next(text, at + 1)
    if text[at + 1 :].strip():
        raise _broken(f"{name}:{line}", "text follows the end of the array that begins the file")


def _next(text: str, at: int) -> int:
    """The first position from `at` on that is not whitespace."""
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at


def _whole(text: str, name: str) -> Iterator[Row]:
    yield Row(name, {"text": text})


def _conll(text: str, name: str) -> Iterator[Row | Problem]:
    """A row for each sentence: a word a line, its tag in the last column; an empty line ends the sentence.

    Columns are separated by tabs where each word's line has as many, else by blanks and tabs; other spaces, as one
    that does not break, are part of a word. Before a sentence `# key = value` is a comment, as in CoNLL-U.
    """
    lines = [line.strip(" \t\r") for line in text.split("\n")]
    tabs = {line.count("\t") for line in lines if line and not line.startswith(("# ", DOCUMENT))}
    between = re.compile(r" *\t *" if len(tabs) == 1 and tabs != {0} else r"[ \t]+")
    sentence: list[list[str]] = []
    first = 0
    for number, line in enumerate([*lines, ""], start=1):
        columns = between.split(line) if line else []
        if not sentence and line.startswith("# ") and "=" in line:
            continue
        if columns and not line.startswith(DOCUMENT):
            first = first if sentence else number
            sentence.append(columns)
        elif sentence:
            yield _tagged(f"{name}:{first}", sentence)
            sentence = []


def _tagged(where: str, sentence: list[list[str]]) -> Row | Problem:
    if untagged := [columns[0] for columns in sentence if len(columns) < 2]:
        return Problem(where, f"the word {untagged[0]!r} has no tag: a line is a word and its tag, separated by blanks")
    return Row(where, {"words": [columns[0] for columns in sentence], "tags": [columns[-1] for columns in sentence]})


def _csv(text: str, name: str) -> Iterator[Row | Problem]:
    """The first record names the columns; its most frequent of comma, semicolon and tab is the separator.

    In a .tsv it is the tab, where the record has one.
    """
    first = text.lstrip("\r\n").split("\n", 1)[0]
    separator = "\t" if ".tsv" in name.lower() and "\t" in first else max(",;\t", key=first.count)
    limit = csv.field_size_limit(2**31 - 1)  # a process-wide setting, restored below
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
        yield from _csv_records(reader, name, separator)
    finally:
        csv.field_size_limit(limit)


def _csv_records(reader: Any, name: str, separator: str) -> Iterator[Row | Problem]:
    header: list[str] | None = None
    while True:
        where = f"{name}:{reader.line_num + 1}"
        try:
            record = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield Problem(where, f"not valid CSV: {error} {_lines(reader, where)}")
            continue
        if len(record) <= 1 and not "".join(record).strip():
            continue
        if header is None:
            header = _distinct(record, name)
        elif separator == "\t" and _holds_rows(record, len(header)):
            doubt = "each of its lines would be a row, so that quotes of two rows may have been taken for a pair"
            way = "where a field is to hold these tabs and lines, give the data as JSONL"
            yield Problem(where, f"{doubt}: {way} {_lines(reader, where)}")
        elif len(record) != len(header):
            yield Problem(where, f"{len(record)} fields where the header has {len(header)}")
        else:
            yield _row(where, dict(zip(header, record, strict=True)))


def _holds_rows(record: list[str], columns: int) -> bool:
    """Whether the record has several lines, each of which would be a row, by quotes that nobody wrote twice.

    A quote within a field is there only if it was written twice, as programs do that write tables.
    """
    text = "\t".join(record)
    lines = [line for line in text.split("\n") if line.strip()]
    return '"' not in text and len(lines) > 1 and all(line.count("\t") == columns - 1 for line in lines)


def _lines(reader: Any, where: str) -> str:
    return f"(read as one row of {reader.line_num - int(where.rpartition(':')[2]) + 1} lines)"


def _distinct(columns: list[str], name: str) -> list[str]:
    """The column names. Raises DataError for two that differ in blanks and capitals only."""
    if repeated := _repeated(columns):
        raise DataError(f"{name}: two columns are called {repeated[0]!r}: rename or remove one")
    return columns


def _parquet(path: Path) -> Iterator[Row | Problem]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with path.open("rb") as source, pq.ParquetFile(source) as file:
            batches = list(file.iter_batches())
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise DataError(f"{path}: not a whole Parquet file ({error}). Write it again.") from error
    name = printable(path.name)
    if batches:
        _distinct(batches[0].schema.names, name)
    number = 0
    for batch in batches:
        for index in range(batch.num_rows):
            number += 1
            where = f"{name}:row {number}"
            try:
                yield _row(where, {key: batch.column(key)[index].as_py() for key in batch.schema.names})
            except (ValueError, OverflowError) as error:
                yield Problem(where, f"not readable: {error}")
