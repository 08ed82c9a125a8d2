"""Linear layers that read the same input as one matrix: their parameters become views of it, and no weight is twice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


class FusedLinears:
    """The weights, and biases, of several linear layers one below the other, until `undo`.

    The layers' parameters stay the objects that they were, with the values that they had: whoever reads, saves or
    swaps them sees no difference.
    """

    def __init__(self, layers: Sequence[nn.Linear]):
        """Layers of one input width and precision, all with a bias or none."""
        self.widths = [layer.out_features for layer in layers]
        self._parameters: list[tuple[nn.Module, str, Any, Tensor]] = []
        self.weight = self._fuse(layers, "weight")
        self.bias = None if layers[0]._parameters["bias"] is None else self._fuse(layers, "bias")
        self._addresses = [view.data_ptr() for *_, view in self._parameters]

    def _fuse(self, layers: Sequence[nn.Linear], key: str) -> Tensor:
        parameters: list[Any] = [layer._parameters[key] for layer in layers]
        if len(parameters) == 1:
            whole = parameters[0].data
            self._parameters.append((layers[0], key, parameters[0], whole))
            return whole
        with torch.inference_mode(False):
            whole = torch.cat([parameter.data for parameter in parameters])
            for layer, parameter, view in zip(layers, parameters, whole.split(self.widths), strict=True):
                parameter.data = view
                self._parameters.append((layer, key, parameter, view))
        return whole

    def undo(self) -> None:
        """Let each parameter own its storage again, if it is still a part of this matrix."""
        for (_, _, parameter, _), address in zip(self._parameters, self._addresses, strict=True):
            if (
                parameter.data_ptr() == address
                and parameter.numel() != parameter.untyped_storage().nbytes() // parameter.itemsize
            ):
                with torch.inference_mode(False):
                    parameter.data = parameter.data.clone()
