"""Modules by their paths, as peft names them, and our roles for them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from halka.core import WEIGHT_ROLES, WHOLE, Target
from halka.storage.formats.peft.selection import modules_of, selected
from halka.util.errors import HalkaError

PREFIX = "base_model.model."  # before the base's own names, where modules are adapted
OUTER = "base_model."  # where virtual tokens are


def base_of(targets: tuple[Target, ...]) -> Any:
    """The base model that has these targets."""
    return target_of(targets, "base").module


def target_of(targets: tuple[Target, ...], role: str) -> Target:
    """The base's only target of that role. Raises HalkaError if there is none."""
    found = next((target for target in targets if target.role == role), None)
    if found is None:
        raise HalkaError(f"this base has no place for it: none of the role {role!r}")
    return found


def transposed(paths: Iterable[str], targets: tuple[Target, ...]) -> bool:
    """Whether the weight of some of these modules is stored as (I, O)."""
    paths = set(paths)
    return any(target.transposed for target in targets if target.name in paths)


def split(
    tensors: Mapping[str, Tensor], names: Iterable[str]
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
    """A method's tensors by module and by which of `names` they end with, and all others by their keys."""
    found: dict[str, dict[str, Tensor]] = {}
    others: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        name = next((each for each in names if key.endswith(f".{each}")), None)
        if name is None:
            others[key] = tensor
        else:
            found.setdefault(key.removesuffix(f".{name}"), {})[name] = tensor
    return found, others


def check_places(config: Mapping[str, Any], modules: Iterable[str], targets: tuple[Target, ...]) -> None:
    """Raises HalkaError if the base lacks one of the modules, or one is left out that the configuration selects."""
    base, modules = base_of(targets), set(modules)
    heads = [target.name for target in targets if target.role == "head"]
    if unknown := sorted(modules - dict(base.named_modules()).keys()):
        shown = ", ".join(unknown[:3])
        raise HalkaError(f"the adapter acts on {len(unknown)} modules that this base does not have: {shown} …")
    wanted = selected(config, base, heads)
    if wanted is None:
        return
    if missing := sorted(wanted - modules):
        raise HalkaError(
            f"the adapter leaves out {len(missing)} modules that its target_modules name: {', '.join(missing[:3])} …. "
            "It was made for a smaller base, or its file is not whole"
        )
    if more := sorted(modules - wanted):
        raise HalkaError(
            f"the adapter holds tensors of {len(more)} modules that its target_modules do not name: "
            f"{', '.join(more[:3])} …: peft would ignore them. Name them there, or remove them"
        )


def roles_of(modules: Iterable[str], targets: tuple[Target, ...]) -> tuple[str, ...]:
    """What a method's `targets` shall be to act on exactly these modules: roles where all of a kind are there."""
    modules = set(modules)
    by_role: dict[str, list[str]] = {}
    for target in targets:
        if target.role in (*WEIGHT_ROLES, "embedding"):
            by_role.setdefault(target.role, []).append(target.name)
    found: list[str] = []
    for role, names in by_role.items():
        if modules.issuperset(names):
            found.append(role)
            modules -= {*names}
    layered = {name for names in by_role.values() for name in names}
    return *found, *(name if name in layered else f"{WHOLE}{name}" for name in sorted(modules))


def layers_of(targets: tuple[Target, ...]) -> int:
    return 1 + max(target.layer for target in targets if target.layer is not None)


def names_of(base: nn.Module) -> list[str]:
    """The paths of all modules of a base."""
    return [name for name in modules_of(base) if name]
