"""Convert LoRA and DoRA: `loras.<name>.lora_A` (R, I) and `lora_B` (O, R), bare parameters.

A DoRA also has `m.weight` (O, 1). The library norms W + BA without the scale, and scales the layer's bias too: it
computes the paper's DoRA only with a scale of 1 and without biases.

GPT-2's fused layer has a pair of factors for each of q, k and v. The n trained ones are stacked: A (n·R, I) and
B (n·O/3, R). As one product they have rank n·R, with B's blocks on the diagonal and zeros elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from halka.core import Adapter, Method, Target
from halka.methods import DoRA, Joint, LoRA
from halka.storage.formats.adapterhub.config import GATES, NAME, count, has_rows, left_out, listed, refuse
from halka.storage.formats.adapterhub.tensor_names import LINEARS, Keys, architecture_of, linears
from halka.storage.formats.format import layers_of, number
from halka.util.errors import HalkaError

ARCHITECTURE = "lora"
METHODS = ("lora", "dora")
MATRICES = ("q", "k", "v")
PLACES = {"selfattn_lora", "attn_matrices", "intermediate_lora", "output_lora", "leave_out"}
REASONS = {
    "use_gating": GATES,
    "vera_d": "its VeRA trains whole matrices instead of vectors: Halka does not have it",
    "vera_b": "its VeRA trains whole matrices instead of vectors: Halka does not have it",
}


def read(config: Mapping[str, Any], keys: Keys, targets: tuple[Target, ...]) -> tuple[Method, dict[str, Tensor]]:
    refuse(config, {*PLACES, "r", "alpha", "dropout", "use_dora"}, {"composition_mode": "add"}, REASONS)
    rank, alpha = count(config, "r"), number("alpha", config.get("alpha"))
    dropout = number("dropout", config.get("dropout", 0.0))
    wanted, matrices = targets_of(config, targets)
    fused = [target for target in wanted if target.role == "attn.qkv"]
    dora = bool(config.get("use_dora"))
    if dora and alpha != rank:
        raise HalkaError(
            f"its DoRA norms W + BA without the scale, which is {alpha / rank:g} here: Halka's includes it"
        )
    if dora:
        _refuse_biases(wanted)
    kind = DoRA if dora else LoRA
    groups = [(len(matrices), fused), (1, [target for target in wanted if target.role != "attn.qkv"])]
    methods: list[Method] = []
    state: dict[str, Tensor] = {}
    for times, group in groups:
        if group:
            by_place = keys.take("lora", *(target.name for target in group))
            for target in group:
                has_rows(by_place.get(target.name, {}), "lora_A", times * rank, target.name)
            methods.append(kind(times * rank, times * alpha, dropout, named(group, targets)))
            for place, tensors in by_place.items():
                if times > 1 or group is fused:
                    tensors = _one_product(tensors, matrices, place)
                if dora and "m.weight" in tensors:
                    tensors = {**tensors, "magnitude": tensors["m.weight"].flatten()}
                    tensors.pop("m.weight")
                state |= {f"{place}.{key}": tensor for key, tensor in tensors.items()}
    return methods[0] if len(methods) == 1 else Joint(tuple(methods)), state


def _refuse_biases(wanted: Iterable[Target]) -> None:
    """Raise HalkaError for a layer with a bias, which the library's DoRA would scale."""
    if biased := [target.name for target in wanted if getattr(target.module, "bias", None) is not None]:
        raise HalkaError(f"AdapterHub's DoRA scales the layer's bias too, and Halka's does not: {biased[0]} has one")


def targets_of(config: Mapping[str, Any], targets: tuple[Target, ...]) -> tuple[list[Target], tuple[str, ...]]:
    """Return the linear layers that a configuration selects, and which of q, k and v it trains."""
    roles, matrices = LINEARS[architecture_of(targets)], ()
    chosen = [name for name in ("intermediate", "output") if config.get(f"{name}_lora")]
    if config.get("selfattn_lora", True):
        names = listed(config, "attn_matrices", str, ("q", "v"))
        if wrong := set(names) - set(MATRICES):
            raise HalkaError(f"adapter_config.json: attn_matrices names {sorted(wrong)[0]!r}, not one of {MATRICES}")
        matrices = tuple(name for name in MATRICES if name in names)
    wanted = linears(targets, (roles[name] for name in (*matrices, *chosen)), left_out(config, layers_of(targets)))
    if not wanted:
        raise HalkaError("adapter_config.json selects no layer")
    return wanted, matrices


