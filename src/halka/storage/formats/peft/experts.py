"""LoRA on experts (`target_parameters`): `lora_A.weight` (E·R, I) and `lora_B.weight` (O, R·E) at the experts' module.

Where both weights of a module are adapted, peft wraps it twice: `gate_up_proj` is the inner one, under `base_layer`. Of
B's columns, E neighbours belong to one rank: peft reads them as (O, R, E).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from halka.core import Target
from halka.storage.formats.format import json_list
from halka.storage.formats.peft.modules import base_of
from halka.storage.formats.peft.selection import endings
from halka.util.errors import HalkaError

INNER = "base_layer"
CONVERTED = ("qwen3_moe",)  # peft takes the names of their dense layers' MLPs for those that experts once had


def weights_of(targets: tuple[Target, ...]) -> dict[str, Target]:
    """The base's experts' weights by their names."""
    return {target.name: target for target in targets if target.stack}


def confused(paths: Iterable[str], targets: tuple[Target, ...]) -> bool:
    """Whether peft would act on experts where these paths name linear layers."""
    dense = {target.name for target in targets if target.role.startswith("mlp.") and not target.stack}
    return base_of(targets).config.model_type in CONVERTED and not dense.isdisjoint(paths)


# ── writing ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def parameters(paths: Iterable[str], targets: tuple[Target, ...]) -> list[str] | None:
    """`target_parameters` for these paths, of which some may be modules; None if none is an expert's."""
    mine = {*paths} & weights_of(targets).keys()
    return endings(mine, dict(base_of(targets).named_parameters())) if mine else None


def stacked(tensors: Mapping[str, Tensor], targets: tuple[Target, ...]) -> dict[str, Tensor]:
    """Tensors by peft's names, of which those at experts still have ours (`<parameter>.lora_A.weight`) and shapes."""
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
    """Tensors of which those at experts have our names (`<parameter>.lora_A.weight`) and shapes.

    Raises HalkaError for parameters that are no experts', and options that change what is computed there.
    """
    value = config.get("target_parameters")
    if not value:
        return dict(tensors)
    named = json_list(value, str)
    if named is None:
        raise HalkaError(f"adapter_config.json: target_parameters is {value!r}, where a list of names is expected")
    own = dict(base_of(targets).named_parameters())
    chosen = {each: [path for path in own if path == each or path.endswith(f".{each}")] for each in named}
    known = weights_of(targets)
    for each, paths in chosen.items():
        if strange := [path for path in paths if path not in known] or ([] if paths else [each]):
            raise HalkaError(
                f"adapter_config.json: target_parameters names {each}, and {strange[0]} is no weight of experts of "
                "this base: Halka leaves routers as they are"
            )
    for key in ("lora_dropout", "use_dora", "lora_bias"):
        if config.get(key):
            raise HalkaError(f"adapter_config.json: {key} is not to be had with target_parameters, by peft either")
    read = dict(tensors)
    for path, place in _wrapped_twice({path for paths in chosen.values() for path in paths}).items():
        count = known[path].stack[0]
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
    """Where peft keeps what belongs to these parameters: at their module, or inside its outer wrapper."""
    by_module: dict[str, list[str]] = {}
    for path in paths:
        by_module.setdefault(path.rpartition(".")[0], []).append(path)
    return {
        path: f"{module}.{INNER}" if len(each) > 1 and path.endswith(".gate_up_proj") else module
        for module, each in by_module.items()
        for path in each
    }
