"""`LlamaForward`: the pass of Llama's kind of decoder on a CPU, with its adapters.

`TransformersForward` is its slow twin, and computes the lines that this one cannot: with parts at other places than a
layer's linear layers and sublayers, with tokens beside a gate, with a full copy of the weights or an adapter merged.
"""

from __future__ import annotations

import logging
from threading import Timer

import torch
from torch import Tensor

from halka.core import AdaptedModel, Adapter
from halka.core.routing import Place
from halka.engine.forward import TransformersForward
from halka.engine.line import Forward, Line
from halka.engine.llama.line_adapters import RowAdapters
from halka.engine.llama.open_weights import close_weights, open_weights
from halka.engine.llama.row_adapter import elements_of
from halka.engine.llama.weights import PLACES, obstacle
from halka.kernels import unusable

LOG = logging.getLogger(__name__)
NOTICE_AFTER = 2.0  # seconds after which somebody wants to know what takes so long: kernels from the disk take one


def unsupported(model: AdaptedModel) -> str | None:
    """Why `LlamaForward` cannot compute this model, in words; None if it can."""
    return unusable() or obstacle(model.base)


class LlamaForward:
    """Implements `Forward`. Until all of a base are closed, the linear layers of its layers share their storage."""

    def __init__(self, model: AdaptedModel):
        """`unsupported(model)` must be None."""
        from halka.engine.llama.step import LlamaStep

        self._model, self._twin = model, TransformersForward(model)
        with model.own_weights():
            weights = open_weights(model.base, self)
        self._step: LlamaStep | None = LlamaStep(weights)
        places: dict[Place, tuple[int, int]] = {
            (layer.keys[role], edits): (number, place)
            for number, layer in enumerate(weights.layers)
            for place, (role, edits) in enumerate(PLACES)
        }
        self._dtype = weights.embed.dtype
        self._adapters = RowAdapters(model, places, len(weights.layers), self._dtype)

    def __call__(self, line: Line) -> Tensor:
        step = self._step
        if step is not None and self._model.merged is None and step.watched.intact():
            with torch.inference_mode():
                adapters = self._adapters.of_line(line.names)
                if adapters.misplaced is None:
                    return step(line, adapters)
        return self._twin(line)

    def warm(self) -> None:
        """Compile all kernels: about half a minute, once a machine; from then on they come from the disk."""
        assert self._step is not None
        notice = Timer(NOTICE_AFTER, LOG.warning, ["compiling the engine's kernels, once on this machine ..."])
        notice.daemon = True
        notice.start()
        try:
            self._step.warm()
        finally:
            notice.cancel()

    @property
    def intact(self) -> bool:
        with self._model.own_weights():  # which are aside while an adapter is merged
            return self._step is not None and self._step.watched.all_intact()

    def bytes_of(self, adapter: Adapter) -> int:
        return self._dtype.itemsize * sum(elements_of(part, self._dtype) for part in adapter.parts.values())

    def forget(self) -> None:
        self._adapters.forget()
        self._twin.forget()

    def close(self) -> None:
        self.forget()
        self._twin.close()
        if self._step is not None:
            weights, self._step = self._step.weights, None  # and with the step all that has the matrices
            with self._model.own_weights():
                close_weights(weights, self)


def forward_of(model: AdaptedModel) -> Forward:
    """The fastest pass that this base has: its kernels are compiled once a machine, which takes some seconds."""
    if unsupported(model) is not None:
        return TransformersForward(model)
    forward = LlamaForward(model)
    forward.warm()
    return forward