def named(group: list[Target], targets: tuple[Target, ...]) -> tuple[str, ...]:
    """Return a method's `targets` for this group: its roles, or its paths if some layers are left out."""
    roles = tuple(dict.fromkeys(target.role for target in group))
    return roles if len(linears(targets, roles)) == len(group) else tuple(target.name for target in group)


def _one_product(tensors: Mapping[str, Tensor], matrices: tuple[str, ...], place: str) -> dict[str, Tensor]:
    """Turn a fused layer's stacked factors into one product BA: B's blocks are placed on the diagonal."""
    A, B = tensors.get("lora_A"), tensors.get("lora_B")
    if A is None or B is None or set(tensors) != {"lora_A", "lora_B"}:
        raise HalkaError(f"{place} should have lora_A and lora_B, and has {', '.join(tensors)}")
    count = len(matrices)
    if A.dim() != 2 or B.dim() != 2 or A.shape[0] != count * B.shape[1] or B.shape[0] % count:
        raise HalkaError(f"{place}: lora_A {tuple(A.shape)} and lora_B {tuple(B.shape)} do not fit {count} matrices")
    blocks = dict(zip(matrices, B.chunk(count), strict=True))
    rows, rank = B.shape[0] // count, B.shape[1]
    whole = B.new_zeros(len(MATRICES) * rows, count * rank)
    for column, name in enumerate(matrices):
        row = MATRICES.index(name) * rows
        whole[row : row + rows, column * rank : (column + 1) * rank] = blocks[name]
    return {"lora_A": A, "lora_B": whole}


def write(adapter: Adapter, targets: tuple[Target, ...]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    method = adapter.method
    assert isinstance(method, LoRA | DoRA)
    dora = isinstance(method, DoRA)
    if dora:
        _refuse_biases(adapter.targets.values())
    places = where(list(adapter.targets.values()), targets)
    scale = (method.as_lora() if dora else method).scale
    tensors: dict[str, Tensor] = {}
    for path, part in adapter.parts.items():
        times = len(MATRICES) if adapter.targets[path].role == "attn.qkv" else 1
        A, B = part.get_parameter("lora_A").repeat(times, 1), part.get_parameter("lora_B")
        named_tensors = {"lora_A": A, "lora_B": B}
        if dora:
            named_tensors = {"lora_A": A, "lora_B": B * scale, "m.weight": part.get_parameter("magnitude")[:, None]}
        tensors |= {f"{path}.loras.{NAME}.{key}": tensor for key, tensor in named_tensors.items()}
    config = {
        "architecture": "lora",
        **places,
        "r": method.rank,
        "alpha": method.rank if dora else scale * method.rank,
        "use_dora": dora,
        "dropout": method.dropout,
        "composition_mode": "add",
        "init_weights": "lora",
        "use_gating": False,
    }
    return config, tensors


def where(adapted: list[Target], targets: tuple[Target, ...]) -> dict[str, Any]:
    """Return the options that select the `adapted` layers. Raises HalkaError if the library cannot select them."""
    architecture = architecture_of(targets)
    roles = LINEARS[architecture]
    if other := sorted({target.role for target in adapted} - set(roles.values())):
        choices = ", ".join(dict.fromkeys(roles.values()))
        raise HalkaError(f"AdapterHub's library cannot adapt {other[0]} in {architecture}: it has only {choices}")
    layers = {target.layer for target in adapted}
    left_out = [layer for layer in range(layers_of(targets)) if layer not in layers]
    adapted_roles = {target.role for target in adapted}
    if len(linears(targets, adapted_roles, left_out)) != len(adapted):
        raise HalkaError(
            "AdapterHub adapts the same modules in every layer that it does not leave out: this adapter does not"
        )
    matrices = [name for name in MATRICES if roles[name] in adapted_roles]
    return {
        "selfattn_lora": bool(matrices),
        "attn_matrices": matrices,
        "intermediate_lora": roles["intermediate"] in adapted_roles,
        "output_lora": roles["output"] in adapted_roles,
        "leave_out": left_out,
    }
