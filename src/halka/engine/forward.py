"""The pass of every decoder: transformers' own, with attention to the engine's blocks. Faster ones are its twins."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from halka.core import AdaptedModel
from halka.core.routing import Route, resolve
from halka.engine.line import Line
from halka.models import hidden_states, logits
from halka.models.attention.function import use_attention
from halka.models.casting import prepare
from halka.models.layouts import layout_of
from halka.util.transfer import to_device


class TransformersForward:
    """Implements `Forward` by the base as transformers wrote it."""

    def __init__(self, model: AdaptedModel):
        self._model = model
        self._head = f"{layout_of(model.base).head}:"  # what the key of a place there begins with
        self._route: Route | None = None  # of the last line: rows seldom change from one step to the next

    def __call__(self, line: Line) -> Tensor:
        route = self._route_of(line.names)
        base: Any = self._model.base
        ids, last = (torch.tensor(it, dtype=torch.int64, device="cpu") for it in ([line.tokens], line.last))
        ids, last = to_device([ids, last], base.device)
        with torch.inference_mode(), self._model.use(route), use_attention(base):
            inputs = {"input_ids": ids, "position_ids": line.plan.positions[None], **line.plan.inputs}
            hidden = hidden_states(self._model, **inputs)[0]
            hidden = hidden[last.to(hidden.device)]  # a base on several devices has its norm on another perhaps
            if len(line.names) == 1 or not any(key.startswith(self._head) for key, _ in route.edits):
                return logits(self._model, hidden).float()
            with self._model.use(line.names_of_last or None):  # the head's rows are not the line's runs
                return logits(self._model, hidden).float()

    def _route_of(self, names: tuple[str | None, ...]) -> Route:
        if self._model.merged is not None:  # its parts are in the base's weights
            return Route(names)
        adapters = {name: self._model.adapter(name) for name in names if name is not None}
        if self._route is None or self._route.names != names or self._route.adapters != adapters:
            with torch.inference_mode():
                for adapter in adapters.values():
                    prepare(adapter, next(self._model.base.parameters()).dtype)
            route = resolve(names, adapters)
            # the cache has the keys and values of all virtual tokens but those beside a gate
            gated = {role: parts for role, parts in route.virtual.items() if role == "memory.gated"}
            self._route = replace(route, virtual=gated)
        return self._route

    @property
    def intact(self) -> bool:
        return True

    def forget(self) -> None:
        self._route = None

    def close(self) -> None:
        self.forget()
