"""Rows of any known shape to `Example`: a conversation that ends with the answer to be learned."""

import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from halka.data.readers import Problem, Row, read_rows
from halka.util.errors import DataError

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
}


@dataclass(frozen=True)
class Message:
    """One turn of a conversation; `role` is "system", "user" or "assistant"."""

    role: str
    content: str


@dataclass(frozen=True)
class Example:
    """A conversation; for training it ends with the assistant's answer.

    `references` are all answers that count as right, where there are several; `where` is the place the example was
    read from ("train.jsonl:12"), for messages.
    """

    messages: tuple[Message, ...]
    references: tuple[str, ...] = ()
    where: str = ""

    @property
    def prompt(self) -> tuple[Message, ...]:
        """All messages before the answer at the end; all of them where there is none yet."""
        return self.messages[:-1] if self._answered else self.messages

    @property
    def answers(self) -> tuple[str, ...]:
        """The references or, where none are given, the answer at the end."""
        return self.references or ((self.messages[-1].content,) if self._answered else ())

    def place(self, index: int) -> str:
        """Where it was read from, else its number, from 1, in the list where it stands at `index`."""
        return self.where or f"example {index + 1}"

    def error(self, reason: object) -> DataError:
        """A `DataError` for this example that names where it was read from."""
        return DataError(f"{self.where}: {reason}" if self.where else str(reason))

    @property
    def _answered(self) -> bool:
        return bool(self.messages) and self.messages[-1].role == "assistant"


@dataclass(frozen=True)
class Rows:
    """What a file holds: its examples, the shape they were read in, and the rows that could not be used.

    `rows` are those that the examples were read from, with whatever else stands in them.
    """

    examples: list[Example]
    shape: str
    problems: list[Problem]
    rows: list[Row] = field(default_factory=list)


@dataclass(frozen=True)
class Shape:
    """A way of writing examples: the keys that every row has, and how they become messages."""

    keys: tuple[str, ...]
    messages: Callable[[dict[str, object]], list[Message]]


def read_examples(path: str | Path, shape: str | None = None) -> Rows:
    """Reads a JSONL, JSON, CSV, TSV or Parquet file (see `readers.read_rows`) into examples.

    The shape is the one that most rows have, unless `shape` names it. Every other row is in `problems`, with its line.

    Raises:
        ValueError: no row is usable, two shapes fit equally well, or `shape` is unknown.
        OSError: the file is missing or may not be opened.
    """
    if shape is not None and shape not in SHAPES:
        raise DataError(f"shape {shape!r} is unknown. Known shapes: {_known()}.")
    rows = read_rows(path)
    if not rows:
        raise DataError(f"{path}: the file has no rows. Known shapes: {_known()}.")
    shape = shape or _detect(path, rows)
    examples: list[Example] = []
    problems: list[Problem] = []
    used: list[Row] = []
    for row in rows:
        if isinstance(row, Problem):
            problems.append(row)
            continue
        try:
            examples.append(_example(row, shape))
            used.append(row)
        except ValueError as error:
            problems.append(Problem(row.where, str(error)))
    if not examples:
        first = "; ".join(str(problem) for problem in problems[:3])
        raise DataError(f"{path}: none of {len(rows)} rows is usable as {shape!r}. {first}. Known shapes: {_known()}.")
    return Rows(examples, shape, problems, used)


def _known() -> str:
    return ", ".join(f"{name} ({' + '.join(shape.keys)})" for name, shape in SHAPES.items())


def _detect(path: str | Path, rows: Sequence[Row | Problem]) -> str:
    present = [{key for key, value in row.fields.items() if value is not None} for row in rows if isinstance(row, Row)]
    fits = Counter(
        name for keys in present for name, shape in SHAPES.items() if keys.issuperset(shape.keys)
    ).most_common(2)
    if not fits:
        found = (
            f"the first one has {', '.join(map(repr, sorted(present[0]))) or 'no values'}" if present else str(rows[0])
        )
        raise DataError(
            f"{path}: no row has a known shape; {found}. Known shapes: {_known()}. Rename the columns to one of them."
        )
    if len(fits) == 2 and fits[0][1] == fits[1][1]:
        raise DataError(
            f"{path}: {fits[0][1]} rows fit {fits[0][0]!r} and as many fit {fits[1][0]!r}. "
            "Say which: --shape, or `shape` in a task file."
        )
    return fits[0][0]


def _example(row: Row, shape: str) -> Example:
    missing = [key for key in SHAPES[shape].keys if row.fields.get(key) is None]
    if missing:
        raise DataError(f"no {' and no '.join(map(repr, missing))}, which a row of shape {shape!r} has")
    messages = SHAPES[shape].messages(row.fields)
    system = row.fields.get("system")
    if system not in (None, "") and messages[0].role != "system":
        messages.insert(0, Message("system", _text(system, "'system'")))
    roles = [message.role for message in messages]
    if "assistant" not in roles:
        raise DataError("no answer by the assistant")
    if roles[-1] != "assistant":
        raise DataError(f"the last message is the {roles[-1]}'s, not the assistant's answer")
    if "user" not in roles:
        raise DataError("no message by the user")
    return Example(tuple(messages), _references(row.fields.get("references")), row.where)


def _references(value: object) -> tuple[str, ...]:
    if value is None or value == "":
        return ()
    items = _list(value)
    return tuple(_text(item, "a reference") for item in ([value] if items is None else items))


