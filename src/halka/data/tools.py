"""Tools: the functions that an assistant may call, and its calls, from the forms that others' rows write them in.

A conversation's tools are a message of the role "tools", so that whatever keeps or compares conversations has them; the
chat template reads them as a list. Functions and calls have the order of keys that servers give them
(`name`, `description`, `parameters`), so that training and inference read the same text.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from halka.data.readers import Number, object_of, twice_in
from halka.util.errors import DataError
from halka.util.text import not_unicode

OPENING, CLOSING = "<tool_call>", "</tool_call>"
"""What Hermes and Qwen write around a call; where no chat template is asked, calls are written so."""
NULLS = {"default", "const"}  # what a JSON schema may set to null; other nulls are of a table, where rows share fields
OF_FUNCTION = ("name", "description", "parameters", "strict")


@dataclass(frozen=True)
class ToolCall:
    """A function that an assistant calls; `arguments` are a JSON object as text, `id` is what a result calls it by."""

    name: str
    arguments: str = "{}"
    id: str = ""

    @property
    def plain(self) -> dict[str, object]:
        """As OpenAI's messages have it."""
        own = {"id": self.id} if self.id else {}
        return {**own, "type": "function", "function": {"name": self.name, "arguments": self.arguments}}

    @property
    def written(self) -> str:
        """As Hermes and Qwen write it."""
        call = {"name": self.name, "arguments": json.loads(self.arguments)}
        return f"{OPENING}\n{json.dumps(call, ensure_ascii=False)}\n{CLOSING}"


def tools_text(value: object, key: str) -> str:
    """A row's tools as a JSON list of `{"type": "function", "function": {…}}`; nulls of a table's are left out.

    They are a list, or one written as JSON, of such objects or of the functions themselves.
    Raises DataError for anything else.
    """
    items = _from_json(value, repr(key))
    if not isinstance(items, list):
        raise DataError(f"{key!r} is not a list of functions but a {type(items).__name__}")
    return _as_json([_tool(item, f"{key}[{index}]") for index, item in enumerate(items)], repr(key))


def calls_of(message: Mapping[Any, object], name: str) -> tuple[ToolCall, ...]:
    """The calls of an assistant's message: `tool_calls`, or the older `function_call`.

    Raises DataError, which calls the message `name`, for a call that is no function's.
    """
    several, one = message.get("tool_calls"), message.get("function_call")
    if several is None or (isinstance(several, str | list) and not several):
        return calls_in_value(one, f"{name}: 'function_call'") if one else ()
    return calls_in_value(several, f"{name}: 'tool_calls'")


def calls_in_value(value: object, name: str) -> tuple[ToolCall, ...]:
    """One call or a list of them, or the same written as JSON. Raises DataError, which calls the value `name`."""
    items = _from_json(value, name)
    calls = items if isinstance(items, list) else [items]
    return tuple(_call(call, f"{name} {number}") for number, call in enumerate(calls, start=1))


def texts_in(value: object) -> Iterator[str]:
    """The keys and values of a JSON value, each as JSON writes it without quotes; of nested ones, those within."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield str(key)
            yield from texts_in(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from texts_in(inner)
    else:
        yield value if isinstance(value, str) else json.dumps(value)


_JSON = json.JSONDecoder()


def calls_in(text: str, decoder: json.JSONDecoder = _JSON) -> list[tuple[str, Any]]:
    """The calls in a model's answer, each as the function's name and arguments, whatever stands around them.

    A call is a JSON object with a `name` and `arguments` or `parameters`, in no other object. One that the decoder
    refuses is none, nor is what is in it.
    """
    calls, at = list[tuple[str, Any]](), 0
    while (at := text.find("{", at)) >= 0:
        try:
            _, end = _JSON.raw_decode(text, at)
        except (ValueError, RecursionError):
            at += 1
            continue
        try:
            value = decoder.decode(text[at:end])
        except (ValueError, RecursionError):
            at = end
            continue
        arguments = value.get("arguments", value.get("parameters"))
        if isinstance(value.get("name"), str) and arguments is not None:
            calls.append((value["name"], _arguments(arguments, decoder)))
        at = end
    return calls


def _arguments(value: Any, decoder: json.JSONDecoder) -> Any:
    """Arguments that are JSON within JSON as what they say."""
    try:
        return decoder.decode(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        return value


def _tool(value: object, name: str) -> dict[str, object]:
    kind = value.get("type", "function") if isinstance(value, Mapping) else None
    if not isinstance(value, Mapping) or (kind != "function" and "function" not in value and "name" not in value):
        raise DataError(f"{name} is no function" + (f" but of type {kind!r}" if kind else ""))
    function = value.get("function", value)
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
        raise DataError(f"{name} has no name of a function")
    more = [key for key in function if key not in (*OF_FUNCTION, "type")]
    own = {key: function[key] for key in (*OF_FUNCTION, *more) if function.get(key) is not None}
    of_table = not {*_nulls(own)} <= NULLS
    return {"type": "function", "function": _without_nulls(own) if of_table else own}


def _call(value: object, name: str) -> ToolCall:
    call = value.get("function", value) if isinstance(value, Mapping) else value
    if not isinstance(call, Mapping) or not isinstance(call.get("name"), str) or not call["name"]:
        raise DataError(f"{name} has no name of a function: a call is {{'name': …, 'arguments': {{…}}}}")
    arguments = next((call[key] for key in ("arguments", "parameters") if call.get(key) is not None), None)
    arguments = {} if arguments in (None, "") else _from_json(arguments, f"{name}: the arguments")
    if not isinstance(arguments, dict):
        raise DataError(f"{name} has arguments that are no object but a {type(arguments).__name__}")
    id = value.get("id") if isinstance(value, Mapping) else None
    return ToolCall(call["name"], _as_json(arguments, f"{name}: the arguments"), str(id or ""))


def _from_json(value: object, name: str) -> Any:
    """A JSON value as it is or written as text; numbers of a file, which are text, as numbers."""
    if isinstance(value, str) and not isinstance(value, Number):
        try:
            value = json.loads(value, object_pairs_hook=object_of)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{name} is not valid JSON: {error}") from None
        if (twice := twice_in(value)) is not None:
            raise DataError(f"{name}: two fields are called {twice!r}: rename or remove one")
        return value
    return _numbers(value)


def _as_json(value: object, name: str) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (ValueError, TypeError) as error:
        raise DataError(f"{name} cannot be written as JSON: {error}") from None
    if why := not_unicode(text):
        raise DataError(f"{name} {why}")
    return text


def _numbers(value: Any) -> Any:
    """The same value with numbers where a file's are text."""
    if isinstance(value, Number):
        return json.loads(value)
    if isinstance(value, Mapping):
        return {str(key): _numbers(inner) for key, inner in value.items()}
    return [*map(_numbers, value)] if isinstance(value, list | tuple) else value


def _nulls(value: Any) -> Iterator[str]:
    """The keys of fields that are null."""
    if isinstance(value, Mapping):
        yield from (str(key) for key, inner in value.items() if inner is None)
    for inner in value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ():
        yield from _nulls(inner)


def _without_nulls(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    return [*map(_without_nulls, value)] if isinstance(value, list) else value
