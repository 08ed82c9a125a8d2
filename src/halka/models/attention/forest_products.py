"""A forest's attention by grouped products, for CPUs: level by level, without a mask of N × N.

The segments of one depth are gathered into groups of like length, and within a group into blocks of siblings, whose
ancestors' keys are gathered once and stand in one product for all of them. Attention alone pads, and every token is
gathered and put back by one `index_select` over all groups.

    N tokens of the line   Q query heads   H key/value heads   G = Q/H   W head width
    b blocks of a group   c segments of a block   T tokens of the longest segment   S ancestors' and virtual keys
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from halka.core import Forest
from halka.models.attention.forest import ForestPlan

OVERHEAD = 2**13  # scores (of one head) that take the time of one more group's calls, measured on two cores
LARGE = 2**16  # T·(S+T) from which torch's fused attention is used, so that no scores are kept


@dataclass(frozen=True, eq=False)
class Group:
    """Segments of one depth, in blocks of siblings (roots: of one run).

    tokens   (b, c, T) their tokens' places in the line, -1 where a block or a segment has no more
    path     (b, S) the places of their ancestors' tokens, root first; -1 behind the last
    start    (b,) how many those are, which is their first token's position
    run      (b,) the number of their run
    """

    tokens: Tensor
    path: Tensor
    start: Tensor
    run: Tensor

    def bias(self, window: int | None, dtype: torch.dtype) -> Tensor:
        """(1 or b, 1, T, S+T): what is added to scores, -inf where a token does not see a key.

        Empty places at a segment's end need none: they stand behind its tokens.
        """
        length, keys = self.tokens.shape[-1], self.path.shape[1]
        at = torch.arange(length, device=self.tokens.device)
        apart = at[:, None] - at
        hidden = (apart < 0)[None]
        if window is not None:
            hidden = hidden | (apart >= window)
        if keys:
            position = torch.arange(keys, device=self.tokens.device)
            missing = (position >= self.start[:, None])[:, None].expand(-1, length, -1)
            if window is not None:
                missing = missing | (self.start[:, None, None] + at[:, None] - position >= window)
            if not missing.any():
                missing = missing[:1]
            hidden = torch.cat([missing, hidden.expand(len(missing), -1, -1)], dim=-1)
        return torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill_(hidden, -torch.inf)[:, None]


@dataclass(frozen=True, eq=False)
class Rows:
    """Which rows (N·heads, W) of the line fill the groups' places, and where each of them is then; for `_take`.

    empty   places without a token, which hold the line's first row
    sizes   places of each group
    """

    index: Tensor
    inverse: Tensor
    empty: Tensor
    sizes: tuple[int, ...]

    @classmethod
    def of(cls, groups: Sequence[Group], tokens: int, heads: int, kv_heads: int) -> Rows:
        """In each group (H, b, c, G, T), a head's tokens one behind the other."""
        device = groups[0].tokens.device
        head = torch.arange(heads, device=device).view(kv_heads, 1, 1, -1, 1)
        parts = [(group.tokens[None, :, :, None] * heads + head).flatten() for group in groups]
        index = torch.cat(parts)  # below 0 where the token is -1
        empty = (index < 0).nonzero()[:, 0]
        places = torch.arange(len(index), device=device)
        inverse = torch.empty(tokens * heads, dtype=torch.int64, device=device)
        inverse[index[index >= 0]] = places[index >= 0]
        return cls(index.clamp(min=0), inverse, empty, tuple(len(part) for part in parts))


