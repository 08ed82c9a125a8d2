"""Checks of values that several methods share. They raise HalkaError with the method, the field and the value."""

from __future__ import annotations

import math
import re

from halka.core import ROLE_GROUPS, WEIGHT_ROLES, WHOLE, Target
from halka.methods._fields import explained_roles
from halka.util.errors import HalkaError

IN_A_LAYER = re.compile(r".+\.\d+\..+").fullmatch  # a path such as model.layers.3.self_attn.q_proj


def whole(method: str, **fields: int | None) -> None:
    """Each field is a whole number above zero, or None."""
    for name, value in fields.items():
        if value is not None and (type(value) is not int or value <= 0):
            raise HalkaError(f"{method}: {name} must be a whole number above 0, not {value!r}")


def finite(method: str, **fields: float | None) -> None:
    """Each field is a finite number, or None."""
    for name, value in fields.items():
        if value is not None and not math.isfinite(value):
            raise HalkaError(f"{method}: {name} must be a finite number, not {value!r}")


def fraction(method: str, **fields: float) -> None:
    """Each field is at least 0 and below 1."""
    for name, value in fields.items():
        if not 0 <= value < 1:
            raise HalkaError(f"{method}: {name} must be at least 0 and below 1, not {value!r}")


def weight_roles(method: str, targets: tuple[str, ...] | str, *also: str) -> None:
    """`targets` names linear layers or experts: by role, by group of roles, or by path; `also` are further roles.

    A linear layer that has no role is `module:` and its path.
    """
    if isinstance(targets, str):
        raise HalkaError(f'{method}: targets is a tuple of roles: ("{targets}",), not "{targets}"')
    if not targets:
        raise HalkaError(f"{method}: targets is empty: name at least one role")
    roles = (*WEIGHT_ROLES, *also)
    if wrong := [target for target in targets if target not in (*roles, *ROLE_GROUPS) and not _is_path(target)]:
        hint = explained_roles(wrong)
        raise HalkaError(
            f"{method}: targets are linear layers ({', '.join(roles)}) or groups of them "
            f"({', '.join(ROLE_GROUPS)}), not {', '.join(map(repr, wrong))}{f': {hint}' if hint else ''}"
        )


def _is_path(target: str) -> bool:
    return target.startswith(WHOLE) or IN_A_LAYER(target) is not None


def linear_layer(method: str, target: Target) -> None:
    """The target is a linear layer, as those named by their path, and a classifier's head, may not be."""
    if not target.d_in:
        kind = type(target.module).__name__
        raise HalkaError(
            f"{method}: {target.name} is a {kind}, not a linear layer: leave it out, or train it whole with Modules"
        )
