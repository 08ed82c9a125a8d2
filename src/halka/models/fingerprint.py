"""What tells one base from another."""

from __future__ import annotations

import functools
import hashlib
from typing import Any

import torch
from torch import Tensor

from halka.core import AdaptedModel

SAMPLES = 16  # of each weight


def fingerprint(base: Any) -> dict[str, Any]:
    """What tells one base from another: its architecture, its sizes, and a hash over samples of every weight.

    Samples are rounded to bf16 first, so that a base loaded in bf16 and in fp32 is the same base.
    """
    named = list(base.named_parameters())
    flat = [parameter.detach().flatten() for _, parameter in named]
    samples = torch.stack([each[_places(each.numel()).to(each.device)].bfloat16().cpu() for each in flat])
    digest = hashlib.sha256()
    for (name, parameter), row in zip(named, samples.view(torch.int16).numpy(), strict=True):
        digest.update(f"{name} {tuple(parameter.shape)}".encode())
        digest.update(row.tobytes())
    config = base.config
    sizes = {key: getattr(config, key, None) for key in ("num_hidden_layers", "hidden_size", "vocab_size")}
    return {"architecture": config.model_type, **sizes, "weights": digest.hexdigest()[:16]}


@functools.lru_cache(maxsize=256)
def _places(count: int) -> Tensor:
    """Where the samples of so many values stand."""
    with torch.inference_mode(False):
        return torch.linspace(0, count - 1, SAMPLES, dtype=torch.float64).long()


def own_fingerprint(model: AdaptedModel) -> dict[str, Any]:
    """The fingerprint of the base's own weights, whatever is merged or in use."""
    with model.own_weights():
        return fingerprint(model.base)
