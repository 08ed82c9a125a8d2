"""Convert (IA)³: `ia3_l` is a column (O, 1) that scales an output, or a row (1, I) at the `feedforward_modules`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from halka.core import Method, Part, Target, wants
from halka.methods import IA3
from halka.methods.ia3 import InputScale
from halka.storage.formats.format import base_of
from halka.storage.formats.peft.modules import PREFIX as PREFIX
from halka.storage.formats.peft.modules import check_places, names_of, roles_of, split, transposed
from halka.storage.formats.peft.options import refuse_unknown
from halka.storage.formats.peft.selection import endings
from halka.util.errors import HalkaError

PEFT_TYPE = "IA3"
METHODS = ("ia3",)
BARE = ()


def write(
    methods: Sequence[Method], parts: Mapping[Method, Mapping[str, Part]], targets: tuple[Target, ...]
) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
    """Return options and tensors; None for several methods, which peft cannot hold."""
    if len(methods) > 1:
        return None
    by_path = parts[methods[0]]
    inner = {path for path, part in by_path.items() if isinstance(part, InputScale)}
    tensors = {
        f"{path}.ia3_l": part.get_parameter("ia3_l").reshape((1, -1) if path in inner else (-1, 1))
        for path, part in by_path.items()
    }
    names = names_of(base_of(targets))
    feedforward = endings(inner, names)
    config = {
        "peft_type": PEFT_TYPE,
        "target_modules": sorted({*endings(set(by_path) - inner, names), *feedforward}),  # peft: all of them
        "feedforward_modules": feedforward,
        "fan_in_fan_out": transposed(by_path, targets),
    }
    return config, tensors


def read(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], targets: tuple[Target, ...]
) -> tuple[list[Method], dict[str, Tensor], dict[str, Tensor]]:
    """Return the method, its state, and the tensors that are not the method's."""
    refuse_unknown(config, {"feedforward_modules"})
    by_path, others = split(tensors, ("ia3_l",))
    check_places(config, by_path, targets)
    inner: list[str] = []
    state: dict[str, Tensor] = {}
    for path, named in by_path.items():
        factors = named["ia3_l"]
        if factors.dim() != 2 or 1 not in factors.shape:
            raise HalkaError(f"{path} has factors of {tuple(factors.shape)}, where a row or a column is expected")
        if factors.shape[0] == 1:
            inner.append(path)
        state[f"{path}.ia3_l"] = factors.flatten()
    usual = IA3(roles_of(by_path, targets))
    at_input = {target.name for target in targets if target.name in by_path and wants(usual.feedforward, target)}
    method = usual if at_input == {*inner} else replace(usual, feedforward=roles_of(inner, targets))
    return [method], state, others
