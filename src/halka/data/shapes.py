"""The shapes that a row may have, such as prompt and completion, and how each becomes a conversation."""

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from halka.data.readers import Problem, Row
from halka.util.errors import DataError
from halka.util.text import not_unicode

Role = Literal["system", "user", "assistant", "text"]
OPTIONAL = ("system", "references")  # keys that a row of any shape may have
UNREADABLE = (  # without these a text means something else
    *("tools", "functions"),
    *("image", "images", "video", "videos", "audio", "audios"),
)
PREFERENCES = (
    "Halka learns answers alone, and from no preferences: TRL's DPOTrainer does, on `halka.view` (docs/tools.md)"
)
THOUGHTS = ("reasoning_content", "reasoning", "thinking")  # keys of a message or row, for which templates differ
ACCEPTED = ("label", "kto_tag")  # whether an answer is liked, in TRL's and LLaMA-Factory's rows for KTO
SWITCHES = {**dict.fromkeys(("0", "0.0", "false"), False), **dict.fromkeys(("1", "1.0", "true"), True)}
LEARNED = ("weight", "train", "training", "loss")  # OpenAI's, axolotl's two, ms-swift's
OF_MESSAGES = {"role", "content", "from", "value", *LEARNED}

ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
}


@dataclass(frozen=True, repr=False)
class Message:
    """One turn of a conversation, or a raw text. `learned` is whether training has loss on it, if it is an answer."""

    role: Role
    content: str
    learned: bool = True

    def __repr__(self) -> str:
        return f"Message(role={self.role!r}, content={self.content!r}{'' if self.learned else ', learned=False'})"

    @property
    def plain(self) -> dict[str, str | int]:
        """As a row of a data file has it."""
        return {"role": self.role, "content": self.content, **({} if self.learned else {"weight": 0})}


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
    keys_of_rows = [
        {key for key, value in row.fields.items() if value is not None} for row in rows if isinstance(row, Row)
    ]
    fits = Counter(
        name
        for keys in keys_of_rows
        for name, shape in SHAPES.items()
        if keys.issuperset(shape.keys) and name != "text"
    ).most_common(2)
    if not fits and all(row.fields.keys() == {"text"} for row in rows if isinstance(row, Row)) and keys_of_rows:
        return "text"
    if not fits:
        raise DataError(f"{source}: no row has a known shape; {_misfit(rows)}")
    if len(fits) == 2 and fits[0][1] == fits[1][1]:
        raise DataError(
            f"{source}: {fits[0][1]} rows fit {fits[0][0]!r} and as many fit {fits[1][0]!r}. Name one "
            "by --shape, by `shape` in a task file or of read_examples, or remove the other's columns."
        )
    return fits[0][0]


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


def keys_read(rows: Sequence[Row], shape: str) -> tuple[list[str], list[str]]:
    """The keys that rows have a value for, in their order: those that are read, and those that are not.

    Of the latter, those of messages come last, as "messages.name", and a column without a name is left out.
    """
    keys = dict.fromkeys(key for row in rows for key, value in row.fields.items() if key and not _is_blank(value))
    own = {*SHAPES[shape].keys, *SHAPES[shape].optional, *OPTIONAL}
    read = [key for key in keys if key in own]
    more = dict.fromkeys(f"{key}.{inner}" for key in read for row in rows for inner in _unread_of(row.fields.get(key)))
    return read, [*(key for key in keys if key not in own), *more]


def _unread_of(value: object) -> list[str]:
    """The keys of a list's messages that have a value and are not read."""
    turns = [item for item in listed(value) or () if isinstance(item, Mapping) and _is_turn(item)]
    return [key for turn in turns for key, own in turn.items() if key not in OF_MESSAGES and not _is_blank(own)]


def with_system(messages: list[Message], row: Row) -> list[Message]:
    """The messages behind the row's system text, if it has one and they none. Raises DataError if that is no text."""
    system = row.fields.get("system")
    if system in (None, "") or (messages and messages[0].role == "system"):
        return messages
    return [Message("system", _text(system, "'system'")), *messages]


