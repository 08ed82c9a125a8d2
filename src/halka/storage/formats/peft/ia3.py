"""(IA)³: `ia3_l`, a column (O, 1) where the output is scaled, a row (1, I) at the `feedforward_modules`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from halka.core import Method, Part, Target, wants
from halka.methods import IA3
from halka.methods.ia3 import InputScale
from halka.storage.formats.peft.modules import PREFIX as PREFIX
from halka.storage.formats.peft.modules import base_of, check_places, names_of, roles_of, split, transposed
from halka.storage.formats.peft.options import refuse_unknown
from halka.storage.formats.peft.selection import endings
from halka.util.errors import HalkaError

PEFT_TYPE = "IA3"
METHODS = ("ia3",)
BARE = ()


def write(
    methods: Sequence[Method], parts: Mapping[Method, Mapping[str, Part]], targets: tuple[Target, ...]
) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
    """Options and tensors; None for several."""
    if len(methods) > 1:
        return None
    at = parts[methods[0]]
    inner = {path for path, part in at.items() if isinstance(part, InputScale)}
    tensors = {
        f"{path}.ia3_l": part.get_parameter("ia3_l").reshape((1, -1) if path in inner else (-1, 1))
        for path, part in at.items()
    }
    names = names_of(base_of(targets))
    config = {
        "peft_type": PEFT_TYPE,
        "target_modules": endings(set(at), names),
        "feedforward_modules": endings(inner, names),
        "fan_in_fan_out": transposed(at, targets),
    }
    return config, tensors


def read(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], targets: tuple[Target, ...]
) -> tuple[list[Method], dict[str, Tensor], dict[str, Tensor]]:
    """The method, its state, and the tensors that are none of its."""
    refuse_unknown(config, {"feedforward_modules"})
    found, others = split(tensors, ("ia3_l",))
    check_places(config, found, targets)
    inner: list[str] = []
    state: dict[str, Tensor] = {}
    for path, each in found.items():
        factors = each["ia3_l"]
        if factors.dim() != 2 or 1 not in factors.shape:
            raise HalkaError(f"{path} has factors of {tuple(factors.shape)}, where a row or a column is expected")
        if factors.shape[0] == 1:
            inner.append(path)
        state[f"{path}.ia3_l"] = factors.flatten()
    usual = IA3(roles_of(found, targets))
    at_input = {each.name for each in targets if each.name in found and wants(usual.feedforward, each)}
    method = usual if at_input == {*inner} else replace(usual, feedforward=roles_of(inner, targets))
    return [method], state, others
