"""The pass of every decoder: transformers' own, with attention to the engine's blocks. Faster ones are its twins."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from halka.core import AdaptedModel, Adapter
from halka.core.routing import Route, resolve
from halka.engine.line import Line
from halka.models import hidden_states, logits
from halka.models.attention.function import use_attention
from halka.models.casting import prepare
from halka.models.float32_products import float32_products
from halka.models.layouts import layout_of
from halka.models.rotary import long_text, longrope_start
from halka.util.float32_linear import FEWEST
from halka.util.transfer import to_device


class TransformersForward:
    """Implements `Forward` by the base as transformers wrote it."""

    def __init__(self, model: AdaptedModel):
        self._model = model
        self._head = f"{layout_of(model.base).head}:"  # what the key of a place there begins with
        self._route: Route | None = None  # of the lines before
        self._longrope_start = longrope_start(model.base)

    def __call__(self, line: Line) -> Tensor:
        route = self._route_of(line.names)
        plan = line.plan if route.names == line.names else line.plan.with_runs(_runs(route.names, line))
        base: Any = self._model.base
        ids, last = (torch.tensor(it, dtype=torch.int64, device="cpu") for it in ([line.tokens], line.last))
        ids, last = to_device([ids, last], base.device)
        long = nullcontext() if self._longrope_start is None or not line.long else long_text(base, self._longrope_start)
        with (
            torch.inference_mode(),
            self._model.use(route),
            use_attention(base),
            float32_products(base) if len(line.tokens) >= FEWEST else nullcontext(),  # fewer stay as they are
            long,
        ):
            inputs = {"input_ids": ids, "position_ids": plan.positions[None], **plan.inputs}
            hidden = hidden_states(self._model, **inputs)[0]
            hidden = hidden[last.to(hidden.device)]  # a base on several devices has its norm on another perhaps
            if len(route.names) == 1 or not any(key.startswith(self._head) for key, _ in route.edits):
                return logits(self._model, hidden).float()
            with self._model.use(line.names_of_last or None):  # the head's rows are not the line's runs
                return logits(self._model, hidden).float()

    def _route_of(self, names: tuple[str | None, ...]) -> Route:
        """A route of these adapters, and perhaps of others, whose runs are empty.

        It stays, with all that was made for it, while rows join and leave that use adapters of the lines before. With a
        pool it does not, which would have to keep adapters that no row uses.
        """
        if self._model.merged is not None:  # its parts are in the base's weights
            return Route(names)
        if self._route is None or not self._covers(self._route, names):
            adapters = {name: self._model.adapter(name) for name in names if name is not None}
            with torch.inference_mode():
                for adapter in adapters.values():
                    prepare(adapter, next(self._model.base.parameters()).dtype)
            route = resolve(names, adapters)
            # the cache has the keys and values of all virtual tokens but those beside a gate
            gated = {role: parts for role, parts in route.virtual.items() if role == "memory.gated"}
            self._route = replace(route, virtual=gated)
        return self._route

    def _covers(self, route: Route, names: tuple[str | None, ...]) -> bool:
        """Whether these names, each once, are half or more of the route's, in its order, and all of these are here."""
        if any(self._model.adapters.get(name) is not adapter for name, adapter in route.adapters.items()):
            return False
        if route.names == names:
            return True
        here = {*names}
        in_order = len(here) == len(names) and tuple(name for name in route.names if name in here) == names
        kept = len(route.names) <= 2 * len(names) and not route.virtual  # gates of nobody cost a pass a step
        return in_order and kept and self._model.pool is None

    @property
    def intact(self) -> bool:
        return True

    def bytes_of(self, adapter: Adapter) -> int:
        return 0

    def forget(self) -> None:
        self._route = None

    def close(self) -> None:
        self.forget()


def _runs(kept: tuple[str | None, ...], line: Line) -> list[int]:
    """The tokens of the line's runs, one for each name that was kept."""
    tokens = dict(zip(line.names, line.plan.runs, strict=True))
    return [tokens.get(name, 0) for name in kept]
