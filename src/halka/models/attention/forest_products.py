"""A forest's attention by grouped products, for CPUs, group by group (`forest_groups.py`).

One `index_select` gathers the queries of all groups, and one puts the outputs back into the line. Scores are kept
where they are few, and computed once more for the gradient where they are many.

    N tokens of the line   Q query heads   H key/value heads   G = Q/H   W head width
    b blocks of a group   L tokens of the longest block   S ancestors' tokens   P virtual ones   K = P+S+L keys
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from halka.models.attention.forest import ForestPlan
from halka.models.attention.forest_groups import Group, groups_of
from halka.models.attention.places import LayerMemory

LARGE = 2**16  # L·K from which neither scores nor masks are kept
TILE = 2**17  # scores of one head that are computed at once there: no tile holds two blocks

Part = Callable[..., Tensor]  # of slices of blocks, rows and keys: that part of a group's bias


@dataclass(frozen=True, eq=False)
class Rows:
    """Which rows (N·heads, W) of the line fill the places of all groups; for `_Take`.

    index     the row of each place; an empty place has its block's first, so that no block reads another run's values
    inverse   the place of each row, of those where it is no ancestor's
    empty     the empty places
    shared    the places of ancestors' rows
    sizes     how many places each group has
    """

    index: Tensor
    inverse: Tensor
    empty: Tensor
    shared: Tensor
    sizes: tuple[int, ...]

    @classmethod
    def of(cls, groups: Sequence[Group], tokens: int, heads: int, kv_heads: int, *, ancestors: bool = False) -> Rows:
        """Of a group's own tokens, in (H, b, G, L), or of its ancestors' before them, in (H, b, G, S+L)."""
        head = torch.arange(heads, device=groups[0].tokens.device).view(kv_heads, 1, -1, 1)
        parts, filled, shared = [], [], []
        for group in groups:
            places, of_path = (group.keys, group.path.shape[1]) if ancestors else (group.tokens, 0)
            token = places[None, :, None]
            rows = torch.where(token < 0, -1, token * heads + head)
            parts.append(rows.flatten())
            filled.append(torch.where(token < 0, places[None, :, None, of_path, None] * heads + head, rows).flatten())
            shared.append((torch.arange(places.shape[1], device=places.device) < of_path).expand_as(rows).flatten())
        index, is_shared = torch.cat(parts), torch.cat(shared)
        own = ((index >= 0) & ~is_shared).nonzero()[:, 0]
        inverse = torch.empty(tokens * heads, dtype=torch.int64, device=index.device)
        inverse[index[own]] = own
        empty, shared_places = (index < 0).nonzero()[:, 0], (is_shared & (index >= 0)).nonzero()[:, 0]
        return cls(torch.cat(filled), inverse, empty, shared_places, tuple(len(part) for part in parts))


def attend_by_products(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    plan: ForestPlan,
    scale: float,
    dropout: float = 0.0,
    softcap: float | None = None,
    window: int | None = None,
    memory: LayerMemory | None = None,
) -> Tensor:
    """Attention (N, Q, W) of query (N, Q, W) over key, value (N, H, W); memory's rows are the runs'."""
    (tokens, heads, _), (kv_heads, width) = query.shape, value.shape[1:]
    groups = plan.kept("groups", lambda: tuple(groups_of(plan.forest, plan.device)))
    of_queries = plan.kept(("queries", heads, kv_heads), lambda: Rows.of(groups, tokens, heads, kv_heads))
    of_keys = plan.kept(("keys", kv_heads), lambda: Rows.of(groups, tokens, kv_heads, kv_heads, ancestors=True))
    visibility = plan.visibility(window, memory)
    queries = _take(query, of_queries, scale).split(of_queries.sizes)
    keys, values = (_take(line, of_keys).split(of_keys.sizes) for line in (key, value))
    outputs = []
    for group, q, k, v in zip(groups, queries, keys, values, strict=True):
        blocks, length = group.tokens.shape
        q = q.view(kv_heads, blocks, heads // kv_heads, length, -1)
        k, v = (part.view(kv_heads, blocks, -1, part.shape[-1]) for part in (k, v))
        if memory is not None:
            k = torch.cat([_of_blocks(memory.keys, group), k], dim=2)
            v = torch.cat([_of_blocks(memory.values, group), v], dim=2)
        bias = partial(group.bias, visibility, q.dtype)
        if length * k.shape[2] <= LARGE or dropout:
            whole = plan.kept(("bias", group, visibility, q.dtype), bias)
            output: Any = _Kept.apply(q, k, v, whole, softcap, dropout)
        else:
            output = _Recomputed.apply(q, k, v, bias, softcap)
        outputs.append(output.reshape(-1, width))
    return _put_back(torch.cat(outputs), of_queries).view(tokens, heads, width)


def _of_blocks(virtual: Tensor, group: Group) -> Tensor:
    """(H, b, P, W): the virtual tokens' keys or values (R, H, P, W) for each block's run."""
    of_heads = virtual.transpose(0, 1)
    return of_heads.expand(-1, len(group.run), -1, -1) if len(virtual) == 1 else of_heads.index_select(1, group.run)


# ── one group ───────────────────────────────────────────────────────────────────────────────────────────────────────

# Both functions are softmax(query @ keyᵀ + bias) @ value, shaped as query, of
#     query (H, b, G, L, W)   key, value (H, b, K, W)   bias (1 or b, 1, L, K), or what computes parts of it


class _Kept(torch.autograd.Function):
    """Keeps the probabilities, and nothing else of the scores' size."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        bias: Tensor,
        softcap: float | None,
        dropout: float,
    ) -> Tensor:
        probabilities, slope = _probabilities(query, key, bias, softcap)
        kept = torch.empty_like(probabilities).bernoulli_(1 - dropout).div_(1 - dropout) if dropout else None
        ctx.save_for_backward(query, key, value, probabilities, slope, kept)
        dropped = probabilities if kept is None else probabilities * kept
        return torch.bmm(dropped, _rows(value)).view(*query.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return *_gradients(gradient, *ctx.saved_tensors), None, None, None


class _Recomputed(torch.autograd.Function):
    """Keeps nothing of the scores' size: they are computed tile by tile, and once more for the gradient.

    On a CPU with products in bfloat16 twice as fast as torch's fused attention, which needs a mask where a tree is.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, bias: Part, softcap: float | None) -> Tensor:
        ctx.save_for_backward(query, key, value)
        ctx.bias, ctx.softcap = bias, softcap
        output = query.new_empty(*query.shape[:-1], value.shape[-1])
        for rows, keys, part in _tiles(query, key, bias):
            probabilities, _ = _probabilities(query[rows], key[keys], part, softcap)
            target = output[rows]
            target.copy_(torch.bmm(probabilities, _rows(value[keys])).view(target.shape))
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value = ctx.saved_tensors
        exact = torch.promote_types(key.dtype, torch.float32)  # several tiles add to one key
        d_query, d_key, d_value = torch.empty_like(query), *(torch.zeros_like(it, dtype=exact) for it in (key, value))
        for rows, keys, part in _tiles(query, key, ctx.bias):
            probabilities, slope = _probabilities(query[rows], key[keys], part, ctx.softcap)
            parts = _gradients(gradient[rows], query[rows], key[keys], value[keys], probabilities, slope, None)
            d_query[rows] = parts[0]
            d_key[keys] += parts[1]
            d_value[keys] += parts[2]
        return d_query, d_key.to(key.dtype), d_value.to(value.dtype), None, None


def _tiles(query: Tensor, key: Tensor, bias: Part) -> Iterator[tuple[Any, Any, Tensor]]:
    """Indices of tiles into the query and into the keys that its tokens may see, and the bias between them."""
    blocks, length, keys = query.shape[1], query.shape[3], key.shape[2]
    rows = max(16, TILE // keys)
    for block in range(blocks):
        some = slice(block, block + 1)
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


# ── rows ────────────────────────────────────────────────────────────────────────────────────────────────────────────


class _Take(torch.autograd.Function):
    """rows[index] · scale, with the gradient read by the inverse: autograd's own adds row by row, ten times as slow.

    empty: places of the result whose gradient is 0. shared: places whose gradient is added to their rows' own.
    """

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        index: Tensor,
        inverse: Tensor,
        scale: float,
        empty: Tensor | None,
        shared: Tensor | None,
    ) -> Tensor:
        ctx.save_for_backward(index, inverse, empty, shared)
        ctx.scale = scale
        taken = rows.index_select(0, index)
        return taken if scale == 1 else taken.mul_(scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        index, inverse, empty, shared = ctx.saved_tensors
        own = gradient.index_select(0, inverse)
        if empty is not None:
            own.index_fill_(0, empty, 0)
        if shared is not None and len(shared):
            exact = torch.promote_types(gradient.dtype, torch.float32)  # many places may add to one row
            more = gradient.index_select(0, shared).to(exact)
            own = own.to(exact).index_add_(0, index[shared], more).to(gradient.dtype)
        return own if ctx.scale == 1 else own.mul_(ctx.scale), None, None, None, None, None


def _take(line: Tensor, rows: Rows, scale: float = 1.0) -> Tensor:
    """All groups' places (…, W) of a line (N, heads, W)."""
    result: Any = _Take.apply(line.reshape(-1, line.shape[-1]), rows.index, rows.inverse, scale, None, rows.shared)
    return result


def _put_back(places: Tensor, rows: Rows) -> Tensor:
    """The line's rows (N·Q, W) of all groups' places."""
    result: Any = _Take.apply(places, rows.inverse, rows.index, 1.0, rows.empty, None)
    return result
