"""VeRA (Kopiczko et al. 2024, arXiv:2310.11454) as others write it: vectors, and projections that all modules share.

Read as LoRA, with the vectors inside: A = λ_d·A[:, :I] and B = λ_b·B[:O].
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from halka.core import WEIGHT_ROLES, Method, Target
from halka.methods import LoRA
from halka.storage.formats.peft.modules import PREFIX as PREFIX
from halka.storage.formats.peft.modules import base_of, check_places, roles_of, split
from halka.storage.formats.peft.options import number, refuse_unknown
from halka.util.errors import HalkaError

PEFT_TYPE = "VERA"
BARE = ("base_model.vera_A", "base_model.vera_B")
TRAINING = {"projection_prng_key", "save_projection", "d_initial"}


def read(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], targets: tuple[Target, ...]
) -> tuple[list[Method], dict[str, Tensor], dict[str, Tensor]]:
    """The method, its state, and the tensors that are none of its."""
    refuse_unknown(config, {"r", "vera_dropout", *TRAINING})
    dropout = float(number(config, "vera_dropout", config.get("vera_dropout") or 0.0))
    if not all(each in tensors for each in BARE):
        raise HalkaError(
            "the VeRA adapter was saved without its shared projections, which a random state would make again: save it "
            "with save_projection=True"
        )
    A_RI, B_OR = (tensors[each] for each in BARE)
    found, others = split(
        {key: each for key, each in tensors.items() if key not in BARE}, ("vera_lambda_b", "vera_lambda_d")
    )
    check_places(config, found, targets)
    rank = len(A_RI) if A_RI.dim() == B_OR.dim() == 2 else 0
    if not rank or B_OR.shape[1] != rank:
        raise HalkaError(f"the projections are {tuple(A_RI.shape)} and {tuple(B_OR.shape)}: they are of no one rank")
    widths = {target.name: (target.d_in, target.d_out) for target in targets if target.role in WEIGHT_ROLES}
    state: dict[str, Tensor] = {}
    for path, each in found.items():
        if missing := {"vera_lambda_b", "vera_lambda_d"} - each.keys():
            raise HalkaError(f"the weights lack {path}.{min(missing)}: the file is not whole")
        by_rank, by_output = each["vera_lambda_d"], each["vera_lambda_b"]
        d_in, d_out = widths[path] if path in widths else _widths(path, base_of(targets).get_submodule(path))
        if by_rank.shape != (rank,) or by_output.shape != (d_out,) or d_in > A_RI.shape[1] or d_out > B_OR.shape[0]:
            raise HalkaError(f"{path} holds vectors that do not fit the projections, or this base")
        state[f"{path}.lora_A"] = by_rank[:, None] * A_RI[:, :d_in]
        state[f"{path}.lora_B"] = by_output[:, None] * B_OR[:d_out]
    return [LoRA(rank, float(rank), dropout, roles_of(found, targets))], state, others


def _widths(path: str, module: nn.Module) -> tuple[int, int]:
    """Those of a linear layer outside of the roles, in and out."""
    weight = getattr(module, "weight", None)
    if weight is None or weight.dim() != 2:
        raise HalkaError(f"the adapter acts on {path}, which is no linear layer of this base")
    return weight.shape[1], weight.shape[0]
