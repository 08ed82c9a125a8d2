"""`Example`: a conversation that ends with the answer to learn; files and rows become lists of them."""

from __future__ import annotations

import json
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import overload

from halka.data.messages import Message, check_message, text_of
from halka.data.readers import Problem, Row, read_rows, row_of
from halka.data.shapes import (
    SHAPES,
    conversation_of,
    detect_shape,
    keys_read,
    known_shapes,
    references_of,
)
from halka.util.errors import DataError
from halka.util.text import plural

__all__ = [
    "Example",
    "Examples",
    "ExamplesOrItems",
    "FileExamples",
    "Item",
    "Message",
    "as_examples",
    "checked_example",
    "examples_and_items",
    "read_examples",
]


@dataclass(frozen=True)
class Example:
    """A conversation; for training it ends with the assistant's answer. Or one raw text, all of which is learned.

    messages     in order; an optional system message first
    references   all accepted answers, where there are several
    where        where it was read from ("train.jsonl:12"), for messages
    """

    messages: tuple[Message, ...]
    references: tuple[str, ...] = ()
    where: str = ""

    @property
    def prompt(self) -> tuple[Message, ...]:
        """All messages before the final answer; all messages if there is none yet."""
        return self.messages[:-1] if self._answered else self.messages

    @property
    def answers(self) -> tuple[str, ...]:
        """The references or, without any, the final answer, with its calls as Hermes and Qwen write them."""
        return self.references or ((self.messages[-1].written,) if self._answered else ())

    @property
    def answer(self) -> str | None:
        """What is learned: the final answer or, without one, the first reference."""
        return self.messages[-1].written if self._answered else next(iter(self.references), None)

    @property
    def is_text(self) -> bool:
        return [message.role for message in self.messages] == ["text"]

    @property
    def plain(self) -> dict[str, object]:
        """As a row of a data file."""
        if self.is_text:
            return {"text": self.messages[0].content}
        turns = [message.plain for message in self.messages if message.role != "tools"]
        tools = [json.loads(message.content) for message in self.messages if message.role == "tools"]
        return {"messages": turns, "references": [*self.references], **({"tools": tools[0]} if tools else {})}

    def place(self, index: int) -> str:
        """Where it was read from, else its number, from 1, in the list where it stands at `index`."""
        return self.where or f"example {index + 1}"

    def error(self, reason: object) -> DataError:
        """A DataError for this example that names where it was read from."""
        return DataError(f"{self.where}: {reason}" if self.where else str(reason))

    @property
    def _answered(self) -> bool:
        return bool(self.messages) and self.messages[-1].role == "assistant"


class Item(ABC):
    """A tokenized example, of one objective's class. Its length is the number of its tokens."""

    ids: list[int]

    @property
    @abstractmethod
    def labels(self) -> int:
        """The number of predictions that its loss sums over."""

    @abstractmethod
    def __len__(self) -> int: ...


Examples = Iterable[Example | Mapping[str, object]]
"""Accepted as examples: a list of `Example`s or dictionaries, a `datasets.Dataset`, the result of `read_examples`."""

ExamplesOrItems = Iterable[Example | Mapping[str, object] | Item]


@dataclass(frozen=True)
class FileExamples:
    """A file's examples, their shape, and the rows that could not be used. Iterates over the examples.

    `rows[i]` is the whole row of `examples[i]`, with its other fields.
    """

    examples: list[Example]
    shape: str
    problems: list[Problem]
    rows: list[Row] = field(default_factory=list)

    @property
    def unread(self) -> list[str]:
        """The rows' fields that nobody reads."""
        return keys_read(self.rows, self.shape)[1] if self.rows else []

    def __iter__(self) -> Iterator[Example]:
        return iter(self.examples)

    def __len__(self) -> int:
        return len(self.examples)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        return self.examples[index]


def read_examples(path: str | Path, shape: str | None = None) -> FileExamples:
    """Read a JSONL, JSON, CSV, TSV, Parquet, CoNLL or text file (see `readers.read_rows`) into examples.

    The shape is the one that most rows have, unless `shape` names it. Every other row is in `problems`, with its line.

    Raises:
        DataError: no row is usable, two shapes fit equally well, or `shape` is unknown.
        OSError: the file is missing or may not be opened.
    """
    if shape is not None and shape not in SHAPES:
        raise DataError(f"shape {shape!r} is unknown. Known shapes: {known_shapes()}.")
    rows = read_rows(path)
    if not rows:
        raise DataError(f"{path}: the file has no rows. Known shapes: {known_shapes()}.")
    shape = shape or detect_shape(str(path), rows)
    examples: list[Example] = []
    problems: list[Problem] = []
    used: list[Row] = []
    for row in rows:
        if isinstance(row, Problem):
            problems.append(row)
            continue
        example = _example(row, shape)
        if isinstance(example, Problem):
            problems.append(example)
        else:
            examples.append(example)
            used.append(row)
    if not examples:
        reasons = "; ".join(map(str, problems[:3]))
        raise DataError(
            f"{path}: none of {len(rows)} rows is usable as {shape!r}. {reasons}. Mend them, or name another shape. "
            f"Known shapes: {known_shapes()}."
        )
    return FileExamples(examples, shape, problems, used)


