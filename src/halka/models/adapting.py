"""`adapt`: a transformers model with its targets; and the forward passes that training and evaluation make of it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from halka.core import AdaptedModel, Adapter, ModulePart, Part, Target, VirtualPart, WeightPart
from halka.models.attention.layer_stack import LayerStack
from halka.models.attention.virtual_tokens import BOTH, VirtualTokens
from halka.models.bare_generation import BareGeneration
from halka.models.experts import use_experts
from halka.models.heads import Head, check_head, labels_of
from halka.models.layouts import check_layout, layout_of
from halka.models.targets import linear_targets
from halka.util.errors import HalkaError
from halka.util.mode import in_mode


def adapt(base: Any, tokenizer: Any = None) -> AdaptedModel:
    """Freeze a transformers model, loaded by Halka or not, and make it ready for adapters.

    The tokenizer is needed to train and to evaluate on text. The base is put into eval mode. On a base that predicts
    labels, every adapter has a head of its own.

    Raises HalkaError for an architecture without a layout, with the file to extend, for a base with layers that
    accelerate offloaded, and for a classifier whose padding token cannot be used.
    """
    layout = layout_of(base)
    check_layout(base, layout)
    check_head(base, layout)
    _check_offloaded(base)
    base.eval()
    embed = base.get_submodule(layout.embed)
    vocabulary, width = embed.weight.shape
    targets = [Target(layout.embed, "embedding", embed, vocabulary, width), *linear_targets(base, layout)]
    attention = VirtualTokens(base, layout)
    if layout.obstacle is None:
        targets.append(Target(layout.embed, "embed", embed, vocabulary, width))
        for role, reader in attention.readers.items():
            targets.append(Target(role, role, reader, width, math.prod(reader.shape)))
    targets.append(Target("base", "base", base, width, vocabulary))
    return AdaptedModel(
        base,
        targets,
        attention,
        tokenizer,
        experts=partial(use_experts, base),
        head=Head.of(base, layout.head),
        labels=labels_of(base),
        outside=BareGeneration(),
    )


def _check_offloaded(base: Any) -> None:
    """Raises HalkaError where `device_map` left layers to the CPU or the disk: they are on no device between passes."""
    weights = dict(base.named_parameters())
    away = [name for name, weight in weights.items() if weight.device.type == "meta"]
    if away and (len(away) < len(weights) or getattr(base, "hf_device_map", None)):
        raise HalkaError(
            f"{type(base).__name__} does not fit on its devices: {len(away)} of its {len(weights)} weights, such as "
            f"{away[0]}, are offloaded by device_map, and adapters cannot act there. Load it with quantize=nf4, on "
            "more GPUs, or on the CPU, or take a smaller base"
        )


def context(model: AdaptedModel, name: str | None = None) -> int | None:
    """The positions that the base has for text, less those of adapter `name`'s virtual tokens; None if unlimited.

    Raises HalkaError for an adapter that leaves none, and for a prefix and a prompt in one where the base takes one.
    """
    stack = stack_of(model)
    if name is None:
        return stack.limit
    adapter = model.adapter(name)
    if stack.layout.generates and {"memory", "embed"} <= {target.role for target in adapter.targets.values()}:
        raise HalkaError(BOTH)
    if stack.limit is None:
        return None
    if (taken := taken_positions(adapter)) >= stack.limit:
        raise HalkaError(
            f"adapter {name!r} has {taken:,} virtual tokens, and this base {stack.limit:,} positions, so that none is "
            "left for text: train it with fewer"
        )
    return stack.limit - taken


def shares_lines(model: AdaptedModel, adapter: Adapter) -> bool:
    """Whether the adapter acts on each token of a line by itself, so that other adapters' tokens can stand beside it.

    A full copy of the weights does not, nor does a module trained whole whose tokens may not come first, as a norm of
    heads and the block of a mixture of experts.
    """
    width = next(target.d_out for target in model.targets if target.role == "embedding")

    def by_token(part: Part, target: Target) -> bool:
        if not isinstance(part, ModulePart) or not part.replaces or target.role != "module" or target.d_in:
            return not isinstance(part, WeightPart)
        return {tensor.shape for tensor in part.parameters()} == {(width,)}  # a norm of whole tokens

    return all(by_token(part, adapter.targets[path]) for path, part in adapter.parts.items())


def taken_positions(adapter: Adapter) -> int:
    """The positions that an adapter's virtual tokens take: that of the text's first token."""
    virtual = [part for part in adapter.parts.values() if isinstance(part, VirtualPart) and part.takes_positions]
    with torch.no_grad():
        return sum(part.virtual().shape[0] for part in virtual)


def stack_of(model: AdaptedModel) -> LayerStack:
    """The base's decoder, or an encoder that stands alone."""
    return LayerStack(model.base, layout_of(model.base))


def memory_of(model: AdaptedModel) -> Any:
    """The keys and values of the decoder's own attention: `models.attention.virtual_kv.VirtualKV`."""
    return next(target.module for target in model.targets if target.role == "memory")


def pad_id(model: AdaptedModel) -> int:
    """The padding token: the tokenizer's, else its end of sequence, which decoded answers leave out.

    Classifiers and encoders find the end of a text by their own padding token, so theirs comes first.
    """
    base: Any = model.base
    config = base.config.get_text_config()
    own = None if layout_of(model.base).causal and not model.labels else config.pad_token_id
    tokens: Any = (own, *(getattr(model.tokenizer, key, None) for key in ("pad_token_id", "eos_token_id")))
    return next((token for token in tokens if token is not None), 0)


def run(model: AdaptedModel, **inputs: Any) -> Any:
    """The output of the whole base, head included, without a cache."""
    base: Any = model.base
    return base(**inputs, use_cache=False) if layout_of(base).causal else base(**inputs)


def hidden_states(model: AdaptedModel, **inputs: Any) -> Tensor:
    """The decoder's last hidden states (B, T, D), before the head.

    Raises HalkaError for an encoder, whose tokens see the tokens after them.
    """
    layout = layout_of(model.base)
    if not layout.causal:
        raise HalkaError(f"{type(model.base).__name__} is an encoder: it neither learns nor generates next tokens")
    decoder = model.base.get_submodule(layout.decoder)
    return decoder(**inputs, use_cache=False).last_hidden_state


def logits(model: AdaptedModel, hidden: Tensor) -> Tensor:
    """The head's logits (…, vocabulary) for hidden states (…, D), as the base computes them."""
    base: Any = model.base
    config = base.config.get_text_config()
    result = base.get_submodule(layout_of(base).head)(hidden)
    if (scale := getattr(config, "logit_scale", 1)) != 1:  # Cohere's
        result = result * scale
    if (divisor := getattr(config, "logits_scaling", 1)) != 1:  # Granite's
        result = result / divisor
    cap = getattr(config, "final_logit_softcapping", None)
    return result if cap is None else (result / cap).tanh() * cap


def without_dropout(model: AdaptedModel, names: Iterable[str | None]) -> AbstractContextManager[None]:
    """Within the block the base and adapters of these names compute without dropout, whatever mode they are in."""
    adapters = [model.adapters[name] for name in dict.fromkeys(names) if name in model.adapters]
    return in_mode(False, model.base, *(part for adapter in adapters for part in adapter.parts.values()))
