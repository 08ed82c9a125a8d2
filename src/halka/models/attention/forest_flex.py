"""A forest's attention by torch's FlexAttention, for GPUs: one kernel that never stores scores.

Flash attention of varying lengths could take a forest as well, level by level, with the parts joined by their
log-sum-exp; but a level's window is no window of that kernel, it has no softcap, and it has no float32. FlexAttention
takes all three, the virtual tokens and the grouped heads in one call, and skips blocks in which no token sees a key.

It has to be compiled, which takes Triton, a C compiler and a GPU with enough shared memory: `flex_kernels.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask
from torch.overrides import handle_torch_function, has_torch_function

from halka.models.attention.flex_kernels import KERNELS, FlexKernels, uncompiled
from halka.models.attention.forest import Visibility
from halka.models.attention.scoring import Scoring

BLOCK = 128  # tokens and keys of a block, FlexAttention's own choice


def attend_by_flex(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: BlockMask,
    scoring: Scoring,
    kernels: FlexKernels | None = None,
) -> Tensor | None:
    """Attention (1, Q, N, W) of query (1, Q, N, W) over key, value (1, H, K, W), with the mask of `block_mask`.

    None where torch cannot compile it. A torch function mode sees this call as it sees torch's own: a dry run has no
    GPU to compile for.

    kernels: by default those of this process on a GPU, and on a CPU the function that is not compiled
    """
    if has_torch_function((query, key, value)):
        return handle_torch_function(attend_by_flex, (query, key, value), query, key, value, mask, scoring, kernels)
    scale, dropout, softcap, window = scoring
    assert not dropout, "FlexAttention has no dropout"
    if torch.compiler.is_compiling() or (kernels is None and query.device.type == "cpu"):  # as a part of a graph
        return uncompiled(query, key, value, mask, scale, softcap)
    return (kernels or KERNELS).attend(query, key, value, mask, scale, softcap, windowed=window is not None)


def block_mask(visibility: Visibility) -> BlockMask:
    """Which blocks of keys a block of tokens sees in part or in full; by the blocks' bounds, so no N × K mask is made.

    A block that is seen in full by its bounds is; one that may be seen is looked at token by token in the kernel.
    """
    tokens, keys = visibility.tokens, len(visibility.first)
    at = _bounds(torch.arange(tokens, device=visibility.first.device))[:, :, None]
    first, end, position = (
        _bounds(table)[:, None] for table in (visibility.first, visibility.end, visibility.position)
    )
    low, high = 0, 1
    some = (first[low] <= at[high]) & (at[low] < end[high])
    full = (first[high] <= at[low]) & (at[high] < end[low])
    if visibility.bound is not None:
        bound = _bounds(visibility.bound)[:, :, None]
        some &= bound[low] < position[high]
        full &= bound[high] < position[low]
    if tokens % BLOCK:
        full[-1] = False
    if keys % BLOCK:
        full[:, -1] = False
    return BlockMask.from_kv_blocks(
        *_listed(some & ~full),
        *_listed(full),
        BLOCK_SIZE=BLOCK,
        mask_mod=lambda row, head, token, key: visibility.sees(token, key),
        seq_lengths=(tokens, keys),
    )


def keys_of_tokens(mask: BlockMask) -> int:
    """How many keys the kernel computes a token's scores for, on average: those in blocks that are not skipped."""
    blocks = mask.kv_num_blocks.sum() + (0 if mask.full_kv_num_blocks is None else mask.full_kv_num_blocks.sum())
    return int(blocks) * BLOCK // mask.kv_num_blocks.shape[-1]


def _bounds(table: Tensor) -> Tensor:
    """(2, blocks): the smallest and the largest number in each block of a table."""
    blocks = -(-len(table) // BLOCK)
    filled = torch.cat([table, table[-1:].expand(blocks * BLOCK - len(table))]).view(blocks, BLOCK)
    return torch.stack(filled.aminmax(dim=1))


def _listed(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """How many blocks of keys each block of tokens has, (1, 1, blocks), and these blocks' numbers before the rest."""
    numbers = blocks.to(torch.int32).argsort(dim=-1, descending=True, stable=True)
    return blocks.sum(-1, dtype=torch.int32)[None, None], numbers.to(torch.int32)[None, None]
