"""Linear layers that read the same input as one matrix: their parameters become views of it, and no weight is twice.

The matrix is in huge pages, and so is that of a layer alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from halka.models.quantised.int8 import Int8Linear
from halka.util.huge_pages import Arena

TENSORS = ("weight", "values", "scale", "bias")


def tensors_of(layer: nn.Module) -> list[Tensor]:
    """What a linear layer computes with, plain or int8."""
    return [tensor for name in TENSORS if (tensor := getattr(layer, name, None)) is not None]


class FusedLinears:
    """The weights, and biases, of several linear layers one below the other, until `undo`.

    weight  (O, I)
    scale   (O,) fp32, by which the products of an int8 weight are multiplied, or None
    bias    (O,) or None
    places  the modules whose tensors these are, and their names there

    The layers' tensors stay the objects that they were, with the values that they had: whoever reads, saves or swaps
    them sees no difference.
    """

    def __init__(self, layers: Sequence[nn.Linear | Int8Linear], arena: Arena):
        """Layers of one kind, input width and precision, all with a bias or none, and room for their `tensors_of`."""
        quantised = isinstance(layers[0], Int8Linear)
        self.widths = [layer.out_features for layer in layers]
        self.places: list[tuple[nn.Module, str]] = []
        self._views: list[tuple[Tensor, int]] = []
        self.weight = self._fuse(layers, "values" if quantised else "weight", arena)
        self.scale = self._fuse(layers, "scale", arena) if quantised else None
        self.bias = None if layers[0].bias is None else self._fuse(layers, "bias", arena)

    def _fuse(self, layers: Sequence[nn.Module], name: str, arena: Arena) -> Tensor:
        own: list[Tensor] = [getattr(layer, name) for layer in layers]
        self.places += [(layer, name) for layer in layers]
        with torch.inference_mode(False):
            whole = arena.cat([tensor.data for tensor in own])
            for tensor, view in zip(own, whole.split(self.widths), strict=True):
                tensor.data = view
                self._views.append((tensor, view.data_ptr()))
        return whole

    def undo(self) -> None:
        """Let each tensor own its storage again, if it is still a part of this matrix."""
        for tensor, address in self._views:
            if tensor.data_ptr() == address:
                with torch.inference_mode(False):
                    tensor.data = tensor.data.clone()
