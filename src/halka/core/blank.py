"""Building a part without values, where tensors that are there already will take their place.

It is done for methods whose class says `starts_blank = True`: their parts hold parameters alone, and compute nothing
with them while they are built.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

MAKERS = {torch.empty, torch.zeros, torch.ones, torch.full, torch.randn, torch.rand}
FILLERS = {Tensor.uniform_, Tensor.normal_, Tensor.zero_, Tensor.fill_, Tensor.copy_}


class Blank(TorchFunctionMode):
    """Within the block new tensors have a shape and no values, and are not filled.

    torch's own way, `torch.device("meta")`, goes through a slow imitation of every random draw.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in MAKERS:
            return func(*args, **{**kwargs, "device": "meta"})
        if func in FILLERS or getattr(func, "__module__", "") == "torch.nn.init":
            filled = args[0] if args else kwargs["tensor"]
            if filled.is_meta:
                return filled
        return func(*args, **kwargs)
