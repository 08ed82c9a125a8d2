"""A forest's segments in groups, for grouped products: level by level, without a mask of N × N.

The segments of one depth are gathered into groups of like length: blocks of one segment, or of several short ones with
the same parent, each with its ancestors' keys before its own. Attention alone pads.

    b blocks of a group   L tokens of the longest block   S ancestors' tokens   P virtual ones   K = P+S+L keys
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from halka.models.attention.forest import Visibility
from halka.util.forest import Forest
from halka.util.transfer import to_device

OVERHEAD = 2**13  # scores (of one head) that take the time of one more group's calls
OVERHEAD_OF_KEY = 16  # scores that take the time of gathering one more key (both measured on two cores)


@dataclass(frozen=True, eq=False)
class Group:
    """Blocks of segments of one depth; those of a block have the same parent, or are roots of the same run.

    tokens   (b, L) the places in the line of each block's tokens, -1 behind the last
    path     (b, S) the places of its ancestors' tokens, root first, -1 behind the last
    run      (b,) the number of its run
    """

    tokens: Tensor
    path: Tensor
    run: Tensor

    @cached_property
    def keys(self) -> Tensor:
        """(b, S+L) the places of the ancestors' tokens and of the blocks' own."""
        return torch.cat([self.path, self.tokens], dim=1)

    def of_runs(self, rows: Tensor) -> Tensor:
        """(b, …): for each block its run's row, of a row for each run, or of one for all."""
        blocks = len(self.run)
        return rows.expand(blocks, *rows.shape[1:]) if len(rows) == 1 else rows.index_select(0, self.run)

    def bias(
        self,
        visibility: Visibility,
        dtype: torch.dtype,
        blocks: slice = slice(None),
        rows: slice = slice(None),
        keys: slice = slice(None),
    ) -> Tensor:
        """(b, 1, L, K), or (1, 1, L, K) for all, or a part: what is added to scores, 0 where a token sees a key."""
        runs, length = visibility.virtual
        first = self.run[:, None] * length if runs > 1 else 0
        front = (torch.arange(length, device=self.run.device) + first).expand(len(self.run), -1)
        own = torch.where(self.keys < 0, -1, self.keys + runs * length)
        key = torch.cat([front, own], dim=1)[blocks, None, keys]
        token = self.tokens[blocks, rows, None]
        seen = visibility.sees(token.clamp(min=0), key.clamp(min=0)) & (key >= 0)
        if seen.device.type == "cpu" and (seen == seen[:1]).all():  # elsewhere the host would wait to know
            seen = seen[:1]
        bias = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
        return bias.masked_fill_(~seen, torch.finfo(dtype).min / 2)[:, None]  # finite: an empty place sees nothing


def groups_of(forest: Forest) -> Iterator[Group]:
    """Every segment in one group; those of one depth share a group where padding costs less than a group's calls."""
    levels: dict[int, list[int]] = {}  # by the number of ancestors
    for segment in range(len(forest.lengths)):
        levels.setdefault(len(forest.ancestors(segment)), []).append(segment)
    for level in levels.values():
        for blocks in _of_like_length(forest, sorted(level, key=lambda segment: forest.lengths[segment])):
            yield _group(forest, blocks)


def groups_on(device: torch.device | str, groups: Sequence[Group]) -> tuple[Group, ...]:
    """Groups with their tensors on a device, to which they go in one copy."""
    tensors = to_device([tensor for group in groups for tensor in (group.tokens, group.path, group.run)], device)
    return tuple(Group(*tensors[at : at + 3]) for at in range(0, len(tensors), 3))


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


def _group(forest: Forest, blocks: list[list[int]]) -> Group:
    def places(segments: Sequence[int]) -> Tensor:
        spans = [torch.arange(forest.lengths[segment], device="cpu") + forest.starts[segment] for segment in segments]
        return torch.cat(spans) if spans else torch.empty(0, dtype=torch.int64, device="cpu")

    def table(rows: list[Tensor]) -> Tensor:
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-1)

    return Group(
        tokens=table([places(block) for block in blocks]),
        path=table([places(forest.ancestors(block[0])) for block in blocks]),
        run=torch.tensor([forest.run_of_segment[block[0]] for block in blocks], device="cpu"),
    )
