"""Convert (IA)³, which the library has as a LoRA that scales a layer's output: `loras.<name>.lora_B` (O, 1).

The paper scales the down projection's input. In Llama's gated MLP, scaling the up projection's output is the same, and
is what we write; with an activation between the two it is not, and `write` refuses.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from halka.core import Adapter, Method, Target
from halka.methods import IA3
from halka.methods.ia3 import InputScale
from halka.storage.formats.adapterhub.config import GATES, NAME, refuse
from halka.storage.formats.adapterhub.lora import MATRICES, PLACES, named, targets_of, where
from halka.storage.formats.adapterhub.tensor_names import Keys, architecture_of
from halka.storage.formats.format import number
from halka.util.errors import HalkaError

ARCHITECTURE = "ia3"
METHODS = ("ia3",)
GATED = ("llama", "mistral")  # where the up projection's output is multiplied into the down projection's input


def read(config: Mapping[str, Any], keys: Keys, targets: tuple[Target, ...]) -> tuple[Method, dict[str, Tensor]]:
    refuse(config, {*PLACES, "alpha", "composition_mode"}, {"r": 1, "dropout": 0}, {"use_gating": GATES})
    wanted, matrices = targets_of(config, targets)
    state: dict[str, Tensor] = {}
    for place, tensors in keys.take("lora", *(target.name for target in wanted)).items():
        target = next(target for target in wanted if target.name == place)
        for key, tensor in tensors.items():
            factors = tensor.flatten() * number("alpha", config.get("alpha", 1.0))
            if target.role == "attn.qkv":
                factors = _of_all(factors, matrices, target.d_out, place)
            state[f"{place}.{'ia3_l' if key == 'lora_B' else key}"] = factors
    return IA3(named(wanted, targets), feedforward=()), state


def _of_all(factors: Tensor, matrices: tuple[str, ...], d_out: int, place: str) -> Tensor:
    """Return factors for q, k and v of a fused layer, with 1 for the matrices that were not trained."""
    rows = d_out // len(MATRICES)
    if factors.shape[0] != len(matrices) * rows:
        raise HalkaError(f"{place} has {factors.shape[0]} factors, where {', '.join(matrices)} have {rows} each")
    by_matrix = dict(zip(matrices, torch.split(factors, rows), strict=True))
    whole = factors.new_ones(d_out)
    for i, name in enumerate(MATRICES):
        if name in by_matrix:
            whole[i * rows : (i + 1) * rows] = by_matrix[name]
    return whole


def write(adapter: Adapter, targets: tuple[Target, ...]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    factors: dict[Target, Tensor] = {}
    for path, part in adapter.parts.items():
        target = adapter.targets[path]
        if isinstance(part, InputScale):
            target = _before(target, adapter, targets)
        factors[target] = part.get_parameter("ia3_l")
    config = {
        "architecture": "lora",
        **where(list(factors), targets),
        "r": 1,
        "alpha": 1,
        "composition_mode": "scale",
        "init_weights": "ia3",
        "use_gating": False,
    }
    return config, {f"{target.name}.loras.{NAME}.lora_B": own[:, None] for target, own in factors.items()}


def _before(target: Target, adapter: Adapter, targets: tuple[Target, ...]) -> Target:
    """Return the up projection whose output is a factor of this layer's input. Raises HalkaError if there is none."""
    architecture = architecture_of(targets)
    before = next((other for other in targets if (other.layer, other.role) == (target.layer, "mlp.up")), None)
    if architecture not in GATED or target.role != "mlp.down" or before is None:
        raise HalkaError(
            f"AdapterHub's (IA)³ scales a layer's output, and this one the input of {target.role}: {architecture} has "
            "no layer whose output it could scale instead (train it with an empty `feedforward`)"
        )
    if before.name in adapter.parts:
        raise HalkaError("this (IA)³ scales mlp.up's output and mlp.down's input: AdapterHub has one factor for both")
    return before