def conversation_of(row: Row, shape: str) -> tuple[Message, ...]:
    """The row's messages, the assistant's answer last, or its raw text.

    Raises DataError, without the row's place, if it has none.
    """
    missing = [key for key in SHAPES[shape].keys if row.fields.get(key) is None]
    if missing:
        raise DataError(f"no {' and no '.join(map(repr, missing))}, which a row of shape {shape!r} has")
    check_readable(row)
    if shape not in ("labelled", "tagged", "text"):  # they have no place for a thought, and a label is none of KTO's
        _check_thoughts(row.fields, "the row")
        _check_accepted(row.fields)
    messages = with_system(SHAPES[shape].messages(row.fields), row)
    roles = [message.role for message in messages]
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
    """The row's messages before its answer, which it need not have. Raises DataError, without its place, for none."""
    check_readable(row)
    shape = next((shape for shape in SHAPES.values() if row.fields.get(shape.keys[0]) is not None), None)
    if shape is None:
        names = ", ".join(dict.fromkeys(f'"{shape.keys[0]}"' for shape in SHAPES.values()))
        raise DataError(f"no prompt: a row has one of {names}")
    messages = with_system(shape.prompt(row.fields), row)
    if not messages:
        raise DataError("no message to answer")
    return messages


def references_of(row: Row) -> tuple[str, ...]:
    """All answers that the row's field "references" accepts."""
    value = row.fields.get("references")
    if value is None or value == "":
        return ()
    items = listed(value)
    return tuple(_text(item, "a reference") for item in ([value] if items is None else items))


def as_message(value: object, name: str) -> Message:
    """A message as it is, or from either kind of dictionary: {"role", "content"} or {"from", "value"}.

    Raises DataError, which calls the message `name`.
    """
    if isinstance(value, Message):
        return value
    if not isinstance(value, Mapping):
        raise DataError(f"{name} is not an object but a {type(value).__name__}")
    role = value.get("role", value.get("from"))
    if not isinstance(role, str) or role not in ROLES:
        raise DataError(f"{name} has the role {role!r}; known roles are {', '.join(ROLES)}")
    if value.get("tool_calls") or value.get("function_call"):
        raise DataError(f"{name} calls a tool; only text is read")
    learned = all(_switch(value[key], key, name) for key in LEARNED if not _is_blank(value.get(key)))
    return Message(ROLES[role], _text(value.get("content", value.get("value")), name), learned)


def _switch(value: object, key: str, name: str) -> bool:
    if (learned := SWITCHES.get(str(value).lower())) is None:
        raise DataError(f"{name} has the {key} {value!r}: write 1 or true where it is to be learned, else 0 or false")
    return learned


def check_readable(row: Row) -> None:
    """Raises DataError for a row that has more than text, without which its text means something else."""
    if unread := next((key for key in UNREADABLE if not _is_blank(row.fields.get(key))), None):
        raise DataError(f"the row has {unread!r}, and only text is read")


def _is_blank(value: object) -> bool:
    """Whether there is nothing, which an array is not asked: it compares with each of its numbers."""
    return value is None or (isinstance(value, str | list) and value in ("", "[]", []))


def listed(value: object) -> list[Any] | None:
    """A list, also one written as JSON in a CSV cell; None if it is neither."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value, parse_int=str, parse_float=str)
        except (ValueError, RecursionError):
            return None
    return value if isinstance(value, list) else None


def _conversation(value: object, key: str) -> list[Message]:
    """A list's messages, without system messages that are empty."""
    items = listed(value)
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
    if thought := next((key for key in THOUGHTS if not _is_blank(fields.get(key))), None):
        raise DataError(
            f"{name} has {thought!r}, which is not read: write it into the answer, as the base does, or remove it"
        )


