"""Checks of values that several methods share. They raise HalkaError with the field ("lora: rank") and the value."""

from __future__ import annotations

import re
from inspect import Parameter, signature

from halka.core import MODULE, ROLE_GROUPS, WEIGHT_ROLES, Target
from halka.methods._fields import explained_roles
from halka.util.errors import HalkaError

IN_A_LAYER = re.compile(r".+\.\d+\..+").fullmatch  # a path such as model.layers.3.self_attn.q_proj
ROLES_HELP = f"roles ({', '.join(WEIGHT_ROLES)}) or groups of them ({', '.join(ROLE_GROUPS)})"
ONE_BY_ONE = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)


def positive_int(name: str, value: int | None) -> None:
    """A whole number above zero, or None."""
    if value is not None and (type(value) is not int or value <= 0):
        raise HalkaError(f"{name} must be a whole number above 0, not {value!r}")


def factor(name: str, value: float | None) -> None:
    """A number other than 0, whose gradients would be 0 for ever, or None."""
    if value == 0:
        raise HalkaError(f"{name} must be a finite number other than 0, not {value!r}")


def fraction(name: str, value: float) -> None:
    """A number of at least 0 and below 1."""
    if not 0 <= value < 1:
        raise HalkaError(f"{name} must be at least 0 and below 1, not {value!r}")


def weight_roles(name: str, targets: tuple[str, ...] | str, also: tuple[str, ...] = ()) -> None:
    """Linear layers or experts: by role, by group of roles, or by path; `also` are further roles.

    A linear layer that has no role is `module:` and its path.
    """
    if isinstance(targets, str):
        raise HalkaError(f'{name} is a tuple of roles: ("{targets}",), not "{targets}"')
    if not targets:
        raise HalkaError(f"{name} is empty: name at least one role")
    roles = (*WEIGHT_ROLES, *also)
    paths = [target for target in targets if target.startswith(MODULE) or IN_A_LAYER(target)]
    if wrong := [target for target in targets if target not in (*roles, *ROLE_GROUPS, *paths)]:
        hint = explained_roles(wrong)
        raise HalkaError(
            f"{name} are linear layers ({', '.join(roles)}) or groups of them "
            f"({', '.join(ROLE_GROUPS)}), not {', '.join(map(repr, wrong))}{f': {hint}' if hint else ''}"
        )


def linear_layer(method: str, target: Target, *, experts: bool = False) -> None:
    """The target is a linear layer, as those named by their path, embeddings, and a classifier's head, may not be.

    With `experts` a layer's experts do, too: the parts' parameters and tensors have one of each for every expert.
    """
    if not target.d_in or target.role == "embedding":
        kind = type(target.module).__name__
        raise HalkaError(
            f"{method}: {target.name} is a {kind}, not a linear layer: leave it out, or train it whole with Modules"
        )
    if target.experts and not experts:
        raise HalkaError(f"{method}: it cannot act on experts: narrow its targets to linear layers, or use lora")


def one_input(method: str, target: Target) -> None:
    """The target's module takes a single input, so that what it receives is what a part reads, and has a batch's rows.

    T5's relative positions have none: there the parts of a batch's adapters would edit each other's rows.
    """
    if target.name.endswith("relative_attention_bias"):
        raise HalkaError(f"{method}: {target.name} is called once for all rows of a batch: leave it out")
    inputs = signature(target.module.forward).parameters.values()
    names = [one.name for one in inputs if one.kind in ONE_BY_ONE]
    if len(names) > 1:
        raise HalkaError(
            f"{method}: {target.name}, a {type(target.module).__name__}, takes several inputs ({', '.join(names)}): "
            "name modules with one input"
        )