def _list(value: object) -> list | None:
    """A list, also one written as JSON in a CSV cell; None if it is neither."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value, parse_int=str, parse_float=str)
        except (ValueError, RecursionError):
            return None
    return value if isinstance(value, list) else None


def _conversation(value: object, key: str) -> list[Message]:
    items = _list(value)
    if items is None:
        raise DataError(f"{key!r} is not a list of messages but a {type(value).__name__}")
    if not items:
        raise DataError(f"{key!r} is empty")
    return [_message(item, number) for number, item in enumerate(items, start=1)]


def _message(item: object, number: int) -> Message:
    """Of either kind: {"role", "content"} or {"from", "value"}."""
    name = f"message {number}"
    if not isinstance(item, dict):
        raise DataError(f"{name} is not an object but a {type(item).__name__}")
    role = item.get("role", item.get("from"))
    if not isinstance(role, str) or role not in ROLES:
        raise DataError(f"{name} has the role {role!r}; known roles are {', '.join(ROLES)}")
    if item.get("tool_calls") or item.get("function_call"):
        raise DataError(f"{name} calls a tool; only text is read")
    if str(item.get("weight")) in ("0", "0.0"):
        raise DataError(f"{name} has the weight 0; loss is on every answer. End the conversation before it.")
    return Message(ROLES[role], _text(item.get("content", item.get("value")), name))


def _text(value: object, name: str) -> str:
    """The text of a string, a number, or a list of {"type": "text"} parts; never empty, and always valid UTF-8."""
    if isinstance(value, list):
        value = "".join(_part(part, name) for part in value)
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        raise DataError(f"{name} is missing")
    if isinstance(value, bool):
        value = str(value).lower()
    if isinstance(value, int | float):
        value = str(value)
    if not isinstance(value, str):
        raise DataError(f"{name} is not text but a {type(value).__name__}")
    if not value.strip():
        raise DataError(f"{name} is empty")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        code = ord(value[error.start])
        fault = f"the byte {code - 0xDC00:#x}" if 0xDC80 <= code <= 0xDCFF else f"half a character ({code:#x})"
        raise DataError(f"{name} is not UTF-8: it has {fault} at character {error.start + 1}") from None
    return value


def _part(part: object, name: str) -> str:
    if isinstance(part, str):
        return part
    if not isinstance(part, dict) or part.get("type", "text") != "text" or not isinstance(part.get("text"), str):
        kind = part.get("type") if isinstance(part, dict) else type(part).__name__
        raise DataError(f"{name} has a part of type {kind!r}; only text is read")
    return part["text"]


def _pair(row: dict[str, object], prompt: str, answer: str) -> list[Message]:
    """Two texts, or two lists of messages."""
    if isinstance(row[prompt], list) and isinstance(row[answer], list):
        return _conversation(row[prompt], prompt) + _conversation(row[answer], answer)
    return [Message("user", _text(row[prompt], repr(prompt))), Message("assistant", _text(row[answer], repr(answer)))]


def _alpaca(row: dict[str, object]) -> list[Message]:
    """The input, where there is one, follows the instruction after an empty line."""
    if row.get("history"):
        raise DataError("'history' is not read; write the conversation as 'messages'")
    instruction = _text(row["instruction"], "'instruction'")
    given = row.get("input")
    if given is not None and str(given).strip():
        instruction = f"{instruction}\n\n{_text(given, repr('input'))}"
    return [Message("user", instruction), Message("assistant", _text(row["output"], "'output'"))]


def _labelled(row: dict[str, object]) -> list[Message]:
    """One text, or two of which the second is `text_pair`, and the label's name."""
    texts = [_text(row["text"], "'text'")]
    if row.get("text_pair") not in (None, ""):
        texts.append(_text(row["text_pair"], "'text_pair'"))
    return [*(Message("user", text) for text in texts), Message("assistant", _text(row["label"], "'label'").strip())]


def _tagged(row: dict[str, object]) -> list[Message]:
    """A sentence, as words, and a tag for each."""
    words, tags = (_words(row[key], key) for key in ("words", "tags"))
    if len(words) != len(tags):
        raise DataError(f"{len(words)} words have {len(tags)} tags")
    return [Message("user", " ".join(words)), Message("assistant", " ".join(tags))]


def _words(value: object, key: str) -> list[str]:
    """A list of texts without blanks, also one text with blanks between."""
    items = _list(value)
    words = _text(value, repr(key)).split() if items is None else [_text(item, f"one of {key!r}") for item in items]
    if wrong := [word for word in words if word.split() != [word]]:
        raise DataError(f"{key!r} holds {wrong[0]!r}, which is not one word")
    return words


SHAPES: dict[str, Shape] = {
    "messages": Shape(("messages",), lambda row: _conversation(row["messages"], "messages")),
    "prompt": Shape(("prompt", "completion"), lambda row: _pair(row, "prompt", "completion")),
    "question": Shape(("question", "answer"), lambda row: _pair(row, "question", "answer")),
    "alpaca": Shape(("instruction", "output"), _alpaca),
    "sharegpt": Shape(("conversations",), lambda row: _conversation(row["conversations"], "conversations")),
    "labelled": Shape(("text", "label"), _labelled),
    "tagged": Shape(("words", "tags"), _tagged),
}
