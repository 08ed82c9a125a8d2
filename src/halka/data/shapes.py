"""The shapes that a row may have, such as prompt and completion, and how each becomes a conversation."""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from halka.data.messages import (
    OF_MESSAGES,
    OF_RESULTS,
    SWITCHES,
    Message,
    as_message,
    is_blank,
    role_of,
    text_of,
)
from halka.data.readers import Number, Problem, Row, object_of, twice_in
from halka.data.tools import tools_text
from halka.util.errors import DataError

TOOLS = ("tools", "functions")  # of a row's conversation: OpenAI's key and its older one
OPTIONAL = ("system", "references", *TOOLS)  # keys that a row of any shape may have
UNREADABLE = ("image", "images", "video", "videos", "audio", "audios")  # without these a text means something else
PREFERENCES = (
    "Halka learns answers alone, and from no preferences: TRL's DPOTrainer does, on `halka.view` (docs/tools.md)"
)
THOUGHTS = ("reasoning_content", "reasoning", "thinking")  # keys of a message or row, for which templates differ
ACCEPTED = ("label", "kto_tag")  # whether an answer is liked, in TRL's and LLaMA-Factory's rows for KTO


@dataclass(frozen=True)
class Shape:
    """A way of writing examples: the keys that every row has, the first of them with the prompt, and may have.

    messages, prompt   what a row's values become, with the answer and without
    """

    keys: tuple[str, ...]
    messages: Callable[[dict[str, object]], list[Message]]
    prompt: Callable[[dict[str, object]], list[Message]]
    optional: tuple[str, ...] = ()


def known_shapes() -> str:
    """The shapes and their keys, for messages."""
    return ", ".join(f"{name} ({' + '.join(shape.keys)})" for name, shape in SHAPES.items())


def detect_shape(source: str, rows: Sequence[Row | Problem]) -> str:
    """The shape that most rows have; "text" if they have nothing else.

    Raises DataError if none has a known one, or two shapes fit equally well.
    """
    readable = [row for row in rows if isinstance(row, Row)]
    fits = Counter(name for row in readable for name in _fitting(row)).most_common(2)
    if not fits and readable and all(row.fields.keys() == {"text"} for row in readable):
        return "text"
    if not fits:
        raise DataError(f"{source}: no row has a known shape; {_misfit(rows)}")
    if len(fits) == 2 and fits[0][1] == fits[1][1]:
        raise DataError(
            f"{source}: {fits[0][1]} rows fit {fits[0][0]!r} and as many fit {fits[1][0]!r}. Name one "
            "by --shape, by `shape` in a task file or of read_examples, or remove the other's columns."
        )
    return fits[0][0]


def _fitting(row: Row) -> list[str]:
    """The shapes all of whose keys the row has a value for; "text" is none, since a text may be part of anything."""
    keys = {key for key, value in row.fields.items() if value is not None}
    return [name for name, shape in SHAPES.items() if keys.issuperset(shape.keys) and name != "text"]


def _misfit(rows: Sequence[Row | Problem]) -> str:
    """What the first row has that can be read, and the way out."""
    first = next((row for row in rows if isinstance(row, Row)), None)
    if first is None:
        return f"{rows[0]}. Known shapes: {known_shapes()}. Check that the file is what its name says, in UTF-8."
    keys = sorted(key for key, value in first.fields.items() if value is not None)
    way_out = "Rename the columns, which a table's first line names, to one of them."
    if "chosen" in keys:
        prompt = next((key for key in ("instruction", "question") if key in keys), "prompt")
        answer = {"instruction": "output", "question": "answer"}.get(prompt, "completion")
        way_out = f"To learn 'chosen', rename it to {answer!r}, or a conversation to 'messages'. {PREFERENCES}."
    elif "text" in keys:
        way_out = f"{way_out} To train on 'text' as raw text, name its shape (--shape text), or keep that column alone."
    elif len(rows) == 1 and (inner := next((key for key in keys if _is_table(first.fields[key])), None)):
        way_out = f"If the rows are those in {inner!r}, save that list alone."
    shown = ", ".join(map(repr, keys)) or "no values"
    return f"the first one has {shown}. Known shapes: {known_shapes()}. {way_out}"


