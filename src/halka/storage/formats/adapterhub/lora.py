"""LoRA: `loras.<name>.lora_A` (R, I) and `lora_B` (O, R), bare; GPT-2's fused layer has one pair for each of q, k, v.

A DoRA has `m.weight` (O, 1) besides. The library's norms are of W + BA without the scale, and it has the bias in the
quotient: it is the paper's where the scale is one and there are no biases.

There A is those of the matrices that are trained, one below the other (n·R, I), and so is B (n·O/3, R): as one product
they are of rank n·R, with B's blocks along the diagonal and nothing elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from halka.core import Adapter, Joint, Method, Target
from halka.methods import DoRA, LoRA
from halka.storage.formats.adapterhub.config import GATES, NAME, count, has_rows, left_out, listed, number, refuse
from halka.storage.formats.adapterhub.tensor_names import LINEARS, Keys, architecture_of, layers_of, linears
from halka.util.errors import HalkaError

ARCHITECTURE = "lora"
METHODS = ("lora", "dora")
MATRICES = ("q", "k", "v")
PLACES = {"selfattn_lora", "attn_matrices", "intermediate_lora", "output_lora", "leave_out"}
REASONS = {
    "use_gating": GATES,
    "vera_d": "its VeRA trains whole matrices in the vectors' place: Halka does not have it",
    "vera_b": "its VeRA trains whole matrices in the vectors' place: Halka does not have it",
}


def read(config: Mapping[str, Any], keys: Keys, targets: tuple[Target, ...]) -> tuple[Method, dict[str, Tensor]]:
    refuse(config, {*PLACES, "r", "alpha", "dropout", "use_dora"}, {"composition_mode": "add"}, REASONS)
    rank, alpha, dropout = count(config, "r"), number(config, "alpha"), number(config, "dropout", 0.0)
    wanted, matrices = targets_of(config, targets)
    fused = [target for target in wanted if target.role == "attn.qkv"]
    dora = bool(config.get("use_dora"))
    if dora and alpha != rank:
        raise HalkaError(
            f"its DoRA norms W + BA without the scale, which is {alpha / rank:g} here: Halka's has it inside"
        )
    if dora:
        _refuse_biases(wanted)
    kind = DoRA if dora else LoRA
    groups = [(len(matrices), fused), (1, [target for target in wanted if target.role != "attn.qkv"])]
    methods: list[Method] = []
    state: dict[str, Tensor] = {}
    for times, group in groups:
        if group:
            found = keys.take("lora", *(target.name for target in group))
            for target in group:
                has_rows(found.get(target.name, {}), "lora_A", times * rank, target.name)
            methods.append(kind(times * rank, times * alpha, dropout, named(group, targets)))
            for place, there in found.items():
                if times > 1 or group is fused:
                    there = _one_product(there, matrices, place)
                if dora and "m.weight" in there:
                    there = {**there, "magnitude": there["m.weight"].flatten()}
                    there.pop("m.weight")
                state |= {f"{place}.{key}": tensor for key, tensor in there.items()}
    return methods[0] if len(methods) == 1 else Joint(tuple(methods)), state


def _refuse_biases(wanted: Iterable[Target]) -> None:
    """Raises HalkaError for a layer with a bias, which the library's DoRA would scale."""
    if biased := [target.name for target in wanted if getattr(target.module, "bias", None) is not None]:
        raise HalkaError(f"AdapterHub's DoRA scales the layer's bias, too, and Halka's does not: {biased[0]} has one")


def targets_of(config: Mapping[str, Any], targets: tuple[Target, ...]) -> tuple[list[Target], tuple[str, ...]]:
    """The linear layers that a configuration names, and which of q, k, v are among them."""
    roles, matrices = LINEARS[architecture_of(targets)], ()
    chosen = [
        each for each, key in (("intermediate", "intermediate_lora"), ("output", "output_lora")) if config.get(key)
    ]
    if config.get("selfattn_lora", True):
        given = listed(config, "attn_matrices", str, ("q", "v"))
        if wrong := set(given) - set(MATRICES):
            raise HalkaError(f"adapter_config.json: attn_matrices names {sorted(wrong)[0]!r}, where it has {MATRICES}")
        matrices = tuple(each for each in MATRICES if each in given)
    wanted = linears(targets, (roles[each] for each in (*matrices, *chosen)), left_out(config, layers_of(targets)))
    if not wanted:
        raise HalkaError("adapter_config.json names no layer to act on")
    return wanted, matrices


def named(group: list[Target], targets: tuple[Target, ...]) -> tuple[str, ...]:
    """What a method's `targets` names these by: their roles, or where layers are left out, their paths."""
    roles = tuple(dict.fromkeys(target.role for target in group))
    return roles if len(linears(targets, roles)) == len(group) else tuple(target.name for target in group)


def _one_product(there: Mapping[str, Tensor], matrices: tuple[str, ...], place: str) -> dict[str, Tensor]:
    A, B = there.get("lora_A"), there.get("lora_B")
    if A is None or B is None or set(there) != {"lora_A", "lora_B"}:
        raise HalkaError(f"{place} should have lora_A and lora_B, and has {', '.join(there)}")
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
    scale = (method.as_lora() if dora else method).scale
    tensors: dict[str, Tensor] = {}
    for path, part in adapter.parts.items():
        times = len(MATRICES) if adapter.targets[path].role == "attn.qkv" else 1
        A, B = part.get_parameter("lora_A").repeat(times, 1), part.get_parameter("lora_B")
        there = {"lora_A": A, "lora_B": B}
        if dora:
            there = {"lora_A": A, "lora_B": B * scale, "m.weight": part.get_parameter("magnitude")[:, None]}
        tensors |= {f"{path}.loras.{NAME}.{key}": tensor for key, tensor in there.items()}
    config = {
        "architecture": "lora",
        **where(list(adapter.targets.values()), targets),
        "r": method.rank,
        "alpha": method.rank if dora else scale * method.rank,
        "use_dora": dora,
        "dropout": method.dropout,
        "composition_mode": "add",
        "init_weights": "lora",
        "use_gating": False,
    }
    return config, tensors


def where(acts: list[Target], targets: tuple[Target, ...]) -> dict[str, Any]:
    """The options that name an adapter's places. Raises HalkaError for places that the library cannot name."""
    architecture = architecture_of(targets)
    roles = LINEARS[architecture]
    if other := sorted({target.role for target in acts} - set(roles.values())):
        known = ", ".join(dict.fromkeys(roles.values()))
        raise HalkaError(f"AdapterHub's library has no place for {other[0]} in {architecture}: it has {known} alone")
    layers = {target.layer for target in acts}
    left_out = [layer for layer in range(layers_of(targets)) if layer not in layers]
    found = {target.role for target in acts}
    if len(linears(targets, found, left_out)) != len(acts):
        raise HalkaError(
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
