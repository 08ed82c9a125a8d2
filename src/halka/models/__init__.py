"""transformers models seen as bases: `adapt` gives any of them its targets."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from halka.core import AdaptedModel, Target
from halka.models.layouts import layout_of, linear_targets
from halka.models.memory import VirtualTokens


def adapt(base: Any, tokenizer: Any = None) -> AdaptedModel:
    """Freeze a transformers model, loaded by anyone, and make it ready for adapters.

    The tokenizer is needed to train and to evaluate on text.

    Raises ValueError for an architecture without a layout, naming the file to extend.
    """
    layout = layout_of(base)
    embed = base.get_submodule(layout.embed)
    vocabulary, width = embed.weight.shape
    targets = linear_targets(base, layout)
    memory = VirtualTokens(base, layout)
    whole = Target("base", "base", base, width, vocabulary, source=layout.decoder)
    if layout.attention:
        virtual = memory.shape[0] * memory.shape[1] * memory.shape[2]
        targets.append(Target(layout.embed, "embed", embed, vocabulary, width))
        targets.append(Target("memory", "memory", memory, width, virtual, shape=memory.shape))
    return AdaptedModel(base, [*targets, whole], memory, tokenizer)


def hidden_states(model: AdaptedModel, **inputs: Any) -> Tensor:
    """The decoder's last hidden states (B, T, D), before the head."""
    decoder = model.base.get_submodule(layout_of(model.base).decoder)
    return decoder(**inputs, use_cache=False).last_hidden_state


def logits(model: AdaptedModel, hidden: Tensor) -> Tensor:
    """The head's logits (…, vocabulary) for hidden states (…, D), as the base computes them."""
    config: Any = model.base.config
    result = model.base.get_submodule(layout_of(model.base).head)(hidden)
    cap = getattr(config, "final_logit_softcapping", None)
    return result if cap is None else (result / cap).tanh() * cap
