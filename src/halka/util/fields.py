"""`checked`: a dataclass whose new instances check their arguments, with errors that lead on."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import fields
from numbers import Integral, Real
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from halka.util.errors import HalkaError
from halka.util.settings import WORDS

T = TypeVar("T")


def checked(cls: type[T], unknown_fields: Callable[[dict[str, Any]], str], prefix: str = "") -> type[T]:
    """Let a dataclass check the arguments of new instances; a list is taken as a tuple.

    They raise HalkaError for unknown fields, with the message that `unknown_fields` makes of them and their values, for
    too many arguments or too few, and, after `prefix`, for a value that is not of its field's type.
    """
    init = cls.__init__
    signature = inspect.signature(init)
    names = [field.name for field in fields(cls)]  # type: ignore[arg-type]

    @functools.wraps(init)
    def checked_init(self: Any, *args: Any, **values: Any) -> None:
        if unknown := {name: value for name, value in values.items() if name not in names}:
            raise HalkaError(unknown_fields(unknown))
        try:
            bound = signature.bind(self, *args, **values)
        except TypeError as error:
            shown = ", ".join([*map(repr, args), *(f"{name}={value!r}" for name, value in values.items())])
            raise HalkaError(f"{cls.__name__}({shown}): {error}: its fields are {', '.join(names)}") from None
        for name, value in list(bound.arguments.items())[1:]:  # without self
            bound.arguments[name] = value = _plain_value(value)
            _check_choice(cls, prefix, name, value)
            _check_type(cls, prefix, name, value)
        init(*bound.args, **bound.kwargs)

    cls.__init__ = checked_init
    return cls


@functools.cache
def _choices(cls: type) -> dict[str, tuple[bool, tuple[str, ...]]]:
    """The values that each field with a `Literal` type may have, and whether it is a tuple of them."""
    choices: dict[str, tuple[bool, tuple[str, ...]]] = {}
    for name, hint in get_type_hints(cls).items():
        many = get_origin(hint) is tuple
        inner = get_args(hint)[0] if many else hint
        if get_origin(inner) is Literal:
            choices[name] = many, get_args(inner)
    return choices


@functools.cache
def _plain_types(cls: type) -> dict[str, tuple[type, bool]]:
    """The fields of one plain type, and whether None is allowed besides."""
    plain = {}
    for name, hint in get_type_hints(cls).items():
        options = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
        kinds = [option for option in options if option is not type(None)]
        if len(kinds) == 1 and kinds[0] in WORDS:
            plain[name] = kinds[0], len(options) > 1
    return plain


def _plain_value(value: Any) -> Any:
    """A list as a tuple, numpy's numbers as Python's, anything else as it is."""
    if isinstance(value, list):
        return tuple(value)
    if isinstance(value, Integral) and not isinstance(value, int):
        return int(value)
    return float(value) if isinstance(value, Real) and not isinstance(value, int | float) else value


def _check_type(cls: type, prefix: str, name: str, value: Any) -> None:
    kind, optional = _plain_types(cls).get(name, (object, True))
    if value is None and optional:
        return
    fits = isinstance(value, int | float if kind is float else kind)
    if not fits or (isinstance(value, bool) and kind in (int, float)):
        none = " or None" if optional else ""
        raise HalkaError(f"{prefix}{name} must be {WORDS[kind]}{none}, not {value!r}")


def _check_choice(cls: type, prefix: str, name: str, value: Any) -> None:
    if name not in _choices(cls):
        return
    many, choices = _choices(cls)[name]
    if many and isinstance(value, str):
        raise HalkaError(f'{prefix}{name} is a tuple: ("{value}",), not "{value}"')
    if wrong := [item for item in (value if many else [value]) if item not in choices]:
        raise HalkaError(f"{prefix}{name} {'takes' if many else 'is one of'} {', '.join(choices)}, not {wrong[0]!r}")
