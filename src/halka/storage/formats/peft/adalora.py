"""Read peft's AdaLoRA (Zhang et al. 2023, arXiv:2303.10512): bare `lora_A`, `lora_B`, `lora_E` (R, 1).

The singular values E are multiplied into A, which gives one LoRA per rank that training left.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from halka.core import Method, Target
from halka.methods import LoRA
from halka.storage.formats.format import number
from halka.storage.formats.peft.modules import PREFIX as PREFIX
from halka.storage.formats.peft.modules import check_places, roles_of, split
from halka.storage.formats.peft.options import refuse_unknown
from halka.util.errors import HalkaError

PEFT_TYPE = "ADALORA"
BARE = ()
SMALL = 1e-5  # peft divides by the rank plus this
TRAINING = {
    *("target_r", "tinit", "tfinal", "deltaT", "beta1", "beta2", "orth_reg_weight", "total_step"),
    *("r", "use_rslora", "rank_pattern"),
}


def read(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], targets: tuple[Target, ...]
) -> tuple[list[Method], dict[str, Tensor], dict[str, Tensor]]:
    """Return the methods, their state, and the tensors that are not the methods'."""
    refuse_unknown(config, {"init_r", "lora_alpha", "lora_dropout", *TRAINING})
    first = number("init_r", config.get("init_r"))
    alpha = number("lora_alpha", config.get("lora_alpha"))
    dropout = number("lora_dropout", config.get("lora_dropout") or 0.0)
    scale = (alpha if alpha > 0 else first) / (first + SMALL)
    by_path, others = split(tensors, ("lora_A", "lora_B", "lora_E"))
    check_places(config, by_path, targets)
    ranks: dict[int, list[str]] = {}
    state: dict[str, Tensor] = {}
    for path, factors in by_path.items():
        if missing := {"lora_A", "lora_B", "lora_E"} - factors.keys():
            raise HalkaError(f"the weights lack {path}.{min(missing)}: the file is incomplete")
        A_RI, B_OR, values_R1 = factors["lora_A"], factors["lora_B"], factors["lora_E"]
        rank = len(A_RI) if A_RI.dim() == B_OR.dim() == 2 else -1
        if values_R1.shape != (rank, 1) or B_OR.shape[1] != rank:
            raise HalkaError(f"{path} holds tensors whose ranks differ: the file is another adapter's, or damaged")
        if rank:  # 0 where training pruned every rank
            ranks.setdefault(rank, []).append(path)
            state |= {f"{path}.lora_A": A_RI * values_R1, f"{path}.lora_B": B_OR}
    methods: list[Method] = [
        LoRA(rank, scale * rank, dropout, roles_of(paths, targets)) for rank, paths in sorted(ranks.items())
    ]
    return methods, state, others
