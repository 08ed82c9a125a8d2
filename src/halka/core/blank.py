"""How parameters begin, unless values that are there already take their place at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from torch import Tensor, nn

_blank: ContextVar[bool] = ContextVar("blank", default=False)


@contextmanager
def without_starts() -> Iterator[None]:
    """Within the block `begun` leaves its tensors as they are: a random start takes longer than reading a file."""
    token = _blank.set(True)
    try:
        yield
    finally:
        _blank.reset(token)


def begun(tensor: Tensor, fill: Callable[[Tensor], object]) -> nn.Parameter:
    """A parameter whose start `fill(tensor)` writes into the tensor."""
    if not _blank.get():
        fill(tensor)
    return nn.Parameter(tensor)
