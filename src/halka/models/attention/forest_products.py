"""A forest's attention by grouped products, for CPUs, group by group (`forest_groups.py`).

One `index_select` gathers the queries of all groups, and one puts the outputs back into the line. For the gradient the
line's own queries, keys and values are kept, and gathered once more: an ancestor's keys, which each of many blocks has
a copy of, are kept once. Scores are kept where they are few, and computed once more where they are many; with dropout
all are kept, whose draws are among them, and the masks of all groups.

    N tokens of the line   Q query heads   H key/value heads   G = Q/H   W head width   R runs, or 1
    b blocks of a group   L tokens of the longest block   S ancestors' tokens   P virtual ones   K = P+S+L keys
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from halka.models.attention.forest import ForestPlan, Visibility
from halka.models.attention.forest_gather import GatherPlan
from halka.models.attention.forest_groups import Group, groups_of, groups_on
from halka.models.attention.layer_stack import LayerMemory
from halka.models.attention.scoring import Scoring

LARGE = 2**16  # L·K above which no mask is kept, without dropout
MANY = 2**8  # keys of a token above which scores are computed once more: more would be kept than for padded rows
TILE = 2**17  # scores of one head that are computed at once there

Part = Callable[..., Tensor]  # of slices of blocks, rows and keys: that part of a group's bias


def attend_by_products(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    plan: ForestPlan,
    scoring: Scoring,
    memory: LayerMemory | None = None,
) -> Tensor:
    """Attention (N, Q, W) of query (N, Q, W) over key, value (N, H, W); memory's rows are the runs'."""
    (tokens, heads, _), kv_heads = query.shape, value.shape[1]
    groups = plan.cached("groups", lambda: tuple(groups_of(plan.forest)))

    def rows(heads: int, ancestors: bool) -> GatherPlan:
        return GatherPlan.of(groups, tokens, heads, kv_heads, ancestors=ancestors).on_device(plan.device)

    call = _Call(
        plan,
        plan.cached("groups there", lambda: groups_on(plan.device, groups)),
        plan.cached(("queries", heads, kv_heads), lambda: rows(heads, ancestors=False)),
        plan.cached(("keys", kv_heads), lambda: rows(kv_heads, ancestors=True)),
        plan.visibility(scoring.window, memory),
        scoring,
    )
    virtual = (None, None) if memory is None else (memory.keys, memory.values)
    output: Any = _Products.apply(query, key, value, *virtual, call)
    return output


@dataclass(frozen=True, eq=False)
class _Call:
    """What one layer's attention needs beside its tensors."""

    plan: ForestPlan
    groups: tuple[Group, ...]
    of_queries: GatherPlan
    of_keys: GatherPlan
    visibility: Visibility
    scoring: Scoring

    def gathered(
        self, query: Tensor, key: Tensor, value: Tensor, *virtual: Tensor | None
    ) -> Iterator[tuple[Group, Tensor, Tensor, Tensor]]:
        """Each group with its query (H, b, G, L, W), key and value (H, b, K, W)."""
        heads, kv_heads = query.shape[1], value.shape[1]
        queries = self.of_queries.take(query).mul_(self.scoring.scale).split(self.of_queries.sizes)
        keys, values = (self.of_keys.take(line).split(self.of_keys.sizes) for line in (key, value))
        for group, q, k, v in zip(self.groups, queries, keys, values, strict=True):
            blocks, length = group.tokens.shape
            k, v = (
                own if front is None else torch.cat([group.of_runs(front).transpose(0, 1), own], dim=2)
                for front, own in zip(virtual, (p.view(kv_heads, blocks, -1, p.shape[-1]) for p in (k, v)), strict=True)
            )
            yield group, q.view(kv_heads, blocks, heads // kv_heads, length, -1), k, v

    def keeps_scores(self, key: Tensor) -> bool:
        """Whether a group's scores are kept: they are few, or what dropout drew is among them."""
        return bool(self.scoring.dropout) or key.shape[2] <= MANY

    def whole_bias(self, group: Group, dtype: torch.dtype) -> Tensor:
        """(1 or b, 1, L, K): what is added to a group's scores, computed once for all layers."""
        compute = partial(group.bias, self.visibility, dtype)
        return self.plan.cached(("bias", group, self.visibility, dtype), compute)

    def bias(self, group: Group, query: Tensor, key: Tensor) -> Part:
        """Parts of that, of a whole that is kept where it is not large."""
        if query.shape[3] * key.shape[2] > LARGE:
            return partial(group.bias, self.visibility, query.dtype)
        return partial(_part, self.whole_bias(group, query.dtype))


def _part(bias: Tensor, blocks: slice, rows: slice, keys: slice) -> Tensor:
    return bias[slice(None) if len(bias) == 1 else blocks, :, rows, keys]


class _Products(torch.autograd.Function):
    """softmax(query @ keyᵀ · scale + bias) @ value of all groups, put back into the line."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        virtual_key: Tensor | None,
        virtual_value: Tensor | None,
        call: _Call,
    ) -> Tensor:
        outputs: list[Tensor] = []
        scores: list[Tensor | None] = []
        scoring = call.scoring
        for group, q, k, v in call.gathered(query, key, value, virtual_key, virtual_value):
            if call.keeps_scores(k):
                probabilities, slope = _probabilities(q, k, call.whole_bias(group, q.dtype), scoring.softcap)
                kept, dropped = None, probabilities
                if scoring.dropout:
                    kept = torch.empty_like(probabilities).bernoulli_(1 - scoring.dropout).div_(1 - scoring.dropout)
                    dropped = probabilities * kept
                outputs.append(torch.bmm(dropped, _rows(v)).view(-1, v.shape[-1]))
                scores += (probabilities, slope, kept)
            else:
                output = _by_tiles(q, k, v, call.bias(group, q, k), scoring.softcap)
                outputs.append(output.view(-1, v.shape[-1]))
                scores += (None, None, None)
        ctx.save_for_backward(query, key, value, virtual_key, virtual_value, *scores)
        ctx.call = call
        return call.of_queries.put_back(torch.cat(outputs)).view(*query.shape[:2], value.shape[-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, virtual_key, virtual_value, *scores = ctx.saved_tensors
        call: _Call = ctx.call
        of_line: list[list[Tensor]] = [[], [], []]  # gradients of the query, the key and the value
        of_virtual = [_exact_zeros(virtual) for virtual in (virtual_key, virtual_value)]
        outputs = call.of_queries.gradient_of_put_back(gradient).split(call.of_queries.sizes)
        groups = call.gathered(query, key, value, virtual_key, virtual_value)
        for (group, q, k, v), d_output, place in zip(groups, outputs, range(0, len(scores), 3), strict=True):
            d_output = d_output.view(*q.shape[:-1], -1)
            probabilities, slope, kept = scores[place : place + 3]
            if probabilities is None:
                parts = _gradients_by_tiles(d_output, q, k, v, call.bias(group, q, k), call.scoring.softcap)
            else:
                parts = _gradients(d_output, q, k, v, probabilities, slope, kept)
            for sums, part in zip(of_virtual, parts[1:], strict=True):
                if sums is not None:
                    _add_to_runs(sums, part[:, :, : sums.shape[2]], group)
            length = 0 if virtual_key is None else virtual_key.shape[2]
            own = (parts[0], *(part[:, :, length:] for part in parts[1:]))
            for line, part in zip(of_line, own, strict=True):
                line.append(part.reshape(-1, part.shape[-1]))
        d_query, d_key, d_value = (torch.cat(parts) for parts in of_line)
        return (
            call.of_queries.gradient_of_take(d_query).mul_(call.scoring.scale).view(query.shape),
            call.of_keys.gradient_of_take(d_key).view(key.shape),
            call.of_keys.gradient_of_take(d_value).view(value.shape),
            *(None if sums is None else sums.to(key.dtype) for sums in of_virtual),
            None,
        )


def _exact_zeros(like: Tensor | None) -> Tensor | None:
    """Zeros of that shape, to which many blocks' gradients are added."""
    return None if like is None else torch.zeros_like(like, dtype=torch.promote_types(like.dtype, torch.float32))


def _add_to_runs(sums: Tensor, of_blocks: Tensor, group: Group) -> None:
    """Add blocks' gradients (H, b, P, W) to those of their runs' virtual tokens (R, H, P, W)."""
    by_block = of_blocks.transpose(0, 1).to(sums.dtype)
    if len(sums) == 1:
        sums += by_block.sum(0, keepdim=True)
    else:
        sums.index_add_(0, group.run, by_block)


# ── one group ───────────────────────────────────────────────────────────────────────────────────────────────────────

# of query (H, b, G, L, W), scaled; key, value (H, b, K, W); bias (1 or b, 1, L, K), or what computes parts of it


def _by_tiles(query: Tensor, key: Tensor, value: Tensor, bias: Part, softcap: float | None) -> Tensor:
    """The output, shaped as query, tile by tile: nothing of the scores' size is kept.

    On a CPU with products in bfloat16 twice as fast as torch's fused attention, which needs a mask where a tree is.
    """
    output = query.new_empty(*query.shape[:-1], value.shape[-1])
    for rows, keys, part in _tiles(query, key, bias):
        probabilities, _ = _probabilities(query[rows], key[keys], part, softcap)
        target = output[rows]
        target.copy_(torch.bmm(probabilities, _rows(value[keys])).view(target.shape))
    return output


def _gradients_by_tiles(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, bias: Part, softcap: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Those of the query, the key and the value, with the scores computed once more."""
    exact = torch.promote_types(key.dtype, torch.float32)  # several tiles add to one key
    d_query, d_key, d_value = torch.empty_like(query), *(torch.zeros_like(it, dtype=exact) for it in (key, value))
    for rows, keys, part in _tiles(query, key, bias):
        probabilities, slope = _probabilities(query[rows], key[keys], part, softcap)
        parts = _gradients(gradient[rows], query[rows], key[keys], value[keys], probabilities, slope, None)
        d_query[rows] = parts[0]
        d_key[keys] += parts[1]
        d_value[keys] += parts[2]
    return d_query, d_key.to(key.dtype), d_value.to(value.dtype)


def _tiles(query: Tensor, key: Tensor, bias: Part) -> Iterator[tuple[Any, Any, Tensor]]:
    """Indices of tiles into the query and into the keys that its tokens may see, and the bias between them."""
    blocks, length, keys = query.shape[1], query.shape[3], key.shape[2]
    together, rows = max(1, TILE // (length * keys)), max(16, TILE // keys)
    for block in range(0, blocks, together):
        some = slice(block, block + together)
        for start in range(0, length, rows):
            end = min(start + rows, length)
            part, seen = slice(start, end), slice(keys - length + end)  # no token of a block sees those behind it
            yield (slice(None), some, slice(None), part), (slice(None), some, seen), bias(some, part, seen)


def _rows(heads: Tensor) -> Tensor:
    """(H·b, …, W): a batch for products, of (H, b, …, W)."""
    return heads.reshape(heads.shape[0] * heads.shape[1], -1, heads.shape[-1])


def _probabilities(query: Tensor, key: Tensor, bias: Tensor, softcap: float | None) -> tuple[Tensor, Tensor | None]:
    """The softmax of scores (H·b, G·L, K), and the softcap's slope there."""
    scores = torch.bmm(_rows(query), _rows(key).transpose(1, 2))
    slope = None
    if softcap is not None:
        scores.div_(softcap).tanh_()
        slope = 1 - scores.square()
        scores.mul_(softcap)
    scores.view(*query.shape[:-1], -1).add_(bias)
    return torch.softmax(scores, -1, out=scores), slope


def _gradients(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    probabilities: Tensor,
    slope: Tensor | None,
    kept: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Those of the query, the key and the value."""
    rows = _rows(gradient)
    scores = torch.bmm(rows, _rows(value).transpose(1, 2))
    dropped = probabilities
    if kept is not None:
        scores.mul_(kept)
        dropped = probabilities * kept
    d_value = torch.bmm(dropped.transpose(1, 2), rows)
    torch.ops.aten._softmax_backward_data.out(scores, probabilities, -1, scores.dtype, grad_input=scores)
    if slope is not None:
        scores.mul_(slope)
    d_query, d_key = torch.bmm(scores, _rows(key)), torch.bmm(scores.transpose(1, 2), _rows(query))
    return d_query.view(query.shape), d_key.view(key.shape), d_value.view(value.shape)
