"""What tells one base from another."""

from __future__ import annotations

import hashlib
import weakref
from typing import Any

import torch

from halka.core import AdaptedModel


def fingerprint(base: Any) -> dict[str, Any]:
    """What tells one base from another: its architecture, its sizes, and a hash over samples of every weight.

    Samples are rounded to bf16 first, so that a base loaded in bf16 and in fp32 is the same base.
    """
    digest = hashlib.sha256()
    for name, parameter in base.named_parameters():
        flat = parameter.detach().flatten()
        steps = torch.linspace(0, flat.numel() - 1, 16, dtype=torch.float64).long().to(flat.device)
        digest.update(f"{name} {tuple(parameter.shape)}".encode())
        digest.update(flat[steps].bfloat16().view(torch.int16).cpu().numpy().tobytes())
    config = base.config
    sizes = {key: getattr(config, key, None) for key in ("num_hidden_layers", "hidden_size", "vocab_size")}
    return {"architecture": config.model_type, **sizes, "weights": digest.hexdigest()[:16]}


def own_fingerprint(model: AdaptedModel) -> dict[str, Any]:
    """The fingerprint of the base's own weights, whatever is merged or in use; known until one of them changes."""
    with model.own_weights():
        state = [(each.data_ptr(), 0 if each.is_inference() else each._version) for each in model.base.parameters()]
        if _known.get(model, (None,))[0] != state:
            _known[model] = (state, fingerprint(model.base))
        return dict(_known[model][1])


_known: weakref.WeakKeyDictionary[AdaptedModel, tuple[Any, dict[str, Any]]] = weakref.WeakKeyDictionary()
