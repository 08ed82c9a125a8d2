"""Checks that several methods' fields share; each raises ValueError that names the method, the field and the value."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

from halka.core import ROLE_GROUPS, WEIGHT_ROLES, WHOLE, Target
from halka.util.errors import HalkaError

IN_A_LAYER = re.compile(r".+\.\d+\..+").fullmatch  # a path such as model.layers.3.self_attn.q_proj


def whole(method: str, **fields: int) -> None:
    """Each field is a whole number above zero."""
    for name, value in fields.items():
        if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
            raise HalkaError(f"{method}: {name} must be a whole number above 0, not {value}")


def finite(method: str, **fields: float) -> None:
    """Each field is a number."""
    for name, value in fields.items():
        if not math.isfinite(value):
            raise HalkaError(f"{method}: {name} must be a finite number, not {value}")


def fraction(method: str, **fields: float) -> None:
    """Each field is at least 0 and below 1."""
    for name, value in fields.items():
        if not 0 <= value < 1:
            raise HalkaError(f"{method}: {name} must be at least 0 and below 1, not {value}")


def one_of(method: str, **fields: tuple[str, Iterable[str]]) -> None:
    """Each field's value is one of those that stand beside it."""
    for name, (value, known) in fields.items():
        if value not in known:
            raise HalkaError(f"{method}: {name} is one of {', '.join(known)}, not {value!r}")


def weight_roles(method: str, targets: tuple[str, ...], *also: str) -> None:
    """`targets` are roles, groups of roles, or paths, that a weight serves: what is done there can be its weight's.

    A linear layer outside of the roles is `module:` and its path.
    """
    if isinstance(targets, str):
        raise HalkaError(f'{method}: targets is a tuple of roles: ("{targets}",), not "{targets}"')
    if not targets:
        raise HalkaError(f"{method}: targets is empty: name at least one role")
    roles = (*WEIGHT_ROLES, *also)
    if wrong := [each for each in targets if each not in (*roles, *ROLE_GROUPS) and not _is_path(each)]:
        raise HalkaError(
            f"{method}: targets are linear layers ({', '.join(roles)}) or groups of them "
            f"({', '.join(ROLE_GROUPS)}), not {', '.join(map(repr, wrong))}"
        )


def _is_path(target: str) -> bool:
    return target.startswith(WHOLE) or IN_A_LAYER(target) is not None


def linear_layer(method: str, target: Target) -> None:
    """The target is a linear layer, as those named by their path may not be."""
    if target.role == "module" and not target.d_in:
        kind = type(target.module).__name__
        raise HalkaError(
            f"{method}: {target.name} is a {kind}, no linear layer: leave it out, or train it by `Modules`"
        )