def attend_by_products(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    plan: ForestPlan,
    scale: float,
    dropout: float = 0.0,
    softcap: float | None = None,
    window: int | None = None,
    virtual: tuple[Tensor, Tensor, Tensor | None] | None = None,
) -> Tensor:
    """Attention (N, Q, W) of query (N, Q, W) over key, value (N, H, W).

    virtual: keys and values (R, H, P, W) of virtual tokens for R runs, or one for all, and which are valid (R, P).
    """
    tokens, heads = query.shape[:2]
    kv_heads, width = key.shape[1], value.shape[-1]
    groups = plan.kept("groups", lambda: tuple(groups_of(plan.forest, plan.device)))
    rows_q = plan.kept(("rows", heads, kv_heads), lambda: Rows.of(groups, tokens, heads, kv_heads))
    rows_kv = plan.kept(("rows", kv_heads, kv_heads), lambda: Rows.of(groups, tokens, kv_heads, kv_heads))
    lines = [tensor.reshape(-1, tensor.shape[-1]) for tensor in (key, value)]
    queries = _take(query.reshape(-1, query.shape[-1]), rows_q).split(rows_q.sizes)
    own = [_take(line, rows_kv).split(rows_kv.sizes) for line in lines]
    outputs = []
    for number, (group, q, k, v) in enumerate(zip(groups, queries, *own, strict=True)):
        blocks, siblings, length = group.tokens.shape
        q = q.view(kv_heads, blocks, siblings, heads // kv_heads, length, -1)
        k, v = (part.view(kv_heads, blocks, siblings, length, -1) for part in (k, v))
        index = plan.kept(("path", number, kv_heads), lambda group=group: _rows_of_path(group, kv_heads))
        path = [line.index_select(0, index).view(kv_heads, blocks, -1, line.shape[-1]) for line in lines]
        bias = plan.kept(("bias", number, window, query.dtype), lambda group=group: group.bias(window, query.dtype))
        if virtual is not None:
            path = [torch.cat([_of_blocks(more, group), part], 2) for more, part in zip(virtual[:2], path, strict=True)]
            bias = _with_virtual(bias, virtual[0], virtual[2], group)
        keys = path[0].shape[2] + length
        if length * keys <= LARGE or softcap is not None:
            output = _Products.apply(q, *path, k, v, bias, scale, dropout, softcap)
        else:
            output = _fused(q, *path, k, v, bias, scale, dropout, plain=window is None)
        outputs.append(output.reshape(-1, width))
    return _put_back(torch.cat(outputs), rows_q).view(tokens, heads, width)


# ── groups ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def groups_of(forest: Forest, device: torch.device | str = "cpu") -> Iterator[Group]:
    """Every segment in one group; those of one depth share a group where padding costs less than a group's calls."""
    depths = forest.depths
    for depth in range(max(depths) + 1):
        level = [segment for segment, at in enumerate(depths) if at == depth]
        for segments in _of_like_length(forest, sorted(level, key=lambda segment: forest.lengths[segment])):
            yield _group(forest, segments, device)


def _of_like_length(forest: Forest, segments: list[int]) -> Iterator[list[int]]:
    """Segments of one depth, from short to long, cut where two groups cost less than one."""
    cost = _cost(forest, segments)
    cuts = sorted({len(segments) * eighth // 8 for eighth in range(1, 8)} - {0})
    costs = [(_cost(forest, segments[:cut]) + _cost(forest, segments[cut:]), cut) for cut in cuts]
    if costs and min(costs)[0] < cost:
        cut = min(costs)[1]
        yield from _of_like_length(forest, segments[:cut])
        yield from _of_like_length(forest, segments[cut:])
    else:
        yield segments


def _cost(forest: Forest, segments: list[int]) -> int:
    return OVERHEAD + min(_scores(forest, blocks) for blocks in _ways(forest, segments))


def _scores(forest: Forest, blocks: list[list[int]]) -> int:
    """Scores of a group with these blocks, and its gathered keys, which are as dear as a few scores."""
    siblings = max(map(len, blocks))
    length = max(forest.lengths[segment] for block in blocks for segment in block)
    path = max(forest.offsets[block[0]] for block in blocks)
    return len(blocks) * (siblings * length * (path + length) + 16 * path)


def _ways(forest: Forest, segments: list[int]) -> Iterator[list[list[int]]]:
    """Ways to put segments into blocks of siblings: of one, of up to two, up to four …"""
    families: dict[tuple[int, int], list[int]] = {}
    for segment in segments:
        families.setdefault((forest.parents[segment], forest.run_of_segment[segment]), []).append(segment)
    size, largest = 1, max(map(len, families.values()))
    while True:
        yield [family[at : at + size] for family in families.values() for at in range(0, len(family), size)]
        if size == largest:
            return
        size = min(2 * size, largest)


def _group(forest: Forest, segments: list[int], device: torch.device | str) -> Group:
    blocks = min(_ways(forest, segments), key=lambda blocks: _scores(forest, blocks))
    starts, lengths = forest.starts, forest.lengths
    length = max(lengths[segment] for segment in segments)
    tokens = torch.full((len(blocks), max(map(len, blocks)), length), -1)
    path = torch.full((len(blocks), max(forest.offsets[segment] for segment in segments)), -1)
    for number, block in enumerate(blocks):
        for place, segment in enumerate(block):
            tokens[number, place, : lengths[segment]] = torch.arange(lengths[segment]) + starts[segment]
        for ancestor in forest.ancestors(block[0]):
            at = forest.offsets[ancestor]
            path[number, at : at + lengths[ancestor]] = torch.arange(lengths[ancestor]) + starts[ancestor]
    start = torch.tensor([forest.offsets[block[0]] for block in blocks])
    run = torch.tensor([forest.run_of_segment[block[0]] for block in blocks])
    return Group(*(table.to(device) for table in (tokens, path, start, run)))


# ── rows ────────────────────────────────────────────────────────────────────────────────────────────────────────────


class _Take(torch.autograd.Function):
    """rows[index], with the gradient read by the inverse index: autograd's own adds rows, ten times as slow."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, index: Tensor, inverse: Tensor, empty: Tensor | None) -> Tensor:
        ctx.save_for_backward(inverse, empty)
        return rows.index_select(0, index)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        inverse, empty = ctx.saved_tensors
        gradient = gradient.index_select(0, inverse)
        if empty is not None:
            gradient.index_fill_(0, empty, 0)
        return gradient, None, None, None


def _take(line: Tensor, rows: Rows) -> Tensor:
    return _Take.apply(line, rows.index, rows.inverse, None)


def _put_back(places: Tensor, rows: Rows) -> Tensor:
    return _Take.apply(places, rows.inverse, rows.index, rows.empty)


def _rows_of_path(group: Group, kv_heads: int) -> Tensor:
    heads = torch.arange(kv_heads, device=group.path.device)[:, None, None]
    return (group.path.clamp(min=0) * kv_heads + heads).flatten()


def _of_blocks(virtual: Tensor, group: Group) -> Tensor:
    """(H, b, P, W): the virtual tokens' keys or values (R, H, P, W) for each block's run."""
    of_heads = virtual.transpose(0, 1)
    return of_heads.expand(-1, len(group.run), -1, -1) if len(virtual) == 1 else of_heads.index_select(1, group.run)


def _with_virtual(bias: Tensor, keys: Tensor, valid: Tensor | None, group: Group) -> Tensor:
    """The bias with P columns in front: every token sees its run's valid virtual tokens."""
    if valid is None:
        front = bias.new_zeros(1, 1, 1, keys.shape[2])
    else:
        front = torch.zeros_like(valid, dtype=bias.dtype).masked_fill_(~valid, -torch.inf)
        front = (front if len(front) == 1 else front[group.run])[:, None, None]
    blocks = max(len(front), len(bias))
    return torch.cat([front.expand(blocks, 1, bias.shape[2], -1), bias.expand(blocks, -1, -1, -1)], dim=-1)


# ── one group ───────────────────────────────────────────────────────────────────────────────────────────────────────


class _Products(torch.autograd.Function):
    """softmax(query @ [path keys, own keys]ᵀ · scale + bias) @ [path values, own values], (H, b, c, G, T, W).

    Keeps the probabilities, and nothing else as large.

    query (H, b, c, G, T, W)   path keys, values (H, b, S, W)   own (H, b, c, T, W)   bias (1 or b, 1, T, S+T)
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        path_key: Tensor,
        path_value: Tensor,
        key: Tensor,
        value: Tensor,
        bias: Tensor,
        scale: float,
        dropout: float,
        softcap: float | None,
    ) -> Tensor:
        heads, blocks, siblings, groups, length, _ = query.shape
        scaled = query * scale
        scores = _products(scaled, path_key.transpose(-1, -2), key.transpose(-1, -2))
        if softcap is not None:
            scores.div_(softcap).tanh_().mul_(softcap)
        capped = None if softcap is None else scores.clone()
        scores.view(heads, blocks, siblings * groups, length, -1).add_(bias)
        probabilities = scores.softmax(-1)
        kept = None
        if dropout:
            kept = torch.empty_like(probabilities).bernoulli_(1 - dropout).div_(1 - dropout)
        ctx.save_for_backward(scaled, path_key, path_value, key, value, probabilities, capped, kept)
        ctx.scale, ctx.softcap = scale, softcap
        return _sums(probabilities if kept is None else probabilities * kept, path_value, value, query)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        scaled, path_key, path_value, key, value, probabilities, capped, kept = ctx.saved_tensors
        gradient = gradient.contiguous()
        through = _products(gradient, path_value.transpose(-1, -2), value.transpose(-1, -2))
        dropped = probabilities
        if kept is not None:
            through.mul_(kept)
            dropped = probabilities * kept
        d_path_value, d_value = _sums_over_queries(dropped, gradient, path_value, value)
        scores = torch.ops.aten._softmax_backward_data(through, probabilities, -1, probabilities.dtype)
        if capped is not None:
            scores.mul_(1 - (capped / ctx.softcap).square())
        d_path_key, d_key = _sums_over_queries(scores, scaled, path_key, key)
        d_query = _sums(scores, path_key, key, scaled).mul_(ctx.scale)
        return d_query, d_path_key, d_path_value, d_key, d_value, None, None, None, None


def _products(rows: Tensor, path: Tensor, own: Tensor) -> Tensor:
    """rows @ [path, own] as (H·b·c, G·T, S+T), for rows (H, b, c, G, T, W), path (H, b, W, S), own (H, b, c, W, T)."""
    heads, blocks, siblings, groups, length, width = rows.shape
    keys = path.shape[-1]
    scores = rows.new_empty(heads * blocks * siblings, groups * length, keys + length)
    torch.bmm(rows.view(len(scores), -1, width), own.flatten(0, 2), out=scores[..., keys:])
    if keys:
        by_block = scores.view(heads * blocks, siblings * groups * length, -1)
        torch.bmm(rows.view(len(by_block), -1, width), path.flatten(0, 1), out=by_block[..., :keys])
    return scores


def _sums(weights: Tensor, path: Tensor, own: Tensor, like: Tensor) -> Tensor:
    """weights (H·b·c, G·T, S+T) @ [path (H, b, S, W), own (H, b, c, T, W)] as (H, b, c, G, T, W)."""
    heads, blocks, siblings, groups, length, _ = like.shape
    keys, width = path.shape[-2:]
    sums = torch.bmm(weights[..., keys:], own.flatten(0, 2))
    if keys:
        by_block = weights.view(heads * blocks, siblings * groups * length, -1)[..., :keys]
        sums = sums.view(len(by_block), -1, width).baddbmm_(by_block, path.flatten(0, 1))
    return sums.view(heads, blocks, siblings, groups, length, width)


def _sums_over_queries(weights: Tensor, rows: Tensor, path: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
    """weightsᵀ @ rows in the shapes of path and own: what the queries give to each key."""
    keys, width = path.shape[-2], rows.shape[-1]
    to_own = torch.bmm(weights[..., keys:].transpose(1, 2), rows.view(len(weights), -1, width))
    blocks = path.shape[0] * path.shape[1]
    by_block = weights.view(blocks, -1, weights.shape[-1])[..., :keys]
    to_path = torch.bmm(by_block.transpose(1, 2), rows.view(blocks, -1, width))
    return to_path.view(path.shape), to_own.view(own.shape)


def _fused(
    query: Tensor,
    path_key: Tensor,
    path_value: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor,
    scale: float,
    dropout: float,
    plain: bool,
) -> Tensor:
    """The same by torch's fused attention, which keeps no scores; `plain` without a window."""
    heads, blocks, siblings, groups, length, width = query.shape

    def of_segments(path: Tensor, own: Tensor) -> Tensor:
        """(b·c, H, S+T, W)"""
        shared = path[:, :, None].expand(-1, -1, siblings, -1, -1)
        return torch.cat([shared, own], dim=-2).flatten(1, 2).transpose(0, 1)

    rows = query.flatten(1, 2).transpose(0, 1).reshape(blocks * siblings, heads * groups, length, width)
    causal = plain and path_key.shape[2] == 0
    mask = None if causal else bias.expand(blocks, -1, -1, -1).repeat_interleave(siblings, 0)
    output = F.scaled_dot_product_attention(
        rows,
        of_segments(path_key, key),
        of_segments(path_value, value),
        mask,
        dropout,
        causal,
        scale=scale,
        enable_gqa=groups > 1,
    )
    output = output.view(blocks * siblings, heads, groups, length, -1).transpose(0, 1)
    return output.reshape(heads, blocks, siblings, groups, length, -1)