def _is_table(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) for item in value)


def _own(shape: str) -> set[str]:
    """The keys that rows of a shape are read by."""
    return {*SHAPES[shape].keys, *SHAPES[shape].optional, *OPTIONAL}


def keys_read(rows: Sequence[Row], shape: str) -> tuple[list[str], list[str]]:
    """The keys that rows have a value for, in their order: those that are read, and those that are not.

    Of the latter, those of messages come last, as "messages.name", and a column without a name is left out.
    """
    keys = dict.fromkeys(key for row in rows for key, value in row.fields.items() if key and not is_blank(value))
    own = _own(shape)
    read = [key for key in keys if key in own]
    more = dict.fromkeys(f"{key}.{inner}" for key in read for row in rows for inner in _unread_of(row.fields.get(key)))
    return read, [*(key for key in keys if key not in own), *more]


def _unread_of(value: object) -> list[str]:
    """The keys of a list's messages that have a value and are not read."""
    turns = [item for item in listed(value) or () if isinstance(item, Mapping) and _is_turn(item)]
    return [
        key
        for turn in turns
        for key, own in turn.items()
        if key not in (*OF_MESSAGES, *(OF_RESULTS if role_of(turn) == "tool" else ())) and not is_blank(own)
    ]


def with_system(messages: list[Message], row: Row) -> list[Message]:
    """The messages behind the row's system text, if it has one and they none. Raises DataError if that is no text."""
    system = row.fields.get("system")
    if system in (None, "") or (messages and messages[0].role == "system"):
        return messages
    return [Message("system", text_of(system, "'system'")), *messages]


def with_tools(messages: list[Message], row: Row) -> list[Message]:
    """The messages with the row's tools, behind a system message. Raises DataError for tools that are none."""
    key = next((key for key in TOOLS if not is_blank(row.fields.get(key))), None)
    if key is None:
        return messages
    at, tools = 1 if messages and messages[0].role == "system" else 0, tools_text(row.fields[key], key)
    return [*messages[:at], Message("tools", tools), *messages[at:]] if tools != "[]" else messages


def conversation_of(row: Row, shape: str) -> tuple[Message, ...]:
    """The row's messages, the assistant's answer last, or its raw text.

    Raises DataError, without the row's place, if it has none.
    """
    missing = [key for key in SHAPES[shape].keys if row.fields.get(key) is None]
    if missing:
        raise DataError(f"no {' and no '.join(map(repr, missing))}, which a row of shape {shape!r} has")
    check_readable(row)
    _check_once(row, shape)
    if shape not in ("labelled", "tagged", "text"):  # they have no place for a thought, and a label is none of KTO's
        _check_thoughts(row.fields, "the row")
        _check_accepted(row.fields)
    messages = with_tools(with_system(SHAPES[shape].messages(row.fields), row), row)
    roles = [message.role for message in messages]
    if "tools" in roles and shape in ("labelled", "tagged", "text"):
        raise DataError(f"the row has tools, which a row of shape {shape!r} has no use for: remove them")
    if shape == "text":
        if "system" in roles:
            raise DataError("a raw text has no system message: remove 'system'")
        return tuple(messages)
    if "assistant" not in roles[-1:] and row.fields.get("chosen") is not None:
        raise DataError(
            f"{SHAPES[shape].keys[0]!r} do not end with the answer: to learn 'chosen', append it. {PREFERENCES}"
        )
    if "assistant" not in roles:
        raise DataError("no answer by the assistant")
    if roles[-1] != "assistant":
        raise DataError(f"the last message is the {roles[-1]}'s, not the assistant's answer")
    if not messages[-1].learned:
        raise DataError("the last answer is not to be learned: end the conversation at one that is")
    if "user" not in roles:
        raise DataError("no message by the user")
    return tuple(messages)


