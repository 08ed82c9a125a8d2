"""A forest's attention by grouped products, for CPUs: level by level, without a mask of N × N.

The segments of one depth are gathered into groups of like length: blocks of one segment, or of several short ones with
the same parent, each with its ancestors' keys before its own. Attention alone pads; one `index_select` gathers the
queries of all groups, and one puts the outputs back into the line.

    N tokens of the line   Q query heads   H key/value heads   G = Q/H   W head width
    b blocks of a group   L tokens of the longest block   S ancestors' tokens   P virtual ones   K = P+S+L keys
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from halka.core import Forest
from halka.models.attention.forest import ForestPlan, Visibility

LARGE = 2**16  # L·K from which torch's fused attention is used, so that no scores are kept
OVERHEAD = 2**13  # scores (of one head) that take the time of one more group's calls
OVERHEAD_OF_KEY = 16  # scores that take the time of gathering one more key (both measured on two cores)


@dataclass(frozen=True, eq=False)
class Group:
    """Blocks of segments of one depth; those of a block have the same parent, or are roots of the same run.

    tokens   (b, L) the places in the line of each block's tokens, -1 behind the last
    path     (b, S) the places of its ancestors' tokens, root first, -1 behind the last
    run      (b,) the number of its run
    single   every block is one segment
    """

    tokens: Tensor
    path: Tensor
    run: Tensor
    single: bool

    def bias(self, visibility: Visibility, virtual: tuple[int, int], dtype: torch.dtype) -> Tensor:
        """(b, 1, L, K), or (1, 1, L, K) for all: what is added to scores, 0 where a token sees a key."""
        runs, length = virtual
        front = torch.arange(length, device=self.tokens.device).expand(len(self.tokens), -1)
        front = front + self.run[:, None] * length if runs > 1 else front
        own = torch.cat([self.path, self.tokens], dim=1)
        keys = torch.cat([front, torch.where(own < 0, -1, own + runs * length)], dim=1)[:, None]
        seen = visibility.sees(self.tokens.clamp(min=0)[:, :, None], keys.clamp(min=0)) & (keys >= 0)
        seen = seen[:1] if (seen == seen[:1]).all() else seen
        bias = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
        return bias.masked_fill_(~seen, torch.finfo(dtype).min / 2)[:, None]  # finite: an empty place sees nothing


@dataclass(frozen=True, eq=False)
class Rows:
    """Which rows (N·heads, W) of the line fill the places of all groups; for `_Take`.

    index     the row of each place; an empty place has the first
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
    def of_queries(cls, groups: Sequence[Group], tokens: int, heads: int, kv_heads: int) -> Rows:
        """In a group (H, b, G, L)."""
        return cls._of([(group.tokens, 0) for group in groups], tokens, heads, kv_heads)

    @classmethod
    def of_keys(cls, groups: Sequence[Group], tokens: int, kv_heads: int) -> Rows:
        """In a group (H, b, S+L)."""
        places = [(torch.cat([group.path, group.tokens], dim=1), group.path.shape[1]) for group in groups]
        return cls._of(places, tokens, kv_heads, kv_heads)

    @classmethod
    def _of(cls, groups: Sequence[tuple[Tensor, int]], tokens: int, heads: int, kv_heads: int) -> Rows:
        head = torch.arange(heads, device=groups[0][0].device).view(kv_heads, 1, -1, 1)
        parts, shared = [], []
        for places, of_path in groups:
            token = places[None, :, None]
            rows = torch.where(token < 0, -1, token * heads + head)
            parts.append(rows.flatten())
            shared.append((torch.arange(places.shape[1], device=places.device) < of_path).expand_as(rows).flatten())
        index, is_shared = torch.cat(parts), torch.cat(shared)
        own = ((index >= 0) & ~is_shared).nonzero()[:, 0]
        inverse = torch.empty(tokens * heads, dtype=torch.int64, device=index.device)
        inverse[index[own]] = own
        empty, shared_places = (index < 0).nonzero()[:, 0], (is_shared & (index >= 0)).nonzero()[:, 0]
        return cls(index.clamp(min=0), inverse, empty, shared_places, tuple(len(part) for part in parts))


