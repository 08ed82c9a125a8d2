"""Four bits a weight: NF4 with scales that are quantised themselves (Dettmers et al. 2023, arXiv:2305.14314)."""

from __future__ import annotations

import importlib
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from halka.models.quantised.linear import QuantizedLinear
from halka.util.errors import HalkaError
from halka.util.quiet import quiet_libraries

BLOCK, SCALES_BLOCK = 64, 256  # weights that share a scale, scales that share theirs

KNOWN = (torch.float32, torch.float16, torch.bfloat16)  # bitsandbytes leaves tensors of other dtypes uninitialised


class NF4Linear(QuantizedLinear):
    """Each weight is the nearest of 16 quantiles of a normal distribution, times its block's scale.

    Blocks run through the flattened weight: bitsandbytes' kernel for a matrix starts a new block in every row, which is
    wrong if a row is no multiple of a block, so it gets the weight as one long row.
    """

    quantization: ClassVar[str] = "nf4"

    values: Tensor
    scales: Tensor
    scales_of_scales: Tensor
    mean_scale: Tensor
    levels: Tensor

    def __init__(self, weight_OI: Tensor, bias: nn.Parameter | None, transposed: bool, samples: Tensor):
        super().__init__(weight_OI, bias, transposed, samples)
        flat = (weight_OI if weight_OI.dtype in KNOWN else weight_OI.float()).reshape(-1)
        even = F.pad(flat, (0, len(flat) % 2))
        packed, state = bitsandbytes().quantize_4bit(even, blocksize=BLOCK, quant_type="nf4", compress_statistics=True)
        self.register_buffer("values", packed.flatten())  # two a byte
        self.register_buffer("scales", state.absmax)  # a byte a block, to be looked up in `levels`
        self.register_buffer("scales_of_scales", state.state2.absmax)
        self.register_buffer("mean_scale", state.offset)
        self.register_buffer("levels", state.state2.code)

    def product(self, x: Tensor) -> Tensor:
        """x (…, I) to x Wᵀ (…, O), on a GPU by bitsandbytes' product, which unpacks few tokens' weights as it goes."""
        fits = x.dtype in KNOWN and self.in_features % BLOCK == 0 and x.numel()
        return self.packed_product(x) if fits and x.device.type == "cuda" else super().product(x)

    def packed_product(self, x: Tensor) -> Tensor:
        """`product` without W, for rows of whole blocks."""
        return torch.ops.bitsandbytes.gemm_4bit(
            x,
            self.values[:, None],
            (self.out_features, self.in_features),
            self.scales_of_scales,
            BLOCK,
            "nf4",
            absmax_8bit=self.scales,
            absmax_code=self.levels,
            absmax_offset=self.mean_scale,
        )

    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:
        ops, dtype = torch.ops.bitsandbytes, dtype or self.dtype
        computed = dtype if dtype in KNOWN else torch.float32
        scales = ops.dequantize_blockwise(self.scales, self.scales_of_scales, self.levels, SCALES_BLOCK, torch.float32)
        scales, count = scales + self.mean_scale, 2 * self.values.numel()
        flat = ops.dequantize_4bit(self.values, scales, BLOCK, "nf4", (count,), computed).to(dtype)
        size = self.out_features * self.in_features
        return flat.flatten()[:size].view(self.out_features, self.in_features)


def bitsandbytes() -> Any:
    """bitsandbytes' functions. Raises HalkaError, with the extra to install, if it is not installed."""
    try:
        with quiet_libraries():
            return importlib.import_module("bitsandbytes.functional")
    except ImportError as error:
        raise HalkaError(
            f"nf4 needs bitsandbytes ({error}): pip install 'halka[quantised]', or use int8, which needs nothing"
        ) from error