def prompt_of(row: Row) -> list[Message]:
    """The row's messages before its answer, which it need not have. Raises DataError, without its place, for none.

    The row is read as in training where it has all keys of a shape, else as the first shape whose prompt it has.
    """
    check_readable(row)
    begun = [name for name, shape in SHAPES.items() if row.fields.get(shape.keys[0]) is not None]
    if not begun:
        names = ", ".join(dict.fromkeys(f'"{shape.keys[0]}"' for shape in SHAPES.values()))
        raise DataError(f"no prompt: a row has one of {names}")
    shape = [*_fitting(row), *begun][0]
    _check_once(row, shape)
    messages = with_tools(with_system(SHAPES[shape].prompt(row.fields), row), row)
    if not any(message.role != "tools" for message in messages):
        raise DataError("no message to answer")
    return messages


def references_of(row: Row) -> tuple[str, ...]:
    """All answers that the row's field "references" accepts."""
    value = row.fields.get("references")
    if is_blank(value):
        return ()
    items = _items(value, "references")
    return tuple(text_of(item, "a reference") for item in ([value] if items is None else items))


def check_readable(row: Row) -> None:
    """Raises DataError for a row that has more than text, without which its text means something else."""
    if unread := next((key for key in UNREADABLE if not is_blank(row.fields.get(key))), None):
        raise DataError(f"the row has {unread!r}, and only text is read")


def _check_once(row: Row, shape: str) -> None:
    """Raises DataError for a row that has a key twice by which rows of this shape are read, or within its value."""
    own = _own(shape)
    if twice := next((key for key in row.repeated if key in own), None):
        raise DataError(f"two fields are called {twice!r}: rename or remove one")
    for key in own & row.fields.keys():
        _check_within(row.fields[key], key)


def _check_within(value: object, key: str) -> None:
    if (twice := twice_in(value)) is not None:
        raise DataError(f"two fields in {key!r} are called {twice!r}: rename or remove one")


def listed(value: object) -> list[Any] | None:
    """A list, also one written as JSON in a CSV cell; None if it is neither."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value, parse_int=Number, parse_float=Number, object_pairs_hook=object_of)
        except (ValueError, RecursionError):
            return None
    return value if isinstance(value, list) else None


def _items(value: object, key: str) -> list[Any] | None:
    """As `listed`. Raises DataError for a field that stands twice in JSON that is text; other lists were looked at."""
    items = listed(value)
    if isinstance(value, str):
        _check_within(items, key)
    return items


def _conversation(value: object, key: str) -> list[Message]:
    """A list's messages, without system messages that are empty."""
    items = _items(value, key)
    if items is None:
        raise DataError(f"{key!r} is not a list of messages but a {type(value).__name__}")
    if not items:
        raise DataError(f"{key!r} is empty")
    return [_turn(item, f"message {number}") for number, item in enumerate(items, start=1) if not _empty_system(item)]


def _asked(value: object, key: str) -> list[Message]:
    """A conversation without its final answer."""
    messages = _conversation(value, key)
    return messages[:-1] if messages and messages[-1].role == "assistant" else messages


def _is_turn(item: object) -> bool:
    return isinstance(item, Message) or (isinstance(item, Mapping) and not {"role", "from"}.isdisjoint(item))


def _turn(item: object, name: str) -> Message:
    if isinstance(item, Mapping):
        _check_thoughts(item, name)
    return as_message(item, name)


def _check_thoughts(fields: Mapping[str, object], name: str) -> None:
    if thought := next((key for key in THOUGHTS if not is_blank(fields.get(key))), None):
        raise DataError(
            f"{name} has {thought!r}, which is not read: write it into the answer, as the base does, or remove it"
        )


def _check_accepted(fields: Mapping[str, object]) -> None:
    if rejected := next((key for key in ACCEPTED if SWITCHES.get(str(fields.get(key)).lower()) is False), None):
        raise DataError(
            f"{rejected!r} is {fields[rejected]}, as of an answer that is rejected: rename the field to learn it"
        )


def _empty_system(item: object) -> bool:
    if not isinstance(item, Mapping) or role_of(item) != "system":
        return False
    text = item.get("content", item.get("value"))
    return text is None or (isinstance(text, str) and not text.strip())


