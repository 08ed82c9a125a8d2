"""Which modules an adapter acts on: peft's endings and full names, and our roles."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from halka.core import WEIGHT_ROLES, Adapter, Target

PREFIX = "base_model.model."


def patterns(paths: set[str], targets: tuple[Target, ...]) -> list[str]:
    """The shortest endings that select exactly `paths` among the base's linear layers, as peft matches them."""
    linears = {target.name for target in targets if target.role in WEIGHT_ROLES}

    def selected(endings: set[str]) -> set[str]:
        return {name for name in linears for ending in endings if name == ending or name.endswith(f".{ending}")}

    for steps in (1, 2):
        endings = {".".join(path.split(".")[-steps:]) for path in paths}
        if selected(endings) == paths:
            return sorted(endings)
    return sorted(paths)


def transposed(adapter: Adapter) -> bool:
    """Whether some weight is stored as (I, O)."""
    return any(target.transposed for target in adapter.targets.values())


def renamed(tensors: Mapping[str, Tensor], names: Mapping[str, str]) -> tuple[dict[str, Tensor], set[str]]:
    """Tensors under our names, and the modules they belong to."""
    state, modules = {}, set()
    for key, tensor in tensors.items():
        ending = next((each for each in names if key.endswith(f".{each}")), None)
        if ending is None or not key.startswith(PREFIX):
            raise ValueError(f"the tensor {key} is not of this method (expected {', '.join(names)})")
        module = key.removeprefix(PREFIX).removesuffix(f".{ending}")
        modules.add(module)
        state[f"{module}.{names[ending]}"] = tensor
    return state, modules


def roles_of(modules: set[str], targets: tuple[Target, ...]) -> tuple[str, ...]:
    """The roles that `modules` fill. Raises ValueError if the base lacks one, or a role is filled in part."""
    linears = [target for target in targets if target.role in WEIGHT_ROLES]
    if unknown := sorted(modules - {target.name for target in linears}):
        shown = ", ".join(unknown[:3])
        raise ValueError(f"the adapter acts on {len(unknown)} modules that this base does not have: {shown} …")
    roles = tuple(dict.fromkeys(target.role for target in linears if target.name in modules))
    if missing := [target.name for target in linears if target.role in roles and target.name not in modules]:
        shown = ", ".join(missing[:3])
        raise ValueError(
            f"the adapter leaves out {len(missing)} modules whose like it acts on in other layers: {shown} …. "
            "It was made for a smaller base, or for some layers only, which Halka does not have"
        )
    return roles


def target_of(targets: tuple[Target, ...], role: str) -> Target:
    """The base's only target of that role."""
    return next(target for target in targets if target.role == role)
