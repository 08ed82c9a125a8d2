"""Checks that several methods' fields share."""

from __future__ import annotations


def positive(method: str, **fields: int | float) -> None:
    """Raises ValueError for the first field that is not above zero."""
    for name, value in fields.items():
        if value <= 0:
            raise ValueError(f"{method}: {name} must be above 0, not {value}")


def fraction(method: str, **fields: float) -> None:
    """Raises ValueError for the first field outside 0 ≤ value < 1."""
    for name, value in fields.items():
        if not 0 <= value < 1:
            raise ValueError(f"{method}: {name} must be at least 0 and below 1, not {value}")
