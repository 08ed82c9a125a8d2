"""`GatherPlan`: a line's tokens into the places of groups (`forest_groups.py`) and back, and the gradients of both.

N tokens of the line   H key/value heads   G query heads for each   W head width
b blocks of a group   L tokens of the longest block   S ancestors' tokens
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from halka.models.attention.forest_groups import Group
from halka.util.transfer import to_device


@dataclass(frozen=True, eq=False)
class GatherPlan:
    """Which rows (N·heads, W) of the line fill the places of all groups.

    index       the row of each place; an empty place has its block's first, so that no block reads another run's values
    inverse     the place of each row, of those where it is no ancestor's
    empty       the empty places
    ancestors   the places of ancestors' rows
    shared      these rows, each of which may be in many of the places
    sizes       how many places each group has
    """

    index: Tensor
    inverse: Tensor
    empty: Tensor
    ancestors: Tensor
    shared: Tensor
    sizes: tuple[int, ...]

    @classmethod
    def of(
        cls, groups: Sequence[Group], tokens: int, heads: int, kv_heads: int, *, ancestors: bool = False
    ) -> GatherPlan:
        """Of groups' own tokens, in (H, b, G, L), or with their ancestors', in (H, b, 1, S+L); on the CPU."""
        head = torch.arange(heads, device="cpu").view(kv_heads, 1, -1, 1)
        parts, filled, in_path = [], [], []
        for group in groups:
            places, of_path = (group.keys, group.path.shape[1]) if ancestors else (group.tokens, 0)
            token = places[None, :, None]
            rows = torch.where(token < 0, -1, token * heads + head)
            parts.append(rows.flatten())
            filled.append(torch.where(token < 0, places[None, :, None, of_path, None] * heads + head, rows).flatten())
            in_path.append((torch.arange(places.shape[1], device="cpu") < of_path).expand_as(rows).flatten())
        index, of_ancestor = torch.cat(parts), torch.cat(in_path)
        own, empty = ((index >= 0) & ~of_ancestor).nonzero()[:, 0], (index < 0).nonzero()[:, 0]
        inverse = torch.empty(tokens * heads, dtype=torch.int64, device="cpu")
        inverse[index[own]] = own
        above = (of_ancestor & (index >= 0)).nonzero()[:, 0]
        return cls(torch.cat(filled), inverse, empty, above, index[above], tuple(len(part) for part in parts))

    def on_device(self, device: torch.device) -> GatherPlan:
        """The plan with its tensors on a device, to which they go in one copy."""
        tensors = (self.index, self.inverse, self.empty, self.ancestors, self.shared)
        index, inverse, empty, ancestors, shared = to_device(tensors, device)
        return GatherPlan(index, inverse, empty, ancestors, shared, self.sizes)

    def take(self, line: Tensor) -> Tensor:
        """All groups' places (…, W) of a line (N, heads, W)."""
        return line.reshape(-1, line.shape[-1]).index_select(0, self.index)

    def gradient_of_take(self, places: Tensor) -> Tensor:
        """The line's rows of a gradient of all places: an ancestor's are added up, an empty place has none.

        Read by the inverse: to add row by row, as autograd does, takes ten times as long.
        """
        own = places.index_select(0, self.inverse)
        if len(self.ancestors) == 0:
            return own
        exact = torch.promote_types(places.dtype, torch.float32)
        more = places.index_select(0, self.ancestors).to(exact)
        return own.to(exact).index_add_(0, self.shared, more).to(places.dtype)

    def put_back(self, places: Tensor) -> Tensor:
        """The line's rows (N·heads, W) of all places, without ancestors'."""
        return places.index_select(0, self.inverse)

    def gradient_of_put_back(self, line: Tensor) -> Tensor:
        """All places of the gradient of a line (N, heads, W); 0 in the empty ones."""
        return self.take(line).index_fill_(0, self.empty, 0)
