"""`Cached`: what is made from parameters, kept until one of them changes."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import ClassVar, Generic, TypeVar

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

T = TypeVar("T")


class Changes:
    """How often an optimiser or a load changed values, anywhere: what was made from parameters is made anew.

    Fused optimisers do not count a parameter's version up.
    """

    count: ClassVar[int] = 0
    _watching: ClassVar[bool] = False

    @classmethod
    def happened(cls, *_: object) -> None:
        cls.count += 1

    @classmethod
    def watch(cls) -> None:
        """Count the steps of optimisers from now on: called once there is an adapter."""
        if not cls._watching:
            cls._watching = True
            register_optimizer_step_post_hook(cls.happened)


class Cached(Generic[T]):
    """A value that is made from parameters: made anew in every pass that is differentiated, and once a change else."""

    def __init__(self) -> None:
        self._kept: tuple[object, T] | None = None
        self._versions: object = None

    def get(self, parameters: Sequence[Tensor], make: Callable[[], T], *key: Hashable, look: bool = True) -> T:
        """The value of `make()`, which depends on `parameters` and, besides, on `key`.

        look: whether to see values that were written into a parameter by hand, which takes a look at each of them.
        What is written into `parameter.data` in place, nobody sees.
        """
        differentiated = torch.is_grad_enabled() and any(parameter.requires_grad for parameter in parameters)
        if differentiated or torch.compiler.is_compiling():  # a compiled graph makes it in every pass
            self._kept = None
            return make()
        if look:
            self._versions = tuple((parameter.data_ptr(), parameter._version) for parameter in parameters)
        state = (Changes.count, self._versions, torch.is_inference_mode_enabled(), key)
        if self._kept is None or self._kept[0] != state:
            self._kept = (state, make())
        return self._kept[1]
