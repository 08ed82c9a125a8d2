"""What training will need, before it runs: bytes for weights, gradients, optimiser states and activations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from halka.core import AdaptedModel, Adapter, bytes_of

FP32 = 4


@dataclass(frozen=True)
class MemorySplit:
    """Bytes by what they are for."""

    weights: int
    gradients: int
    optimizer: int
    activations: int


def memory(
    model: AdaptedModel, name: str, *, rows: int, length: int, labels: int, checkpointing: bool = False
) -> MemorySplit:
    """The memory of a training step of adapter `name` with AdamW on a batch of `rows` by `length` tokens.

    Weights: the base, and the adapter's fp32 masters (for full fine-tuning also their cast copy). Gradients and the
    two moments of AdamW: fp32. Activations: what is kept for the backward pass, of which `labels` positions reach the
    head; what an allocator holds beyond that, and what products need in passing, is not counted.
    """
    adapter, base = model.adapter(name), model.base
    config: Any = base.config
    config, width = config.get_text_config(), next(base.parameters()).element_size()
    trained = adapter.count()
    frozen = bytes_of(base)
    full = "base" in adapter.parts
    layers = [_a_layer(model, adapter, config, width, length, full, layer) for layer in range(config.num_hidden_layers)]
    kept = max(layers) + len(layers) * config.hidden_size * width if checkpointing else sum(layers)
    head = labels * config.hidden_size * width + min(labels, 256) * config.vocab_size * (2 * FP32 + 2 * width)
    return MemorySplit(
        weights=frozen * (2 if full else 1) + trained * FP32,
        gradients=trained * FP32,
        optimizer=trained * 2 * FP32,
        activations=rows * length * kept + head + _cast(adapter, width),
    )


def _a_layer(
    model: AdaptedModel, adapter: Adapter, config: Any, width: int, length: int, full: bool, layer: int
) -> int:
    """Bytes that a decoder layer keeps per token.

    Two norms keep their input in fp32 and their quotient; attention keeps queries, keys, values, its result and the
    probabilities (a row of the score matrix per head); the MLP keeps its inner products and what lies between.
    """
    heads = config.num_attention_heads
    keys = getattr(config, "num_key_value_heads", None) or heads
    head = getattr(config, "head_dim", None) or config.hidden_size // heads
    widths = {target.role: target.d_out for target in model.targets if target.layer == layer}
    gated = "mlp.gate" in widths or "mlp.gate_up" in widths
    inner = widths["mlp.gate_up"] // 2 if "mlp.gate_up" in widths else widths.get("mlp.up", 0)
    norms = 2 * (config.hidden_size * (FP32 + width) + (config.hidden_size * width if full else 0))
    attention = width * (3 * heads * head + 2 * keys * head + config.hidden_size + heads * length)
    return norms + attention + width * ((4 if gated else 2) * inner + _experts(adapter, config, widths, full, layer))


def _cast(adapter: Adapter, width: int) -> int:
    """Bytes of the cast copies of parts at experts, which are kept however few the tokens are."""
    stacks = [part for path, part in adapter.parts.items() if adapter.targets[path].stack]
    return 0 if width == FP32 else width * sum(each.numel() for part in stacks for each in part.parameters())


def _experts(adapter: Adapter, config: Any, widths: dict[str, int], full: bool, layer: int) -> int:
    """Values that a layer's experts keep per token, for each of those that it goes through.

    The inner products and what lies between, and what is weighted; where parts act, also what they read.
    """
    if "experts.down" not in widths:
        return 0
    inner, outer = widths["experts.gate_up"] // 2, widths["experts.down"]
    trained = full or any(target.stack and target.layer == layer for target in adapter.targets.values())
    return config.num_experts_per_tok * (3 * inner + outer + (inner + outer if trained else 0))
