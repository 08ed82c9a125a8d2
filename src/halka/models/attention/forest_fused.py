"""A forest's attention by torch's fused attention, group by group (`forest_groups.py`), for GPUs.

Where there is dropout, which FlexAttention lacks, or torch cannot compile that: these kernels store no scores either,
but a group's mask, one for all heads and layers.

    N tokens of the line   Q query heads   H key/value heads   W head width
    b blocks of a group   L tokens of the longest block   S ancestors' tokens   P virtual ones   K = P+S+L keys
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from halka.models.attention.forest import ForestPlan
from halka.models.attention.forest_groups import Group, groups_of
from halka.models.attention.layer_stack import LayerMemory
from halka.models.attention.scoring import Scoring
from halka.util.transfer import to_device


@dataclass(frozen=True, eq=False)
class _Block:
    """A group with its tokens' places in the line: an empty one has its block's first token, whose run is its own.

    tokens   (b, L)
    keys     (b, S+L)
    own      the places (b·L) that are not empty, as numbers
    """

    group: Group
    tokens: Tensor
    keys: Tensor
    own: Tensor


def _blocks(plan: ForestPlan) -> tuple[list[_Block], Tensor]:
    """Each group's, and (N,) the place of each of the line's tokens among all groups' own; a single copy to the GPU."""
    groups = [*groups_of(plan.forest)]
    tensors: list[Tensor] = []
    for group in groups:
        first, own = group.tokens[:, :1], (group.tokens.flatten() >= 0).nonzero()[:, 0]
        filled = (torch.where(places < 0, first, places) for places in (group.tokens, group.keys))
        tensors += (group.tokens, group.path, group.run, *filled, own)
    line = torch.cat([group.tokens.flatten()[own] for group, own in zip(groups, tensors[5::6], strict=True)])
    *tensors, back = to_device([*tensors, line.argsort()], plan.device)
    blocks = [_Block(Group(*tensors[at : at + 3]), *tensors[at + 3 : at + 6]) for at in range(0, len(tensors), 6)]
    return blocks, back


def attend_by_fused(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    plan: ForestPlan,
    scoring: Scoring,
    memory: LayerMemory | None = None,
) -> Tensor:
    """Attention (1, Q, N, W) of query (1, Q, N, W) over key, value (1, H, N, W); memory's rows are the runs'."""
    assert scoring.softcap is None, "torch's fused attention has no softcap"
    blocks, back = plan.cached("blocks of groups", lambda: _blocks(plan))
    visibility, heads = plan.visibility(scoring.window, memory), query.shape[1]
    outputs: list[Tensor] = []
    for block in blocks:
        group = block.group
        q, k, v = query[0][:, block.tokens], key[0][:, block.keys], value[0][:, block.keys]  # heads b L W
        q, k, v = (part.transpose(0, 1) for part in (q, k, v))
        if memory is not None:
            k, v = (
                torch.cat([group.of_runs(virtual), part], dim=2)
                for virtual, part in ((memory.keys, k), (memory.values, v))
            )
        if k.shape[1] != heads:  # with a mask torch's kernels take no grouped heads
            k, v = (part.repeat_interleave(heads // part.shape[1], dim=1) for part in (k, v))
        mask = plan.cached(("bias", group, visibility, q.dtype), partial(group.bias, visibility, q.dtype))
        output = F.scaled_dot_product_attention(q, k, v, mask, scoring.dropout, scale=scoring.scale)
        outputs.append(output.transpose(1, 2).flatten(0, 1)[block.own])
    return torch.cat(outputs)[back].transpose(0, 1)[None]
