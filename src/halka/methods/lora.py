"""LoRA: a low-rank product beside a frozen linear layer, W' = W + (α/r)·B·A (Hu et al. 2021, arXiv:2106.09685)."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from functools import partial
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from halka.core import ModulePart, Part, Target, add_low_rank, init_parameter, linear
from halka.methods._checks import ROLES_HELP, factor, fraction, linear_layer, one_input, positive_int, weight_roles
from halka.methods._fields import method, option

ALPHA = 32.0
"""For every rank: about one learning rate suits all then, and not with α twice the rank (docs/evidence.md)."""
RANK = 16
"""Rank 1 is too little for facts that are new, and 64 cannot be told from 16 (docs/evidence.md)."""
ALPHA_HELP = "numerator α of the scale (null: twice the rank)"


def with_alpha(fields: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A method's fields, whose names may have a prefix, with α as a number where it is none."""
    alpha, rank = f"{prefix}alpha", f"{prefix}rank"
    unnamed = rank in fields and fields.get(alpha, 0) is None
    return {**fields, alpha: 2.0 * fields[rank]} if unnamed else dict(fields)


@method
class LoRA:
    name: ClassVar[str] = "lora"
    plain: ClassVar[str] = "Learns two thin matrices beside each layer: small, fast and strong."
    paper: ClassVar[str] = "Hu et al. 2021, arXiv:2106.09685"
    lr: ClassVar[float] = 1e-3

    rank: int = option(default=RANK, help="rank r of the product", check=positive_int)
    alpha: float | None = option(default=ALPHA, help=ALPHA_HELP, check=factor)
    dropout: float = option(default=0.0, help="dropout on the product's input while training", check=fraction)
    targets: tuple[str, ...] = option(
        default=("linear",),
        help=f"{ROLES_HELP}; also embedding",
        check=partial(weight_roles, also=("embedding",)),
    )
    scaling: Literal["rank", "root"] = option(
        default="rank", help="α/r (rank), or α/√r (root: rank-stabilised, arXiv:2312.03732)"
    )

    @property
    def scale(self) -> float:
        """The factor on the product: α/r or α/√r."""
        alpha = 2 * self.rank if self.alpha is None else self.alpha
        return alpha / (self.rank if self.scaling == "rank" else math.sqrt(self.rank))

    def roles(self) -> tuple[str, ...]:
        return self.targets

    def build(self, target: Target) -> Part:
        if target.role == "embedding" or isinstance(target.module, nn.Embedding):
            one_input("lora", target)
            return EmbeddingLoRAPart(target, self.rank, self.scale)
        linear_layer("lora", target, experts=True)
        return LoRAPart(target, self.rank, self.scale, self.dropout)


class LoRAPart(ModulePart):
    """y + s·B(A x); `lora_A` (R, I), `lora_B` (O, R), named as in the paper's code. B starts at zero, so y stays y.

    At experts, one of each for every expert: (E, R, I) and (E, O, R).
    """

    operands: tuple[str, ...] = ("lora_A", "lora_B")

    def __init__(self, target: Target, rank: int, scale: float, dropout: float):
        super().__init__()
        self.scale, self.dropout = scale, dropout
        self.lora_A = init_parameter(torch.empty(*target.experts, rank, target.d_in), _start)
        self.lora_B = init_parameter(torch.empty(*target.experts, target.d_out, rank), nn.init.zeros_)

    def tensors(self, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """A (R, I) and s·B (O, R), with the rank padded for compute."""
        return padded(self.cast("lora_A", dtype), self.cast("lora_B", dtype))

    def scale_of(self, operand: str) -> float:
        return self.scale if operand == "lora_B" else 1.0

    def edit_output(self, x: Tensor, y: Tensor, *tensors: Tensor) -> Tensor:
        A_RI, B_OR = tensors
        return add_low_rank(y, self.dropped(x), A_RI, B_OR)

    def product(self, x: Tensor, A_RI: Tensor, B_OR: Tensor) -> Tensor:
        """s·B(A x), with dropout on x while training."""
        return linear(linear(self.dropped(x), A_RI), B_OR)

    def dropped(self, x: Tensor) -> Tensor:
        """x with dropout while training."""
        return F.dropout(x, self.dropout, self.training)

    def stack_key(self) -> Hashable | None:
        """Without the dropout in eval mode, so that one product serves adapters that were trained with several.

        Asked as a block with several adapters begins: within it `train()` and `eval()` come too late.
        """
        return self.dropout if self.training else 0.0

    def delta(self) -> Tensor:
        """s·B·A (O, I), the change of the weight."""
        return self.scale * self.lora_B @ self.lora_A

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return weight + self.delta(), bias


class EmbeddingLoRAPart(ModulePart):
    """y + s·B(A[:, x]) for token ids x: `lora_embedding_A` (R, V) starts at zero, `lora_embedding_B` (D, R)."""

    def __init__(self, target: Target, rank: int, scale: float):
        super().__init__()
        self.scale, self.factor = scale, embedding_factor(target.module)
        vocabulary, width = target.module.get_parameter("weight").shape
        self.lora_embedding_A = init_parameter(torch.empty(rank, vocabulary), nn.init.zeros_)
        self.lora_embedding_B = init_parameter(torch.empty(width, rank), nn.init.normal_)

    def edit_output(self, x: Tensor, y: Tensor, *tensors: Tensor) -> Tensor:
        rows = F.embedding(x, self.lora_embedding_A.mT).to(y.dtype)
        return y + F.linear(rows, self.lora_embedding_B.to(y.dtype)) * (self.scale * self.factor)

    def stack_key(self) -> None:
        return None

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return weight + self.scale * (self.lora_embedding_B @ self.lora_embedding_A).mT, bias


FACTORS: dict[type[Part], tuple[str, str]] = {  # the names of A (R, …) and B (…, R) in a product s·B·A
    LoRAPart: ("lora_A", "lora_B"),
    EmbeddingLoRAPart: ("lora_embedding_A", "lora_embedding_B"),
}


def embedding_factor(module: nn.Module) -> float:
    """The factor that Gemma multiplies each row of its embedding's weight by; 1 elsewhere."""
    return float(getattr(module, "embed_scale", 1.0))


def _start(A_RI: Tensor) -> None:
    nn.init.kaiming_uniform_(A_RI.flatten(0, -2), a=math.sqrt(5))


def padded_rank(rank: int, dtype: torch.dtype) -> int:
    """R with which products are computed: a multiple of 16, but in fp32.

    A bf16 product with a narrow side of 8 takes over a hundred times as long as with 16 on some processors.
    """
    return rank if dtype == torch.float32 else rank + -rank % 16


def padded(A_RI: Tensor, B_OR: Tensor) -> tuple[Tensor, Tensor]:
    """A (…, R, I) and B (…, O, R), with R padded with zeros to `padded_rank`."""
    if missing := padded_rank(A_RI.shape[-2], A_RI.dtype) - A_RI.shape[-2]:
        return F.pad(A_RI, (0, 0, 0, missing)), F.pad(B_OR, (0, missing))
    return A_RI, B_OR
