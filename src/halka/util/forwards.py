"""Other forwards for modules of a base, for as long as a block lasts."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn


@contextmanager
def computed_by(forwards: Mapping[nn.Module, Callable[[Tensor], Tensor]]) -> Generator[None]:
    """Within the block these modules compute by these forwards, with their hooks; behind it by their class's own."""
    for module, forward in forwards.items():
        module.forward = forward
    try:
        yield
    finally:
        for module in forwards:
            del module.forward


def with_own_forward(base: nn.Module) -> Iterator[nn.Module]:
    """The modules whose forward is their class's: none that somebody else, such as accelerate, has given another."""
    return (module for module in base.modules() if "forward" not in vars(module))
