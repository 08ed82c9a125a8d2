"""`Message`: one turn of a conversation, from the dictionaries that others write."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from halka.data.tools import ToolCall, calls_in_value, calls_of
from halka.util.errors import DataError
from halka.util.text import not_unicode

Role = Literal["system", "user", "assistant", "tool", "tools", "text"]
SWITCHES = {**dict.fromkeys(("0", "0.0", "false"), False), **dict.fromkeys(("1", "1.0", "true"), True)}
LEARNED = ("weight", "train", "training", "loss")  # OpenAI's, axolotl's two, ms-swift's
OF_MESSAGES = {"role", "content", "from", "value", "tool_calls", "function_call", *LEARNED}
OF_RESULTS = ("tool_call_id", "name")  # which call a result is of

ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "function_call": "assistant",  # whose text is the call
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "ipython": "tool",
}


@dataclass(frozen=True, repr=False)
class Message:
    """One turn of a conversation, its tools (a JSON list), or a raw text.

    learned         whether training has loss on it, if it is an answer
    calls           of tools, behind the content of an answer
    name, call_id   of a call's result: the function's name and the call's id, where there are some
    """

    role: Role
    content: str
    learned: bool = True
    calls: tuple[ToolCall, ...] = ()
    name: str = ""
    call_id: str = ""

    def __repr__(self) -> str:
        own = [("learned", self.learned, True), ("calls", self.calls, ()), ("name", self.name, "")]
        more = [f", {key}={value!r}" for key, value, usual in (*own, ("call_id", self.call_id, "")) if value != usual]
        return f"Message(role={self.role!r}, content={self.content!r}{''.join(more)})"

    @property
    def written(self) -> str:
        """The content and the calls as one text."""
        return "\n".join([*([self.content] if self.content else []), *(call.written for call in self.calls)])

    @property
    def plain(self) -> dict[str, object]:
        """As a row of a data file has it."""
        own = {"tool_calls": [call.plain for call in self.calls], "tool_call_id": self.call_id, "name": self.name}
        more = {key: value for key, value in own.items() if value}
        return {"role": self.role, "content": self.content, **more, **({} if self.learned else {"weight": 0})}


def as_message(value: object, name: str) -> Message:
    """A message as it is, or from either kind of dictionary: {"role", "content"} or {"from", "value"}.

    Raises DataError, which calls the message `name`.
    """
    if isinstance(value, Message):
        return value
    if not isinstance(value, Mapping):
        raise DataError(f"{name} is not an object but a {type(value).__name__}")
    own, role = value.get("role", value.get("from")), role_of(value)
    if role is None:
        raise DataError(f"{name} has the role {own!r}; known roles are {', '.join(ROLES)}")
    learned = all(_switch(value[key], key, name) for key in LEARNED if not is_blank(value.get(key)))
    content = value.get("content", value.get("value"))
    if own == "function_call":
        if not (calls := calls_in_value(content, name)):
            raise DataError(f"{name} is empty")
        return Message(role, "", learned, calls)
    calls = calls_of(value, name)
    if calls and role != "assistant":
        raise DataError(f"{name} calls a tool, and is by the {role}: an assistant calls")
    empty = content is None or (isinstance(content, str) and not content.strip())
    text = "" if empty and (calls or role == "tool") else text_of(content, name)
    if role != "tool":
        return Message(role, text, learned, calls)
    of = (value.get(key) for key in OF_RESULTS)
    call_id, function = ("" if is_blank(item) else text_of(item, name) for item in of)
    return Message(role, text, learned, name=function, call_id=call_id)


def check_message(message: object, name: str) -> None:
    """Raises DataError, which calls the message `name`, for one whose fields are not what `Message` says."""
    if not isinstance(message, Message):
        raise DataError(f"{name} is a {type(message).__name__}: make it a halka.Message, or the example a row")
    if message.role not in get_args(Role):
        raise DataError(f"{name} has the role {message.role!r}; a halka.Message has one of {', '.join(get_args(Role))}")
    if not isinstance(message.content, str):
        raise DataError(f"{name} is not text but a {type(message.content).__name__}")
    if fault := not_unicode(message.content):
        raise DataError(f"{name} {fault}")


def role_of(message: Mapping[Any, object]) -> Role | None:
    return ROLES.get(str(message.get("role", message.get("from"))))


def _switch(value: object, key: str, name: str) -> bool:
    if (learned := SWITCHES.get(str(value).lower())) is None:
        raise DataError(f"{name} has the {key} {value!r}: write 1 or true where it is to be learned, else 0 or false")
    return learned


def is_blank(value: object) -> bool:
    """Whether there is nothing, which an array is not asked: it compares with each of its numbers."""
    return value is None or (isinstance(value, str | list) and value in ("", "[]", []))


def text_of(value: object, name: str) -> str:
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
