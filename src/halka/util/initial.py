"""Initial values of parameters, which are skipped where those of a file take their place."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from torch import Tensor, nn

_skipping: ContextVar[bool] = ContextVar("_skipping", default=False)


@contextmanager
def skip_init() -> Iterator[None]:
    """Within the block `init_parameter` leaves tensors as they are."""
    token = _skipping.set(True)
    try:
        yield
    finally:
        _skipping.reset(token)


def init_parameter(tensor: Tensor, fill: Callable[[Tensor], object]) -> nn.Parameter:
    """A parameter whose initial value `fill(tensor)` writes into the tensor."""
    if not _skipping.get():
        fill(tensor)
    return nn.Parameter(tensor)
