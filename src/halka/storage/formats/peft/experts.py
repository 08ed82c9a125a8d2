"""Convert LoRA on experts (`target_parameters`): `lora_A.weight` (E·R, I), `lora_B.weight` (O, R·E) at their module.

If both weights of a module are adapted, peft wraps it twice, with `gate_up_proj` inside, under `base_layer`. B's
columns are (R, E): E adjacent ones belong to one rank.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from halka.core import Target
from halka.storage.formats.format import base_of
from halka.storage.formats.peft.selection import endings, listed_names, tails
from halka.util.errors import HalkaError

INNER = "base_layer"
CONVERTED = ("qwen3_moe", "glm4_moe", "exaone_moe", "qwen3_next")
"""Whose dense MLPs peft mistakes for experts under their former names."""


def weights_of(targets: tuple[Target, ...]) -> dict[str, Target]:
    """Return the base's expert weights by name."""
    return {target.name: target for target in targets if target.experts}


def confused(paths: Iterable[str], targets: tuple[Target, ...]) -> bool:
    """Return whether peft would adapt experts where these paths name linear layers."""
    dense = {target.name for target in targets if target.role.startswith("mlp.") and not target.experts}
    return base_of(targets).config.model_type in CONVERTED and not dense.isdisjoint(paths)


# ── writing ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def parameters(paths: Iterable[str], targets: tuple[Target, ...]) -> list[str] | None:
    """Return `target_parameters` for those of the paths that are expert weights; None if there are none."""
    weights = {*paths} & weights_of(targets).keys()
    return endings(weights, dict(base_of(targets).named_parameters())) if weights else None


def stacked(tensors: Mapping[str, Tensor], targets: tuple[Target, ...]) -> dict[str, Tensor]:
    """Convert experts' tensors from our names (`<parameter>.lora_A.weight`) and shapes to peft's; keep all others."""
    written: dict[str, Tensor] = {}
    both = _wrapped_twice({path for path in weights_of(targets) if f"{path}.lora_A.weight" in tensors})
    for key, tensor in tensors.items():
        path, name = key.removesuffix(".weight").rpartition(".")[::2]
        if path in weights_of(targets):
            key = f"{both[path]}.{name}.weight"
            tensor = tensor.flatten(0, 1) if name == "lora_A" else tensor.permute(1, 2, 0).flatten(1)
        written[key] = tensor
    return written


# ── reading ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def unstacked(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], targets: tuple[Target, ...]
) -> dict[str, Tensor]:
    """Convert experts' tensors from peft's names and shapes to ours (`<parameter>.lora_A.weight`); keep all others.

    Raises HalkaError for parameters that are not experts', and for options that `target_parameters` excludes.
    """
    value = config.get("target_parameters")
    if not value:
        return dict(tensors)
    names = listed_names("target_parameters", value)
    tails_of = {path: tails(path) for path, _ in base_of(targets).named_parameters()}
    chosen = {name: [path for path, last in tails_of.items() if name in last] for name in names}
    weights = weights_of(targets)
    for name, paths in chosen.items():
        if others := [path for path in paths if path not in weights] or ([] if paths else [name]):
            raise HalkaError(
                f"adapter_config.json: target_parameters names {name}, and {others[0]} is no weight of experts of "
                "this base: Halka does not adapt routers"
            )
    for key in ("lora_dropout", "use_dora", "lora_bias"):
        if config.get(key):
            raise HalkaError(f"adapter_config.json: {key} cannot be combined with target_parameters, in peft either")
    read = dict(tensors)
    for path, place in _wrapped_twice({path for paths in chosen.values() for path in paths}).items():
        count = weights[path].experts[0]
        for name in ("lora_A", "lora_B"):
            tensor = read.pop(f"{place}.{name}.weight", None)
            if tensor is None:
                raise HalkaError(f"the weights lack {place}.{name}.weight, which target_parameters names")
            if tensor.dim() != 2 or tensor.shape[0 if name == "lora_A" else 1] % count:
                raise HalkaError(f"{place}.{name}.weight is {tuple(tensor.shape)}: not of {count} experts")
            read[f"{path}.{name}.weight"] = _apart(tensor, name, count)
    return read


def _apart(tensor: Tensor, name: str, count: int) -> Tensor:
    if name == "lora_A":
        return tensor.reshape(count, len(tensor) // count, tensor.shape[1])
    return tensor.reshape(len(tensor), tensor.shape[1] // count, count).permute(2, 0, 1).contiguous()


def _wrapped_twice(paths: set[str]) -> dict[str, str]:
    """Return where peft keeps these parameters' tensors: at their module, or inside its outer wrapper."""
    by_module: dict[str, list[str]] = {}
    for path in paths:
        by_module.setdefault(path.rpartition(".")[0], []).append(path)
    return {
        path: f"{module}.{INNER}" if len(adapted) > 1 and path.endswith(".gate_up_proj") else module
        for module, adapted in by_module.items()
        for path in adapted
    }
