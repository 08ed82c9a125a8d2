"""`Cached`: what is made from parameters, kept until one of them changes."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from functools import partial
from typing import ClassVar, Generic, TypeVar
from weakref import ref

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook

T = TypeVar("T")


class Changes:
    """Which parameters of adapters an optimiser or a load changed: what was made from them is made anew.

    Fused optimisers do not count a parameter's version up. One that holds copies, and writes these into an adapter, may
    have changed any.
    """

    count: ClassVar[int] = 0  # of the steps and loads so far
    _of: ClassVar[dict[int, tuple[ref[Tensor], int]]] = {}  # a living adapter's parameters and their last change, by id
    _anywhere: ClassVar[int] = 0  # that count when an optimiser stepped that holds others
    _watching: ClassVar[bool] = False

    @classmethod
    def watch(cls, parameters: Iterable[Tensor]) -> None:
        """These are an adapter's, and new: from now on the steps of optimisers are counted."""
        cls.happened(parameters)
        if not cls._watching:
            cls._watching = True
            register_optimizer_step_post_hook(cls._stepped)

    @classmethod
    def happened(cls, parameters: Iterable[Tensor]) -> None:
        """Values of these changed, which are an adapter's."""
        cls.count += 1
        for parameter in parameters:
            own, _ = cls._of.get(id(parameter), (None, 0))
            if own is None or own() is not parameter:
                own = ref(parameter, partial(cls._forget, id(parameter)))
            cls._of[id(parameter)] = own, cls.count

    @classmethod
    def _forget(cls, number: int, own: ref[Tensor]) -> None:
        """The parameter of that id is gone. Another may have its id by now."""
        if cls._of.get(number, (None, 0))[0] is own:
            del cls._of[number]

    @classmethod
    def _stepped(cls, optimiser: Optimizer, *_: object) -> None:
        parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
        own = (cls._of.get(id(parameter)) for parameter in parameters)
        if all(it is not None and it[0]() is parameter for it, parameter in zip(own, parameters, strict=True)):
            cls.happened(parameters)
        else:
            cls.count += 1
            cls._anywhere = cls.count

    @classmethod
    def state(cls, parameters: Sequence[Tensor]) -> tuple[object, ...]:
        """What is another once one of these has changed, but for what is written into `parameter.data` in place."""
        addresses = [parameter.data_ptr() for parameter in parameters]
        return cls.written(parameters), addresses, [*map(cls._of.get, map(id, parameters))], cls._anywhere

    @staticmethod
    def written(parameters: Sequence[Tensor]) -> list[int]:
        """The part of `state` that tells what was written by hand, at a third of its cost."""
        return [parameter._version for parameter in parameters]


class Cached(Generic[T]):
    """A value that is made from parameters: made anew in every pass that is differentiated, and once a change else."""

    def __init__(self) -> None:
        self._kept: tuple[object, T] | None = None
        self._state: object = None
        self._count = -1

    def get(self, parameters: Sequence[Tensor], make: Callable[[], T], *key: Hashable, look: bool = True) -> T:
        """The value of `make()`, which depends on `parameters` and, besides, on `key`.

        look: whether to see values that were written into a parameter by hand, which takes a look at each of them.
        What is written into `parameter.data` in place, nobody sees.
        """
        differentiated = torch.is_grad_enabled() and any(parameter.requires_grad for parameter in parameters)
        if differentiated or torch.compiler.is_compiling():  # a compiled graph makes it in every pass
            self._kept = None
            return make()
        if look or self._count != Changes.count:
            self._count, self._state = Changes.count, Changes.state(parameters)
        state = (self._state, torch.is_inference_mode_enabled(), key)
        if self._kept is None or self._kept[0] != state:
            self._kept = (state, make())
        return self._kept[1]
