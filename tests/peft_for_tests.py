"""Adapters of Hugging Face peft: moved from their start, and what they compute."""

from __future__ import annotations

import torch


def disturb(parameters, seed=3):
    """Move adapters away from where they start, so that a mistake shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)


def peft_logits(model, ids):
    """peft's logits for the text alone: prompt tuning also returns those of its virtual tokens."""
    model.eval()
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[:, -ids.shape[1] :]
