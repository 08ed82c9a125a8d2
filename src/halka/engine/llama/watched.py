"""Weights that a step reads by their addresses, and whether they are still there.

A look at all of them would take as long as a layer's products: after a step nothing of theirs is in the processor's
caches. Whatever moves a base moves all of them, so each look is at some.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from itertools import cycle
from typing import Any

from torch import Tensor, nn

LOOKS = 8  # in so many looks each parameter is seen once


class Watched:
    """Tensors of modules, where they were stored when this was made."""

    def __init__(self, places: Iterable[tuple[nn.Module, str]]):
        """places: modules, and the names of their parameters or buffers."""
        own = [(m._parameters if m._parameters.get(name) is not None else m._buffers, name) for m, name in places]
        self._shares = [Share(own[first::LOOKS]) for first in range(min(LOOKS, len(own)))]
        self._turns = cycle(self._shares)

    def intact(self) -> bool:
        """Whether the next share of them is where it was: not once the base was moved, or given others."""
        return next(self._turns).intact()

    def all_intact(self) -> bool:
        """Whether all of them are where they were."""
        return all(share.intact() for share in self._shares)


class Share:
    def __init__(self, own: Sequence[tuple[dict[str, Any], str]]):
        self._tables, self._names = zip(*own, strict=True)
        self._tensors = [table[name] for table, name in own]
        self._addresses = self._stored()

    def _stored(self) -> list[int]:
        return [*map(Tensor.data_ptr, self._tensors)]

    def intact(self) -> bool:
        own = map(operator.getitem, self._tables, self._names)
        return all(map(operator.is_, own, self._tensors)) and self._stored() == self._addresses
