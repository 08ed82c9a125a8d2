"""Experts that parts act on, registered with transformers while an adapter in use needs them.

`core.ExpertEdit` says what parts do with a weight of the experts; it comes as an argument, `gate_up` or `down`, from a
hook on the module. Where none comes, the base's own implementation computes, as it always does.

    S tokens    K experts a token    D width    I inner width    E experts
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS, ExpertsInterface

from halka.core import Choices, ExpertEdit
from halka.util.errors import HalkaError

NAME = "halka"


@contextmanager
def use_experts(base: Any) -> Iterator[None]:
    """Within the block experts take edits; the base's own choice returns afterwards."""
    config = base.config.get_text_config()
    own = config._experts_implementation
    name = f"{NAME} instead of {own}"
    ExpertsInterface.register(name, partial(compute, own=own))
    config._experts_implementation = name
    try:
        yield
    finally:
        config._experts_implementation = own


@torch.compiler.disable  # how many tokens an expert has differs from pass to pass
def compute(
    module: Any,
    hidden: Tensor,
    chosen: Tensor,
    weights: Tensor,
    *,
    own: str = "eager",
    gate_up: ExpertEdit | None = None,
    down: ExpertEdit | None = None,
) -> Tensor:
    """Experts down(act(gate) · up) of hidden (S, D), chosen and weighted (S, K) by the router: (S, D).

    It computes as transformers' `grouped_mm` does, bit for bit where parts add nothing.
    Raises ValueError where the experts are spread over several devices.
    """
    some = gate_up or down
    if some is None:
        eager = type(module).forward.__wrapped__  # what transformers' decorator wraps
        return ALL_EXPERTS_FUNCTIONS.get_interface(own, eager)(module, hidden, chosen, weights)
    if module._is_expert_parallel:
        raise HalkaError("adapters on experts need all experts on one device: load the base without expert parallelism")
    choices = Choices(chosen, module.num_experts, some.names)
    nothing = ExpertEdit(some.names, (), ())
    inner = (gate_up or nothing).product(hidden[choices.tokens], module.gate_up_proj, choices)
    outer = (down or nothing).product(module._apply_gate(inner), module.down_proj, choices)
    return choices.summed(outer, weights).to(hidden.dtype)
