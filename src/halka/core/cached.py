"""`Cached`: what is made from parameters, kept until one of them changes."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import ClassVar, Generic, TypeVar

import torch
from torch import Tensor, nn

T = TypeVar("T")


class Changes:
    """How often a backward pass or a load reached a watched parameter: what was made from any is made anew.

    Fused optimisers change values without counting their version up, but never without a gradient.
    """

    count: ClassVar[int] = 0

    @classmethod
    def happened(cls, *_: object) -> None:
        cls.count += 1

    @classmethod
    def watch(cls, parameters: Iterable[nn.Parameter]) -> None:
        """Count the gradients that these receive."""
        for parameter in parameters:
            if parameter.is_leaf and parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(cls.happened)


class Cached(Generic[T]):
    """A value that is made from parameters: made anew in every pass that is differentiated, and once a change else."""

    def __init__(self) -> None:
        self._kept: tuple[object, T] | None = None
        self._versions: object = None

    def clear(self) -> None:
        """Let go of the value."""
        self._kept = None

    def get(self, parameters: Sequence[Tensor], make: Callable[[], T], *key: Hashable, look: bool = True) -> T:
        """The value of `make()`, which depends on `parameters` and, besides, on `key`.

        look: whether to see values that were written into a parameter by hand, which takes a look at each of them.
        Nothing is kept while a parameter has a gradient, which an optimiser may use at any time.
        """
        differentiated = torch.is_grad_enabled() and any(parameter.requires_grad for parameter in parameters)
        if differentiated or torch.compiler.is_compiling():  # a compiled graph makes it in every pass
            self._kept = None
            return make()
        if look:
            self._versions = tuple((parameter.data_ptr(), parameter._version) for parameter in parameters)
        state = (Changes.count, self._versions, torch.is_inference_mode_enabled(), key)
        if self._kept is not None and self._kept[0] == state:
            return self._kept[1]
        value = make()
        changing = any(parameter.is_leaf and parameter.grad is not None for parameter in parameters)
        self._kept = None if changing else (state, value)
        return value
