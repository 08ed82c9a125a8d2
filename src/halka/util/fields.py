"""`checked`: a dataclass whose new instances check their arguments, with errors that lead on."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from dataclasses import fields
from numbers import Integral, Real
from typing import Any, TypeVar

from halka.util.errors import HalkaError
from halka.util.settings import WORDS, Setting, settings_of

T = TypeVar("T")


def checked(cls: type[T], unknown_fields: Callable[[dict[str, Any]], str], prefix: str = "") -> type[T]:
    """Let a dataclass check the arguments of new instances; a list is taken as a tuple.

    They raise HalkaError for unknown fields, with the message that `unknown_fields` makes of them and their values, for
    too many arguments or too few, and, after `prefix`, for a value that is not of its field's type. A field's metadata
    may hold a `check`, which raises HalkaError for wrong values and is called with the field's name and its value.
    """
    init = cls.__init__
    signature = inspect.signature(init)
    names = [field.name for field in fields(cls)]  # type: ignore[arg-type]
    checks = {field.name: field.metadata.get("check") for field in fields(cls)}  # type: ignore[arg-type]

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
            setting = _settings_of(cls)[name]
            if value is not None or not setting.optional:
                _check(setting, f"{prefix}{name}", value)
            if (check := checks[name]) is not None:
                check(f"{prefix}{name}", value)
        init(*bound.args, **bound.kwargs)

    cls.__init__ = checked_init
    return cls


_settings_of = functools.cache(settings_of)  # when the first instance is made: then all types have their names


def _plain_value(value: Any) -> Any:
    """A list as a tuple, numpy's numbers as Python's, anything else as it is."""
    if isinstance(value, list):
        return tuple(value)
    if isinstance(value, Integral) and not isinstance(value, int):
        return int(value)
    return float(value) if isinstance(value, Real) and not isinstance(value, int | float) else value


def _check(setting: Setting, place: str, value: Any) -> None:
    """Raises HalkaError, which begins with `place`, for a value that the setting does not take."""
    if setting.many and not isinstance(value, tuple | str):  # what takes text says how to write a tuple of it
        raise HalkaError(f"{place} must be a tuple, not {value!r}")
    items = value if setting.many and isinstance(value, tuple) else (value,)
    if choices := setting.choices:
        if setting.many and isinstance(value, str):
            raise HalkaError(f'{place} is a tuple: ("{value}",), not "{value}"')
        if wrong := [item for item in items if item not in choices]:
            takes = "takes" if setting.many else "is one of"
            raise HalkaError(f"{place} {takes} {', '.join(choices)}, not {wrong[0]!r}")
    elif (kind := setting.item) in WORDS:
        for item in items:
            fits = isinstance(item, int | float if kind is float else kind)
            if not fits or (isinstance(item, bool) and kind in (int, float)):
                none = " or None" if setting.optional else ""
                raise HalkaError(f"{place} must be {WORDS[kind]}{none}, not {item!r}")
            if isinstance(item, float) and not math.isfinite(item):
                raise HalkaError(f"{place} must be a finite number, not {item!r}")
