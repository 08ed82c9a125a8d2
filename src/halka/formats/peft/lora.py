"""LoRA and DoRA: `lora_A.weight` (R, I), `lora_B.weight` (O, R), `lora_magnitude_vector` (O,)."""

from __future__ import annotations

from torch import Tensor

from halka.core import Adapter, Method, Target
from halka.formats.folder import Folder
from halka.formats.peft.options import refuse_unknown
from halka.formats.peft.places import PREFIX, patterns, renamed, roles_of, transposed
from halka.methods import DoRA, LoRA

PEFT_TYPE = "LORA"
METHODS = ("lora", "dora")
NAMES = {"lora_A": "lora_A.weight", "lora_B": "lora_B.weight", "magnitude": "lora_magnitude_vector"}


def write(adapter: Adapter, targets: tuple[Target, ...]) -> Folder:
    method = adapter.method
    assert isinstance(method, LoRA | DoRA)
    lora = method if isinstance(method, LoRA) else method.as_lora()
    tensors = {
        f"{PREFIX}{path}.{NAMES[key]}": tensor
        for path, part in adapter.parts.items()
        for key, tensor in part.state_dict().items()
    }
    config = {
        "peft_type": PEFT_TYPE,
        "r": lora.rank,
        "lora_alpha": 2 * lora.rank if lora.alpha is None else lora.alpha,
        "lora_dropout": lora.dropout,
        "use_rslora": lora.scaling == "root",
        "use_dora": isinstance(method, DoRA),
        "bias": "none",
        "target_modules": patterns(set(adapter.parts), targets),
        "fan_in_fan_out": transposed(adapter),
    }
    return Folder(config, tensors)


def read(folder: Folder, targets: tuple[Target, ...]) -> tuple[Method, dict[str, Tensor]]:
    config = folder.config
    refuse_unknown(config, {"r", "lora_alpha", "use_rslora", "use_dora", "target_modules"})
    state, modules = renamed(folder.tensors, {theirs: ours for ours, theirs in NAMES.items()})
    roles = roles_of(modules, targets)
    for key in ("r", "lora_alpha"):
        if not isinstance(config.get(key), int | float):
            raise ValueError(f"adapter_config.json: {key} is {config.get(key)!r}, where a LoRA needs a number")
    if (start := config.get("init_lora_weights")) not in (None, True, False, "gaussian", "eva", "orthogonal"):
        raise ValueError(
            f"adapter_config.json: init_lora_weights = {start!r} took its start out of the base's weights, which are "
            "not in this folder: convert it with peft's path_initial_model_for_weight_conversion first"
        )
    rank, alpha, dropout = int(config["r"]), float(config["lora_alpha"]), float(config.get("lora_dropout") or 0.0)
    if config.get("use_dora"):
        if config.get("use_rslora"):
            raise ValueError("the adapter is a DoRA with use_rslora, which Halka does not have")
        return DoRA(rank, alpha, dropout, roles), state
    return LoRA(rank, alpha, dropout, roles, "root" if config.get("use_rslora") else "rank"), state
