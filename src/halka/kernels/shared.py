"""`Shared`: one memory, seen as torch's tensor and as the kernels' array."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor


class Shared(NamedTuple):
    tensor: Tensor
    array: Any

    def rows(self, count: int) -> Shared:
        return Shared(self.tensor[:count], self.array[:count])


def shared(tensor: Tensor) -> Shared:
    return Shared(tensor, array_of(tensor))


def array_of(tensor: Tensor) -> np.ndarray:
    """bf16 is seen as uint16."""
    return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()
