"""`in_precision`: what a base computes in another precision than its own, to measure what rounding changes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from halka.core import AdaptedModel

EXPERTS = "_experts_implementation"  # of a configuration: how transformers computes a mixture


@contextmanager
def in_precision(
    model: AdaptedModel, dtype: torch.dtype, weights: Mapping[str, Tensor] | None = None
) -> Iterator[None]:
    """Within the block the base, as it is now, computes in `dtype`; what is quantised stays so.

    Copies of its weights in that precision stand in, or of these `weights` by its state's names. What is tied stays so.
    Raises HalkaError within `use`.
    """
    with model.idle("another precision needs an idle base: leave `use` first"):
        own = [
            (f"{path}.{key}" if path else key, module, key, parameter)
            for path, module in model.base.named_modules()
            for key, parameter in module._parameters.items()
            if parameter is not None
        ]
        cast: dict[int, nn.Parameter] = {}  # by the identity of what was cast
        base: Any = model.base
        config = base.config.get_text_config()
        of_experts = getattr(config, EXPERTS, None)
        try:
            if of_experts is not None and dtype == torch.float64:  # of which torch has no grouped product
                setattr(config, EXPERTS, "eager")
            for name, module, key, parameter in own:
                tensor = (weights or {}).get(name, parameter)
                if tensor.is_floating_point():
                    if id(tensor) not in cast:
                        cast[id(tensor)] = nn.Parameter(
                            tensor.detach().to(parameter.device, dtype), requires_grad=False
                        )
                    module._parameters[key] = cast[id(tensor)]
            yield
        finally:
            if of_experts is not None:
                setattr(config, EXPERTS, of_experts)
            for _, module, key, parameter in own:
                module._parameters[key] = parameter
