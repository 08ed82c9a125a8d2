"""How parameters begin, unless values that are there already take their place at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

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


def begun(tensor: Tensor, fill: Callable[..., Any], **options: Any) -> nn.Parameter:
    """A parameter that begins with what `fill(tensor, **options)` puts into the tensor."""
    if not _blank.get():
        fill(tensor, **options)
    return nn.Parameter(tensor)
