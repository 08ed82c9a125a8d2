"""Kernels for decoding on a CPU, compiled by numba: what torch reads slowly for one token, or for an adapter a row.

    N tokens of a line   D hidden width   I, O a linear's widths   F inner width of the MLP   R rank   L layers
    Q query heads   H key/value heads   G = Q/H   W head width   M blocks of a text   SIZE tokens of a block
    S = 7 linear layers of a decoder layer, in the order of `weights.ROLES`

Weights and activations are fp32, or bf16 seen as uint16; sums are fp32 always. A kernel's docstring says what it
computes as a line of torch; tests/engine/llama/test_kernels.py holds each to that line.
"""

from halka.engine.llama.kernels.attention import attend, partial_sums
from halka.engine.llama.kernels.attention_tiles import gather, hide, scatter
from halka.engine.llama.kernels.between import add_norm, keep, silu_product
from halka.engine.llama.kernels.bottlenecks import add_bottlenecks
from halka.engine.llama.kernels.factors import scale
from halka.engine.llama.kernels.low_rank import add_low_rank
from halka.engine.llama.kernels.low_rank_chunks import TOKENS, add_low_rank_chunks
from halka.engine.llama.kernels.one_row import one_row, product
from halka.engine.llama.kernels.packing import pack_low_rank
from halka.engine.llama.kernels.products import PAIRS, WIDEST, products

__all__ = [
    "PAIRS",
    "TOKENS",
    "WIDEST",
    "add_bottlenecks",
    "add_low_rank",
    "add_low_rank_chunks",
    "add_norm",
    "attend",
    "gather",
    "hide",
    "keep",
    "one_row",
    "pack_low_rank",
    "partial_sums",
    "product",
    "products",
    "scale",
    "scatter",
    "silu_product",
]
