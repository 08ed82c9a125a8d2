"""Checks that several methods' fields share; each raises ValueError that names the method, the field and the value."""

from __future__ import annotations

import math

from halka.core import ROLE_GROUPS, WEIGHT_ROLES


def whole(method: str, **fields: int) -> None:
    """Each field is a whole number above zero."""
    for name, value in fields.items():
        if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
            raise ValueError(f"{method}: {name} must be a whole number above 0, not {value}")


def finite(method: str, **fields: float) -> None:
    """Each field is a number."""
    for name, value in fields.items():
        if not math.isfinite(value):
            raise ValueError(f"{method}: {name} must be a finite number, not {value}")


def fraction(method: str, **fields: float) -> None:
    """Each field is at least 0 and below 1."""
    for name, value in fields.items():
        if not 0 <= value < 1:
            raise ValueError(f"{method}: {name} must be at least 0 and below 1, not {value}")


def weight_roles(method: str, targets: tuple[str, ...]) -> None:
    """`targets` are roles, or groups of roles, that a weight serves: what the method does there can be its weight's."""
    if isinstance(targets, str):
        raise ValueError(f'{method}: targets is a tuple of roles: ("{targets}",), not "{targets}"')
    if not targets:
        raise ValueError(f"{method}: targets is empty: name at least one role")
    if wrong := [each for each in targets if each not in (*WEIGHT_ROLES, *ROLE_GROUPS)]:
        raise ValueError(
            f"{method}: targets are linear layers ({', '.join(WEIGHT_ROLES)}) or groups of them "
            f"({', '.join(ROLE_GROUPS)}), not {', '.join(map(repr, wrong))}"
        )