def attend_by_products(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    plan: ForestPlan,
    scale: float,
    dropout: float = 0.0,
    softcap: float | None = None,
    window: int | None = None,
    virtual: tuple[Tensor, Tensor] | None = None,
    valid: Tensor | None = None,
) -> Tensor:
    """Attention (N, Q, W) of query (N, Q, W) over key, value (N, H, W).

    virtual: keys and values (R, H, P, W) of virtual tokens for R runs, or one for all; valid (R, P), None if all are.
    """
    (tokens, heads, _), (kv_heads, width) = query.shape, value.shape[1:]
    groups = plan.kept("groups", lambda: tuple(groups_of(plan.forest, plan.device)))
    of_queries = plan.kept(("queries", heads, kv_heads), lambda: Rows.of_queries(groups, tokens, heads, kv_heads))
    of_keys = plan.kept(("keys", kv_heads), lambda: Rows.of_keys(groups, tokens, kv_heads))
    shape = (1, 0) if virtual is None else (virtual[0].shape[0], virtual[0].shape[2])
    visibility = plan.visibility(window, shape, valid)
    queries = _take(query, of_queries).split(of_queries.sizes)
    keys, values = (_take(line, of_keys).split(of_keys.sizes) for line in (key, value))
    outputs = []
    for group, q, k, v in zip(groups, queries, keys, values, strict=True):
        blocks, length = group.tokens.shape
        q = q.view(kv_heads, blocks, heads // kv_heads, length, -1)
        k, v = (part.view(kv_heads, blocks, -1, part.shape[-1]) for part in (k, v))
        if virtual is not None:
            k, v = (torch.cat([_of_blocks(virtual[side], group), part], 2) for side, part in enumerate((k, v)))
        causal = group.single and window is None and k.shape[2] == length
        bias = plan.kept((id(group), id(visibility), q.dtype), partial(group.bias, visibility, shape, q.dtype))
        if length * k.shape[2] <= LARGE or softcap is not None:
            output: Any = _Products.apply(q, k, v, bias, scale, dropout, softcap)
        else:
            output = _fused(q, k, v, None if causal else bias, scale, dropout)
        outputs.append(output.reshape(-1, width))
    return _put_back(torch.cat(outputs), of_queries).view(tokens, heads, width)


def _of_blocks(virtual: Tensor, group: Group) -> Tensor:
    """(H, b, P, W): the virtual tokens' keys or values (R, H, P, W) for each block's run."""
    of_heads = virtual.transpose(0, 1)
    return of_heads.expand(-1, len(group.run), -1, -1) if len(virtual) == 1 else of_heads.index_select(1, group.run)


# ── one group ───────────────────────────────────────────────────────────────────────────────────────────────────────


class _Products(torch.autograd.Function):
    """softmax(query @ keyᵀ · scale + bias) @ value, keeping nothing of the scores' size but the probabilities.

    query (H, b, G, L, W)   key, value (H, b, K, W)   bias (1 or b, 1, L, K)   result as query
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        bias: Tensor,
        scale: float,
        dropout: float,
        softcap: float | None,
    ) -> Tensor:
        heads, blocks, groups, length, _ = query.shape
        q, k, v = (tensor.reshape(heads * blocks, -1, tensor.shape[-1]) for tensor in (query * scale, key, value))
        scores = torch.bmm(q, k.transpose(1, 2))  # H·b G·L K; `@` would copy what is transposed
        capped = None
        if softcap is not None:
            capped = scores.div_(softcap).tanh_()
            scores = capped * softcap
        scores.view(heads, blocks, groups, length, -1).add_(bias)
        probabilities = torch.softmax(scores, -1, out=scores)
        kept = None
        if dropout:
            kept = torch.empty_like(scores).bernoulli_(1 - dropout).div_(1 - dropout)
        ctx.save_for_backward(q, k, v, probabilities, capped, kept)
        ctx.scale, ctx.shapes = scale, (query.shape, key.shape, value.shape)
        output = torch.bmm(probabilities if kept is None else probabilities * kept, v)
        return output.view(*query.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, probabilities, capped, kept = ctx.saved_tensors
        gradient = gradient.reshape(*q.shape[:-1], -1)
        dropped = probabilities if kept is None else probabilities * kept
        d_v = torch.bmm(dropped.transpose(1, 2), gradient)
        scores = torch.bmm(gradient, v.transpose(1, 2))
        if kept is not None:
            scores.mul_(kept)
        torch.ops.aten._softmax_backward_data.out(scores, probabilities, -1, scores.dtype, grad_input=scores)
        if capped is not None:
            scores.mul_(1 - capped.square())
        d_q, d_k = torch.bmm(scores, k).mul_(ctx.scale), torch.bmm(scores.transpose(1, 2), q)
        gradients = (part.view(shape) for part, shape in zip((d_q, d_k, d_v), ctx.shapes, strict=True))
        return *gradients, None, None, None, None


def _fused(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, scale: float, dropout: float) -> Tensor:
    """The same by torch's fused attention; causal without a bias."""
    blocks = query.shape[1]
    rows = query.transpose(0, 1).flatten(1, 2)
    mask = None if bias is None else bias.expand(blocks, -1, -1, -1)
    k, v = key.transpose(0, 1), value.transpose(0, 1)
    grouped = query.shape[2] > 1
    output = F.scaled_dot_product_attention(rows, k, v, mask, dropout, mask is None, scale=scale, enable_gqa=grouped)
    return output.unflatten(1, (-1, query.shape[2])).transpose(0, 1)


# ── rows ────────────────────────────────────────────────────────────────────────────────────────────────────────────


class _Take(torch.autograd.Function):
    """rows[index], with the gradient read by the inverse: autograd's own adds row by row, some ten times as slow.

    empty: places of the result whose gradient is 0. shared: places whose gradient is added to their rows' own.
    """

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, index: Tensor, inverse: Tensor, empty: Tensor | None, shared: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(index, inverse, empty, shared)
        return rows.index_select(0, index)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:
        index, inverse, empty, shared = ctx.saved_tensors
        own = gradient.index_select(0, inverse)
        if empty is not None:
            own.index_fill_(0, empty, 0)
        if shared is not None and len(shared):
            exact = torch.promote_types(gradient.dtype, torch.float32)  # many places may add to one row
            more = gradient.index_select(0, shared).to(exact)
            own = own.to(exact).index_add_(0, index[shared], more).to(gradient.dtype)
        return own, None, None, None, None


def _take(line: Tensor, rows: Rows) -> Tensor:
    """All groups' places (…, W) of a line (N, heads, W)."""
    return _Take.apply(line.reshape(-1, line.shape[-1]), rows.index, rows.inverse, None, rows.shared)  # type: ignore[return-value]


def _put_back(places: Tensor, rows: Rows) -> Tensor:
    """The line's rows (N·Q, W) of all groups' places."""
    return _Take.apply(places, rows.inverse, rows.index, rows.empty, None)  # type: ignore[return-value]


# ── groups ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def groups_of(forest: Forest, device: torch.device | str = "cpu") -> Iterator[Group]:
    """Every segment in one group; those of one depth share a group where padding costs less than a group's calls."""
    depths = forest.depths
    for depth in range(max(depths) + 1):
        level = [segment for segment, at in enumerate(depths) if at == depth]
        for blocks in _of_like_length(forest, sorted(level, key=lambda segment: forest.lengths[segment])):
            yield _group(forest, blocks, device)


def _of_like_length(forest: Forest, segments: list[int]) -> Iterator[list[list[int]]]:
    """The blocks of each group, of segments from short to long, cut where two groups cost less than one."""
    cost, blocks = _cheapest(forest, segments)
    cuts = sorted({len(segments) * eighth // 8 for eighth in range(1, 8)} - {0})
    costs = [
        (2 * OVERHEAD + _cheapest(forest, segments[:cut])[0] + _cheapest(forest, segments[cut:])[0], cut)
        for cut in cuts
    ]
    if costs and min(costs)[0] < OVERHEAD + cost:
        cut = min(costs)[1]
        yield from _of_like_length(forest, segments[:cut])
        yield from _of_like_length(forest, segments[cut:])
    else:
        yield blocks


def _cheapest(forest: Forest, segments: list[int]) -> tuple[int, list[list[int]]]:
    """The cost of segments of one depth, and their blocks: of as many tokens as the longest has, or 2, 4, 8 … times."""
    families: dict[tuple[int, int], list[int]] = {}
    for segment in segments:
        families.setdefault((forest.parents[segment], forest.run_of_segment[segment]), []).append(segment)
    tokens = max(forest.lengths[segment] for segment in segments)
    ways = []
    while True:
        blocks = [block for family in families.values() for block in _filled(forest, family, tokens)]
        longest = max(sum(forest.lengths[segment] for segment in block) for block in blocks)
        keys = longest + max(forest.offsets[block[0]] for block in blocks)
        ways.append((len(blocks) * keys * (longest + OVERHEAD_OF_KEY), blocks))
        if len(blocks) == len(families):
            return min(ways, key=lambda way: way[0])
        tokens *= 2


def _filled(forest: Forest, family: list[int], tokens: int) -> list[list[int]]:
    """Siblings in blocks of so many tokens at most."""
    blocks: list[list[int]] = []
    free = 0
    for segment in family:
        if forest.lengths[segment] > free:
            blocks.append([])
            free = tokens
        blocks[-1].append(segment)
        free -= forest.lengths[segment]
    return blocks


def _group(forest: Forest, blocks: list[list[int]], device: torch.device | str) -> Group:
    def places(segments: Sequence[int]) -> Tensor:
        spans = [torch.arange(forest.lengths[segment]) + forest.starts[segment] for segment in segments]
        return torch.cat(spans) if spans else torch.empty(0, dtype=torch.int64)

    def table(rows: list[Tensor]) -> Tensor:
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-1).to(device)

    return Group(
        tokens=table([places(block) for block in blocks]),
        path=table([places(forest.ancestors(block[0])) for block in blocks]),
        run=torch.tensor([forest.run_of_segment[block[0]] for block in blocks], device=device),
        single=all(len(block) == 1 for block in blocks),
    )
