"""Where parts act: hooks at exactly the modules where some adapter has a part."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from halka.core.compiled import see_hooks
from halka.core.experts import ExpertEdit
from halka.core.parts import VIRTUAL_ROLES, Target
from halka.core.routing import Route


class Hooks:
    """A base without adapters has none of these."""

    def __init__(self, modules: Mapping[str, nn.Module], acting: Callable[[], Route | None]):
        """modules: the base's, by path. acting: the route of the pass that a hook is called in."""
        self._by_path = modules
        self._acting = acting
        self._inputs: dict[str, Tensor] = {}  # what a sublayer received, from its source to its output
        self._parts_at: Counter[str] = Counter()  # how many there are, by their target's key
        self._hooks: dict[str, list[torch.utils.hooks.RemovableHandle]] = {}

    def add(self, targets: Iterable[Target]) -> None:
        """There is one more part at each of these."""
        see_hooks()
        for target in targets:
            if not self._parts_at[target.key]:
                self._hooks[target.key] = self._hook(target.key, target)
            self._parts_at[target.key] += 1

    def remove(self, targets: Iterable[Target]) -> None:
        """There is one part less at each of these."""
        for target in targets:
            self._parts_at[target.key] -= 1
            if not self._parts_at[target.key]:
                for handle in self._hooks.pop(target.key):
                    handle.remove()

    def forget(self) -> None:
        """Drop what a pass that ended early has left."""
        self._inputs.clear()

    def _hook(self, key: str, target: Target) -> list[torch.utils.hooks.RemovableHandle]:
        if target.role in (*VIRTUAL_ROLES, "base"):  # these act where a pass begins
            return []

        def as_rows(tensor: Tensor, route: Route) -> Tensor:
            return tensor.unflatten(0, (len(route.names), -1)) if target.flat else tensor

        def as_it_was(tensor: Tensor) -> Tensor:
            return tensor.flatten(0, 1) if target.flat else tensor

        def before(module: nn.Module, args: tuple) -> tuple | None:
            route = self._acting()
            if route is None or key not in route.reading:
                return None
            return (as_it_was(route.before(key, as_rows(args[0], route))), *args[1:])

        def after(module: nn.Module, args: tuple, y: Tensor) -> Tensor | None:
            route = self._acting()
            if route is None or key not in route.writing:
                return None
            x = args[0] if target.source is None else self._inputs.pop(key)
            return as_it_was(route.after(key, as_rows(x, route), as_rows(y, route)))

        def give(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
            route = self._acting()
            if route is None or not (key in route.reading or key in route.writing):
                return None
            edit = ExpertEdit(route.names, route.reading.get(key, ()), route.writing.get(key, ()))
            return args, {**kwargs, target.role.rpartition(".")[2]: edit}

        def remember(module: nn.Module, args: tuple) -> None:
            route = self._acting()
            if route is not None and key in route.writing:
                self._inputs[key] = args[0]

        if target.stack:
            return [target.module.register_forward_pre_hook(give, with_kwargs=True)]
        if target.source is None:
            return [
                target.module.register_forward_pre_hook(before),
                target.module.register_forward_hook(after),
            ]
        source = self._by_path[target.source]
        return [source.register_forward_pre_hook(remember), target.module.register_forward_hook(after)]
