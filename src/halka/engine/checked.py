"""Numbers of a request, checked when it is made: a wrong one would end a step, and with it everybody's answers."""

from __future__ import annotations

from numbers import Integral
from typing import Any

from halka.util.errors import HalkaError


def checked(field: str, value: Any, kind: type, low: float, high: float, allowed: str) -> Any:
    """The value as a number of Python's own, as JSON takes it.

    kind     what it must be, of `numbers`
    allowed  the same in words, for the error

    Raises HalkaError for any other, and one that is not from `low` to `high`.
    """
    if isinstance(value, kind) and not isinstance(value, bool):
        number = int(value) if isinstance(value, Integral) else float(value)  # an int may be too large for a float
        if low <= number <= high:
            return number
    raise HalkaError(f"{field} is {value!r}: it is {allowed}")