def common_system(examples: Iterable[object]) -> str:
    """The system message that all begin with; empty where one has none or another, or is no `Example`."""
    systems = set[str]()
    for example in examples:
        first = example.messages[0] if isinstance(example, Example) else None
        systems.add(first.content if first is not None and first.role == "system" else "")
    return systems.pop() if len(systems) == 1 else ""


def as_examples(examples: Examples) -> list[Example]:
    """Turn rows into examples, by the shape that most rows have; an `Example` stays as it is.

    Rows are mappings: a list of dictionaries, a `datasets.Dataset`.

    Raises DataError for a row that is no example; the message names it, as "examples[3]".
    """
    result, items = examples_and_items(examples)
    if items:
        raise DataError(
            f"the examples are tokenized already, as {type(items[0]).__name__}: give rows or halka.Examples"
        )
    return result


def examples_and_items(examples: ExamplesOrItems) -> tuple[list[Example], list[Item]]:
    """`as_examples` for a list that may also hold tokenized examples, which are returned apart."""
    if isinstance(examples, FileExamples) and examples.problems:
        first = examples.problems[0]
        warnings.warn(f"{plural(len(examples.problems), 'row')} cannot be used; the first: {first}", stacklevel=2)
    if isinstance(examples, str | Path):
        raise DataError(f"examples are {str(examples)!r}: read a file with `halka.read_examples({str(examples)!r})`")
    if isinstance(examples, int | float):
        raise DataError(
            f"examples are {examples!r}: give rows; `halka.data.splits.hold_out(rows, share)` holds out a share of them"
        )
    if isinstance(examples, Iterable) and not isinstance(examples, Sized | Iterator):
        raise DataError(
            f"the examples are of type {type(examples).__name__}, which has no length and may have no end, and all are "
            "held in memory: give a list, such as `list(examples.take(10_000))`"
        )
    values: list[Example | Row] = []
    items: list[Item] = []
    for index, value in enumerate(examples):
        if isinstance(value, Item):
            items.append(value)
        elif isinstance(value, Example) and isinstance(examples, FileExamples):
            values.append(value)  # made of a row, which was checked
        elif isinstance(value, Example | Mapping):
            place = f"examples[{index}]"
            values.append(checked_example(value, place) if isinstance(value, Example) else row_of(place, value))
        else:
            raise DataError(
                f"examples[{index}] is a {type(value).__name__}, neither a dictionary nor a halka.Example: give a list "
                "of them, or one split of a dataset"
            )
    if isinstance(examples, Iterator) and not (values or items):
        raise DataError("the examples are an iterator that yields nothing, as one that was read before: give a list")
    rows = [value for value in values if isinstance(value, Row)]
    shape = detect_shape("examples", rows) if rows else ""
    own = examples if isinstance(examples, FileExamples) else FileExamples([], shape, [], rows)
    if unread := own.unread:
        warnings.warn(f"not read: {', '.join(unread)}", stacklevel=2)
    result = [value if isinstance(value, Example) else _example(value, shape) for value in values]
    if problems := [value for value in result if isinstance(value, Problem)]:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise DataError(f"{problems[0]}{more}")
    return [value for value in result if isinstance(value, Example)], items


def checked_example(example: Example, place: str) -> Example:
    """The example, which anybody may have made. Raises DataError, which names it, for fields of another kind."""
    messages: object = example.messages
    references: object = () if example.references is None else example.references
    try:
        if not isinstance(messages, Sequence) or isinstance(messages, str):
            raise DataError(f"its messages are a {type(messages).__name__}: give a tuple of halka.Message")
        for number, message in enumerate(messages, start=1):
            check_message(message, f"message {number}")
        if not isinstance(references, Sequence) or isinstance(references, str):
            raise DataError(f"references are {references!r}: give a tuple of texts")
        for reference in references:
            if not isinstance(reference, str):
                raise DataError(f"a reference is not text but a {type(reference).__name__}")
            text_of(reference, "a reference")
        if not (example.prompt or example.is_text):
            raise DataError("no message to answer")
    except DataError as error:
        raise DataError(f"{example.where or place}: {error}") from None
    return replace(example, references=()) if example.references is None else example


def _example(row: Row, shape: str) -> Example | Problem:
    try:
        return Example(conversation_of(row, shape), references_of(row), row.where)
    except DataError as error:
        return Problem(row.where, str(error))
