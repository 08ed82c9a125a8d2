"""Parameters that a step reads by their addresses, and whether the base still computes with them there."""

from __future__ import annotations

import operator
from collections.abc import Iterable

from torch import Tensor, nn


class Watched:
    """Parameters of modules, where they were stored when this was made."""

    def __init__(self, places: Iterable[tuple[nn.Module, str]]):
        """places: modules, and their parameters' names."""
        own = [(module._parameters, name) for module, name in places]
        self._tables, self._names = [table for table, _ in own], [name for _, name in own]
        self._parameters = [table[name] for table, name in own]
        self._addresses = self._stored()

    def _stored(self) -> list[int]:
        return [*map(Tensor.data_ptr, self._parameters)]

    @property
    def intact(self) -> bool:
        """Whether all are where they were: not while others are swapped in, or once the base was moved."""
        own = map(operator.getitem, self._tables, self._names)  # asked at every step: no loop of Python's
        return all(map(operator.is_, own, self._parameters)) and self._stored() == self._addresses
