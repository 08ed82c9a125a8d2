"""(IA)³: `ia3_l`, a column (O, 1) where the output is scaled, a row (1, I) at the `feedforward_modules`."""

from __future__ import annotations

from torch import Tensor

from halka.core import WEIGHT_ROLES, Adapter, Method, Target
from halka.formats.folder import Folder
from halka.formats.peft.options import refuse_unknown
from halka.formats.peft.places import PREFIX, patterns, renamed, roles_of, transposed
from halka.methods import IA3

PEFT_TYPE = "IA3"
METHODS = ("ia3",)


def write(adapter: Adapter, targets: tuple[Target, ...]) -> Folder:
    inner = {path for path in adapter.parts if adapter.targets[path].role == "mlp.down"}
    tensors = {
        f"{PREFIX}{path}.ia3_l": part.get_parameter("ia3_l").reshape((1, -1) if path in inner else (-1, 1))
        for path, part in adapter.parts.items()
    }
    config = {
        "peft_type": PEFT_TYPE,
        "target_modules": patterns(set(adapter.parts), targets),
        "feedforward_modules": patterns(inner, targets),
        "fan_in_fan_out": transposed(adapter),
    }
    return Folder(config, tensors)


def read(folder: Folder, targets: tuple[Target, ...]) -> tuple[Method, dict[str, Tensor]]:
    refuse_unknown(folder.config, {"target_modules", "feedforward_modules"})
    state, modules = renamed(folder.tensors, {"ia3_l": "ia3_l"})
    by_name = {target.name: target for target in targets if target.role in WEIGHT_ROLES}
    roles = roles_of(modules, targets)
    for key, tensor in state.items():
        target = by_name[key.removesuffix(".ia3_l")]
        if tensor.dim() != 2 or 1 not in tensor.shape:
            raise ValueError(f"{key} is {tuple(tensor.shape)}, where a row or a column of factors is expected")
        if (tensor.shape[0] == 1) != (target.role == "mlp.down"):
            raise ValueError(f"{key}: Halka scales the input at mlp.down and the output elsewhere; this one differs")
    return IA3(roles), {key: tensor.flatten() for key, tensor in state.items()}
