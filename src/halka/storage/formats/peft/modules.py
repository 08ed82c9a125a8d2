"""Map module paths, as peft names modules, to our targets and roles."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from halka.core import MODULE, WEIGHT_ROLES, Target
from halka.storage.formats.format import base_of
from halka.storage.formats.peft.selection import modules_of, selected
from halka.util.errors import HalkaError

PREFIX = "base_model.model."  # before the base's own names, if modules are adapted
OUTER = "base_model."  # before the names of virtual tokens


def transposed(paths: Iterable[str], targets: tuple[Target, ...]) -> bool:
    """Return whether any of these modules stores its weight as (I, O)."""
    paths = set(paths)
    return any(target.transposed for target in targets if target.name in paths)


def split(
    tensors: Mapping[str, Tensor], names: Iterable[str]
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
    """Return a method's tensors by module path and by which of `names` their key ends with, and all others by key."""
    by_path: dict[str, dict[str, Tensor]] = {}
    others: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        name = next((name for name in names if key.endswith(f".{name}")), None)
        if name is None:
            others[key] = tensor
        else:
            by_path.setdefault(key.removesuffix(f".{name}"), {})[name] = tensor
    return by_path, others


def check_places(config: Mapping[str, Any], modules: Iterable[str], targets: tuple[Target, ...]) -> None:
    """Raise HalkaError unless the base has all `modules`, and they are those that the configuration selects."""
    base, modules = base_of(targets), set(modules)
    heads = [target.name for target in targets if target.role == "head"]
    if unknown := sorted(modules - dict(base.named_modules()).keys()):
        shown = ", ".join(unknown[:3])
        of_experts = any(target.experts for target in targets) and any(".experts." in path for path in unknown)
        way_out = (
            ". Experts are one weight since transformers 5: load it with peft, and save it again" if of_experts else ""
        )
        raise HalkaError(f"the adapter acts on {len(unknown)} modules that this base does not have: {shown} …{way_out}")
    wanted = selected(config, base, heads)
    if wanted is None:
        return
    if missing := sorted(wanted - modules):
        raise HalkaError(
            f"the adapter leaves out {len(missing)} modules that its target_modules name: {', '.join(missing[:3])} …. "
            "It was made for a smaller base, or its file is incomplete"
        )
    if config.get("ensure_weight_tying"):
        wanted |= _tied(heads, wanted, base)
    if more := sorted(modules - wanted):
        raise HalkaError(
            f"the adapter holds tensors of {len(more)} modules that its target_modules do not name: "
            f"{', '.join(more[:3])} …: peft would ignore them. Name them there, or remove them"
        )


def _tied(heads: Iterable[str], wanted: Iterable[str], base: nn.Module) -> set[str]:
    """The heads that share their weight with a module that is selected, to which peft adds them."""
    weights = dict(base.named_parameters(remove_duplicate=False))
    selected = {id(weights.get(f"{path}.weight")) for path in wanted} - {id(None)}
    return {head for head in heads if id(weights.get(f"{head}.weight")) in selected}


def roles_of(modules: Iterable[str], targets: tuple[Target, ...]) -> tuple[str, ...]:
    """Return a method's `targets` for exactly these modules: a role if all its modules are among them, else paths."""
    modules = set(modules)
    by_role: dict[str, list[str]] = {}
    for target in targets:
        if target.role in (*WEIGHT_ROLES, "embedding"):
            by_role.setdefault(target.role, []).append(target.name)
    roles: list[str] = []
    for role, names in by_role.items():
        if modules.issuperset(names):
            roles.append(role)
            modules -= {*names}
    layered = {name for names in by_role.values() for name in names}
    return *roles, *(name if name in layered else f"{MODULE}{name}" for name in sorted(modules))


def names_of(base: nn.Module) -> list[str]:
    """Return the paths of all modules of a base."""
    return [name for name in modules_of(base) if name]
