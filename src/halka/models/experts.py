"""The computation of experts that parts act on, registered with transformers while an adapter in use needs it.

A hook on the module passes a `core.ExpertEdit`, what parts do with one weight of the experts, as the argument `gate_up`
or `down`. Without one, the base's own implementation computes.

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
    """Within the block the base's experts take edits; its own implementation is set again afterwards."""
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
    """down(act(gate) · up) of hidden (S, D) by the experts that the router chose and weighted (S, K): (S, D).

    Where parts add nothing, the result is that of transformers' `grouped_mm`, bit for bit.
    Raises HalkaError if the experts are spread over several devices.
    """
    edit = gate_up or down
    if edit is None:
        eager = type(module).forward.__wrapped__  # what transformers' decorator wraps
        return ALL_EXPERTS_FUNCTIONS.get_interface(own, eager)(module, hidden, chosen, weights)
    if module._is_expert_parallel:
        raise HalkaError("adapters on experts need all experts on one device: load the base without expert parallelism")
    choices = Choices(chosen, module.num_experts, edit.names, edit.runs)
    nothing = ExpertEdit(edit.names, edit.runs)
    inner = (gate_up or nothing).product(hidden[choices.tokens], module.gate_up_proj, choices)
    outer = (down or nothing).product(module._apply_gate(inner), module.down_proj, choices)
    return choices.summed(outer, weights).to(hidden.dtype)
