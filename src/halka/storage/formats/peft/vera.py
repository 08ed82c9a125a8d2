"""Read peft's VeRA (Kopiczko et al. 2024, arXiv:2310.11454): vectors, and projections that all modules share.

The vectors are multiplied into the projections, which gives a LoRA: A = λ_d·A[:, :I] and B = λ_b·B[:O].
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from halka.core import WEIGHT_ROLES, Method, Target
from halka.methods import LoRA
from halka.storage.formats.format import base_of, number
from halka.storage.formats.peft.modules import PREFIX as PREFIX
from halka.storage.formats.peft.modules import check_places, roles_of, split
from halka.storage.formats.peft.options import refuse_unknown
from halka.util.errors import HalkaError

PEFT_TYPE = "VERA"
BARE = ("base_model.vera_A", "base_model.vera_B")
TRAINING = {"projection_prng_key", "save_projection", "d_initial"}


def read(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], targets: tuple[Target, ...]
) -> tuple[list[Method], dict[str, Tensor], dict[str, Tensor]]:
    """Return the method, its state, and the tensors that are not the method's."""
    refuse_unknown(config, {"r", "vera_dropout", *TRAINING})
    dropout = number("vera_dropout", config.get("vera_dropout") or 0.0)
    if not all(key in tensors for key in BARE):
        raise HalkaError(
            "the VeRA adapter was saved without its shared projections, which only peft's random seed restores: save "
            "it with save_projection=True"
        )
    A_RI, B_OR = (tensors[key] for key in BARE)
    by_path, others = split(
        {key: tensor for key, tensor in tensors.items() if key not in BARE}, ("vera_lambda_b", "vera_lambda_d")
    )
    check_places(config, by_path, targets)
    rank = len(A_RI) if A_RI.dim() == B_OR.dim() == 2 else 0
    if not rank or B_OR.shape[1] != rank:
        raise HalkaError(f"the projections are {tuple(A_RI.shape)} and {tuple(B_OR.shape)}: their ranks differ")
    widths = {target.name: (target.d_in, target.d_out) for target in targets if target.role in WEIGHT_ROLES}
    state: dict[str, Tensor] = {}
    for path, vectors in by_path.items():
        if missing := {"vera_lambda_b", "vera_lambda_d"} - vectors.keys():
            raise HalkaError(f"the weights lack {path}.{min(missing)}: the file is incomplete")
        by_rank, by_output = vectors["vera_lambda_d"], vectors["vera_lambda_b"]
        d_in, d_out = widths[path] if path in widths else _widths(path, base_of(targets).get_submodule(path))
        if by_rank.shape != (rank,) or by_output.shape != (d_out,) or d_in > A_RI.shape[1] or d_out > B_OR.shape[0]:
            raise HalkaError(f"{path} holds vectors that do not fit the projections, or this base")
        state[f"{path}.lora_A"] = by_rank[:, None] * A_RI[:, :d_in]
        state[f"{path}.lora_B"] = by_output[:, None] * B_OR[:d_out]
    return [LoRA(rank, float(rank), dropout, roles_of(by_path, targets))], state, others


def _widths(path: str, module: nn.Module) -> tuple[int, int]:
    """Return the input and output width of a linear layer that has no role."""
    weight = getattr(module, "weight", None)
    if weight is None or weight.dim() != 2:
        raise HalkaError(f"the adapter acts on {path}, which is no linear layer of this base")
    return weight.shape[1], weight.shape[0]