def _check_accepted(fields: Mapping[str, object]) -> None:
    if rejected := next((key for key in ACCEPTED if SWITCHES.get(str(fields.get(key)).lower()) is False), None):
        raise DataError(
            f"{rejected!r} is {fields[rejected]}, as of an answer that is rejected: rename the field to learn it"
        )


def _empty_system(item: object) -> bool:
    if not isinstance(item, Mapping) or ROLES.get(str(item.get("role", item.get("from")))) != "system":
        return False
    text = item.get("content", item.get("value"))
    return text is None or (isinstance(text, str) and not text.strip())


def _text(value: object, name: str) -> str:
    """The text of a string, a number, or a list of {"type": "text"} parts; never empty, and always valid UTF-8."""
    if isinstance(value, list) and len(value) > 1 and all(isinstance(part, str) for part in value):
        raise DataError(f"{name} is a list of {len(value)} texts: give one, and all that are right as 'references'")
    if isinstance(value, list):
        value = "".join(_part(part, name) for part in value)
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        raise DataError(f"{name} is missing")
    if isinstance(value, bool):
        value = str(value).lower()
    if isinstance(value, int | float):
        value = str(value)
    if not isinstance(value, str):
        raise DataError(f"{name} is not text but a {type(value).__name__}: write it as text")
    if not value.strip():
        raise DataError(f"{name} is empty")
    if why := not_unicode(value):
        raise DataError(f"{name} {why}")
    return value


def _part(part: object, name: str) -> str:
    if isinstance(part, str):
        return part
    if not isinstance(part, dict) or part.get("type", "text") != "text" or not isinstance(part.get("text"), str):
        kind = part.get("type") if isinstance(part, dict) else type(part).__name__
        raise DataError(f"{name} has a part of type {kind!r}; only text is read")
    return part["text"]


def _pair(row: dict[str, object], prompt: str, answer: str) -> list[Message]:
    """Two texts, or two lists of messages, of which the first's answers are no part of what is learned."""
    if _are_turns(row[prompt]) and _are_turns(row[answer]):
        before = _conversation(row[prompt], prompt)
        before = [replace(turn, learned=False) if turn.role == "assistant" else turn for turn in before]
        return before + _conversation(row[answer], answer)
    return [Message("user", _text(row[prompt], repr(prompt))), Message("assistant", _text(row[answer], repr(answer)))]


def _first(row: dict[str, object], prompt: str) -> list[Message]:
    """A text, or a list of messages."""
    value = row[prompt]
    return _asked(value, prompt) if _are_turns(value) else [Message("user", _text(value, repr(prompt)))]


def _are_turns(value: object) -> bool:
    items = listed(value)
    return bool(items) and all(map(_is_turn, items or ()))


def _instruction(row: dict[str, object]) -> list[Message]:
    """The input, where there is one, follows the instruction after an empty line."""
    if row.get("history"):
        raise DataError("'history' is not read; write the conversation as 'messages'")
    instruction = _text(row["instruction"], "'instruction'")
    context = row.get("input")
    if context is not None and str(context).strip():
        instruction = f"{instruction}\n\n{_text(context, repr('input'))}"
    return [Message("user", instruction)]


def _alpaca(row: dict[str, object]) -> list[Message]:
    return [*_instruction(row), Message("assistant", _text(row["output"], "'output'"))]


def _texts(row: dict[str, object]) -> list[Message]:
    """One text, or two of which the second is `text_pair`."""
    texts = [_text(row["text"], "'text'")]
    if row.get("text_pair") not in (None, ""):
        texts.append(_text(row["text_pair"], "'text_pair'"))
    return [Message("user", text) for text in texts]


def _raw(row: dict[str, object]) -> list[Message]:
    return [Message("text", _text(row["text"], "'text'"))]


def _labelled(row: dict[str, object]) -> list[Message]:
    """The texts, and the label's name."""
    return [*_texts(row), Message("assistant", _text(row["label"], "'label'").strip())]


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
    words = _text(value, repr(key)).split() if items is None else [_text(item, f"one of {key!r}") for item in items]
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
