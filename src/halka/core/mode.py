"""A module in train or eval mode, which decide over dropout, for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def in_mode(module: nn.Module, training: bool) -> Iterator[None]:
    """Within the block the module trains or does not; afterwards it is in the mode it was in."""
    was = module.training
    if was != training:
        module.train(training)
    try:
        yield
    finally:
        if was != training:
            module.train(was)
