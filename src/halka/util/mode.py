"""Modules in train or eval mode, which decide over dropout, for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def in_mode(training: bool, *modules: nn.Module) -> Iterator[None]:
    """Within the block the modules train or do not; afterwards they and their parts are in the modes that they had."""
    switched = [module for module in modules if module.training != training]
    modes = [(part, part.training) for module in switched for part in module.modules()]
    for module in switched:
        module.train(training)
    try:
        yield
    finally:
        for module in switched:
            module.train(not training)
        for part, mode in modes:  # what its owner has put in another mode than the module around it
            part.training = mode
