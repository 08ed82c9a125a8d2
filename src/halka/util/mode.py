"""Modules in train or eval mode, which decide over dropout, for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def in_mode(training: bool, *modules: nn.Module) -> Iterator[None]:
    """Within the block the modules train or do not; afterwards each is in the mode it was in."""
    switched = [module for module in modules if module.training != training]
    for module in switched:
        module.train(training)
    try:
        yield
    finally:
        for module in switched:
            module.train(not training)