def _pair(row: dict[str, object], prompt: str, answer: str) -> list[Message]:
    """Two texts, or two lists of messages, of which the first's answers are no part of what is learned."""
    if _are_turns(row[prompt]) and _are_turns(row[answer]):
        before = _conversation(row[prompt], prompt)
        before = [replace(turn, learned=False) if turn.role == "assistant" else turn for turn in before]
        return before + _conversation(row[answer], answer)
    texts = text_of(row[prompt], repr(prompt)), text_of(row[answer], repr(answer))
    return [Message("user", texts[0]), Message("assistant", texts[1])]


def _first(row: dict[str, object], prompt: str) -> list[Message]:
    """A text, or a list of messages."""
    value = row[prompt]
    return _asked(value, prompt) if _are_turns(value) else [Message("user", text_of(value, repr(prompt)))]


def _are_turns(value: object) -> bool:
    items = listed(value)
    return bool(items) and all(map(_is_turn, items or ()))


def _instruction(row: dict[str, object]) -> list[Message]:
    """The input, where there is one, follows the instruction after an empty line."""
    if row.get("history"):
        raise DataError("'history' is not read; write the conversation as 'messages'")
    instruction = text_of(row["instruction"], "'instruction'")
    context = row.get("input")
    if context is not None and str(context).strip():
        instruction = f"{instruction}\n\n{text_of(context, repr('input'))}"
    return [Message("user", instruction)]


def _alpaca(row: dict[str, object]) -> list[Message]:
    return [*_instruction(row), Message("assistant", text_of(row["output"], "'output'"))]


def _texts(row: dict[str, object]) -> list[Message]:
    """One text, or two of which the second is `text_pair`."""
    texts = [text_of(row["text"], "'text'")]
    if row.get("text_pair") not in (None, ""):
        texts.append(text_of(row["text_pair"], "'text_pair'"))
    return [Message("user", text) for text in texts]


def _raw(row: dict[str, object]) -> list[Message]:
    return [Message("text", text_of(row["text"], "'text'"))]


def _labelled(row: dict[str, object]) -> list[Message]:
    """The texts, and the label's name."""
    return [*_texts(row), Message("assistant", text_of(row["label"], "'label'").strip())]


def _sentence(row: dict[str, object]) -> list[Message]:
    return [Message("user", " ".join(_words(row["words"], "words")))]


def _tagged(row: dict[str, object]) -> list[Message]:
    """A sentence, as words, and a tag for each."""
    words, tags = (_words(row[key], key) for key in ("words", "tags"))
    if len(words) != len(tags):
        raise DataError(f"{len(words)} words have {len(tags)} tags")
    return [Message("user", " ".join(words)), Message("assistant", " ".join(tags))]


def _words(value: object, key: str) -> list[str]:
    """A list of texts without blanks, also one text with blanks between."""
    items = listed(value)
    words = text_of(value, repr(key)).split() if items is None else [text_of(item, f"one of {key!r}") for item in items]
    if wrong := [word for word in words if word.split() != [word]]:
        raise DataError(f"{key!r} holds {wrong[0]!r}, which is not one word")
    return words


def _turns(key: str) -> Shape:
    return Shape((key,), lambda row: _conversation(row[key], key), lambda row: _asked(row[key], key))


def _pairs(prompt: str, answer: str) -> Shape:
    return Shape((prompt, answer), lambda row: _pair(row, prompt, answer), lambda row: _first(row, prompt))


SHAPES: dict[str, Shape] = {
    "messages": _turns("messages"),
    "prompt": _pairs("prompt", "completion"),
    "question": _pairs("question", "answer"),
    "alpaca": Shape(("instruction", "output"), _alpaca, _instruction, ("input",)),
    "sharegpt": _turns("conversations"),
    "labelled": Shape(("text", "label"), _labelled, _texts, ("text_pair",)),
    "tagged": Shape(("words", "tags"), _tagged, _sentence),
    "text": Shape(("text",), _raw, _texts),
}
