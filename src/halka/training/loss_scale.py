"""The factor on a loss in fp16, without which small gradients vanish (Micikevicius et al. 2018, arXiv:1710.03740)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from halka.training.checkpoint import Progress
from halka.util.transfer import by_device

aten: Any = torch.ops.aten

GROWTH = 2000  # steps without an overflow, after which the factor is doubled
LEAST = 2.0**-10  # a factor as small is not why gradients overflow


def unscale(parameters: Iterable[nn.Parameter], scale: float) -> None:
    """Divide the gradients, fp32, by the factor on their loss."""
    if scale != 1 and (gradients := [parameter.grad for parameter in parameters if parameter.grad is not None]):
        for places in by_device(gradients):
            aten._foreach_div_([gradients[place] for place in places], scale)


def after_step(progress: Progress, *, overflow: bool) -> Progress:
    """The progress with the factor of the next step: half after an overflow, twice after `GROWTH` steps without."""
    if overflow:
        return replace(progress, scale=progress.scale / 2, steady=0)
    if progress.steady + 1 < GROWTH:
        return replace(progress, steady=progress.steady + 1)
    return replace(progress, scale=progress.scale * 2, steady=0)
