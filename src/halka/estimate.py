"""What training will need, before it runs: bytes for weights, gradients, optimiser states and activations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from halka.core import Adapter

FP32 = 4


@dataclass(frozen=True)
class MemorySplit:
    """Bytes by what they are for."""

    weights: int
    gradients: int
    optimizer: int
    activations: int


def memory(base: Any, adapter: Adapter, *, rows: int, length: int, labels: int) -> MemorySplit:
    """The memory of a training step with AdamW on a batch of `rows` by `length` tokens, `labels` of them with loss.

    Weights: the base, and the adapter's fp32 masters (for full fine-tuning also their cast copy). Gradients and the
    two moments of AdamW: fp32. Activations: what each layer keeps for the backward pass; see `_a_layer`.
    """
    trained = adapter.count()
    frozen = sum(parameter.numel() * parameter.element_size() for parameter in base.parameters())
    full = "base" in adapter.parts
    config = base.config.get_text_config()
    width = base.dtype.itemsize
    layers = config.num_hidden_layers * rows * length * _a_layer(config, width, length, full)
    head = labels * config.hidden_size * width + min(labels, 256) * config.vocab_size * (2 * FP32 + 2 * width)
    return MemorySplit(
        weights=frozen * (2 if full else 1) + trained * FP32,
        gradients=trained * FP32,
        optimizer=trained * 2 * FP32,
        activations=layers + head,
    )


def _a_layer(config: Any, width: int, length: int, full: bool) -> int:
    """Bytes that a decoder layer keeps per token.

    Two norms keep their input in fp32 and their quotient; attention keeps queries, keys, values, its result and the
    probabilities (a row of the score matrix per head); the MLP keeps its two inner products and what lies between.
    """
    heads = config.num_attention_heads
    keys = getattr(config, "num_key_value_heads", None) or heads
    head = getattr(config, "head_dim", None) or config.hidden_size // heads
    inner = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    norms = 2 * (config.hidden_size * (FP32 + width) + (config.hidden_size * width if full else 0))
    attention = width * (3 * heads * head + 2 * keys * head + config.hidden_size + heads * length)
    return norms + attention + width * 4 * inner
