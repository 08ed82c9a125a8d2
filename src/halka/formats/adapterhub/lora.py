"""LoRA: `loras.<name>.lora_A` (R, I) and `lora_B` (O, R), bare; GPT-2's fused layer has one pair for each of q, k, v.

There A is those of the matrices that are trained, one below the other (n·R, I), and so is B (n·O/3, R): as one product
they are of rank n·R, with B's blocks along the diagonal and nothing elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from halka.core import Adapter, Joint, Method, Target
from halka.formats.adapterhub.config import GATES, NAME, refuse
from halka.formats.adapterhub.places import LINEARS, Keys, architecture_of, layers_of, linears
from halka.methods import LoRA

ARCHITECTURE = "lora"
METHODS = ("lora",)
MATRICES = ("q", "k", "v")
REASONS = {
    "use_gating": GATES,
    "use_dora": "its DoRA norms W + BA without the scale and has the bias in the quotient: Halka's DoRA does not",
    "vera_d": "its VeRA trains whole matrices in the vectors' place: Halka does not have it",
    "vera_b": "its VeRA trains whole matrices in the vectors' place: Halka does not have it",
}


def read(config: Mapping[str, Any], keys: Keys, targets: tuple[Target, ...]) -> tuple[Method, dict[str, Tensor]]:
    refuse(config, {"composition_mode": "add"}, REASONS)
    rank, alpha, dropout = int(config["r"]), float(config["alpha"]), float(config.get("dropout") or 0.0)
    wanted, matrices = targets_of(config, targets)
    fused = [target for target in wanted if target.role == "attn.qkv"]
    groups = [(len(matrices), fused), (1, [target for target in wanted if target.role != "attn.qkv"])]
    methods, state = [], {}
    for times, group in groups:
        if group:
            methods.append(LoRA(times * rank, times * alpha, dropout, named(group, targets)))
            for place, there in keys.take("lora", *(target.name for target in group)).items():
                if times > 1 or group is fused:
                    there = _one_product(there, matrices, place)
                state |= {f"{place}.{key}": tensor for key, tensor in there.items()}
    return methods[0] if len(methods) == 1 else Joint(tuple(methods)), state


def targets_of(config: Mapping[str, Any], targets: tuple[Target, ...]) -> tuple[list[Target], tuple[str, ...]]:
    """The linear layers that a configuration names, and which of q, k, v are among them."""
    roles, matrices = LINEARS[architecture_of(targets)], ()
    chosen = [
        each for each, key in (("intermediate", "intermediate_lora"), ("output", "output_lora")) if config.get(key)
    ]
    if config.get("selfattn_lora", True):
        given = config.get("attn_matrices", ("q", "v"))
        if wrong := set(given) - set(MATRICES):
            raise ValueError(f"adapter_config.json: attn_matrices names {sorted(wrong)[0]!r}, where it has {MATRICES}")
        matrices = tuple(each for each in MATRICES if each in given)
    wanted = linears(targets, (roles[each] for each in (*matrices, *chosen)), config.get("leave_out") or ())
    if not wanted:
        raise ValueError("adapter_config.json names no layer to act on")
    return wanted, matrices


def named(group: list[Target], targets: tuple[Target, ...]) -> tuple[str, ...]:
    """What a method's `targets` names these by: their roles, or where layers are left out, their paths."""
    roles = tuple(dict.fromkeys(target.role for target in group))
    return roles if len(linears(targets, roles)) == len(group) else tuple(target.name for target in group)


def _one_product(there: Mapping[str, Tensor], matrices: tuple[str, ...], place: str) -> dict[str, Tensor]:
    A, B = there.get("lora_A"), there.get("lora_B")
    if A is None or B is None or set(there) != {"lora_A", "lora_B"}:
        raise ValueError(f"{place} should have lora_A and lora_B, and has {', '.join(there)}")
    count = len(matrices)
    if A.shape[0] != count * B.shape[1] or B.shape[0] % count:
        raise ValueError(f"{place}: lora_A {tuple(A.shape)} and lora_B {tuple(B.shape)} do not fit {count} matrices")
    blocks = dict(zip(matrices, B.chunk(count), strict=True))
    rows, rank = B.shape[0] // count, B.shape[1]
    whole = B.new_zeros(len(MATRICES) * rows, count * rank)
    for column, name in enumerate(matrices):
        row = MATRICES.index(name) * rows
        whole[row : row + rows, column * rank : (column + 1) * rank] = blocks[name]
    return {"lora_A": A, "lora_B": whole}


def write(adapter: Adapter, targets: tuple[Target, ...]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    method = adapter.method
    assert isinstance(method, LoRA)
    tensors = {}
    for path, part in adapter.parts.items():
        A: Tensor = part.get_parameter("lora_A")
        B = part.get_parameter("lora_B")
        if adapter.targets[path].role == "attn.qkv":
            A = A.repeat(len(MATRICES), 1)
        tensors |= {f"{path}.loras.{NAME}.lora_A": A, f"{path}.loras.{NAME}.lora_B": B}
    config = {
        "architecture": "lora",
        **where(list(adapter.targets.values()), targets),
        "r": method.rank,
        "alpha": method.scale * method.rank,
        "dropout": method.dropout,
        "composition_mode": "add",
        "init_weights": "lora",
        "use_gating": False,
    }
    return config, tensors


def where(acts: list[Target], targets: tuple[Target, ...]) -> dict[str, Any]:
    """The options that name an adapter's places. Raises ValueError for places that the library cannot name."""
    architecture = architecture_of(targets)
    roles = LINEARS[architecture]
    if other := sorted({target.role for target in acts} - set(roles.values())):
        known = ", ".join(dict.fromkeys(roles.values()))
        raise ValueError(f"AdapterHub's library has no place for {other[0]} in {architecture}: it has {known} alone")
    layers = {target.layer for target in acts}
    left_out = [layer for layer in range(layers_of(targets)) if layer not in layers]
    found = {target.role for target in acts}
    if len(linears(targets, found, left_out)) != len(acts):
        raise ValueError(
            "AdapterHub acts on the same places in every layer that it does not leave out: this adapter does not"
        )
    matrices = [each for each in MATRICES if roles[each] in found]
    return {
        "selfattn_lora": bool(matrices),
        "attn_matrices": matrices,
        "intermediate_lora": roles["intermediate"] in found,
        "output_lora": roles["output"] in found,
        "leave_out": left_out,
    }
