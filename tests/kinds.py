"""Adapters of every kind on a tiny base, and what it computes with them."""

from __future__ import annotations

import torch

import halka
from contract import disturb, ids
from halka.core import AdaptedModel
from tiny import tiny

KINDS = {
    "lora": halka.LoRA(rank=4, alpha=8),
    "dora": halka.DoRA(rank=3, targets=("attn.q", "mlp.down")),
    "parallel": halka.Bottleneck(width=6, reads="input"),
    "serial": halka.Bottleneck(width=4, targets=("mlp",), activation="gelu"),
    "ia3": halka.IA3(),
    "bitfit": halka.BitFit(targets=("attn.o", "mlp.down")),
    "prefix": halka.Prefix(length=3),
    "prompt": halka.Prompt(length=4),
    "head": halka.LoRA(rank=5, targets=("head", "mlp.down"), scaling="root"),
}


def model_with(*kinds: str, architecture: str = "llama", **changes) -> AdaptedModel:
    """A tiny base with trained adapters, each named after its kind."""
    model = halka.adapt(tiny(architecture, **changes))
    for seed, kind in enumerate(kinds):
        model.add(kind, KINDS.get(kind) or halka.Full(), seed=seed)
        disturb(model, kind, seed=seed, by=0.01 if kind == "full" else 0.1)
    return model


def logits(model: AdaptedModel, name=None) -> torch.Tensor:
    with torch.no_grad(), model.use(name):
        return model.base(ids()).logits


def bare(model: AdaptedModel) -> torch.Tensor:
    with torch.no_grad():
        return model.base(ids()).logits


def train_a_step(model: AdaptedModel, name: str) -> None:
    optimizer = torch.optim.AdamW(model.parameters(name), lr=1e-2, fused=True)
    with model.use(name):
        model.base(ids(), labels=ids()).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
