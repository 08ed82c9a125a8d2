"""Convert prefix tuning: `prompt_embeddings` (P, 2·L·H·W), key and value layer by layer, after any prefix projection.

In an encoder-decoder, peft 0.21 gives the decoder's layer l the pair of layer 2·l modulo L. `read` follows it; `write`
has no form for our prefixes there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from halka.core import Method, Part, Target, VirtualPart
from halka.methods import Prefix
from halka.models.layouts import layout_of
from halka.storage.formats.format import base_of, target_of
from halka.storage.formats.peft.modules import OUTER as PREFIX  # noqa: F401 (every kind has one)  # pyright: ignore[reportUnusedImport]
from halka.storage.formats.peft.options import refuse_unknown
from halka.storage.formats.peft.prompt import BARE as BARE
from halka.storage.formats.peft.prompt import KEY, virtual_tokens
from halka.util.errors import HalkaError

PEFT_TYPE = "PREFIX_TUNING"
METHODS = ("prefix",)


def write(
    methods: Sequence[Method], parts: Mapping[Method, Mapping[str, Part]], targets: tuple[Target, ...]
) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
    """Return options and tensors; None for encoder-decoders, where peft computes something else, and for encoders,
    which it refuses."""
    if not layout_of(base_of(targets)).generates:
        return None
    slots, heads, width = target_of(targets, "memory").reader.shape
    flat = cast(VirtualPart, parts[methods[0]]["memory"]).virtual().flatten(1)
    config = {
        "peft_type": PEFT_TYPE,
        "num_virtual_tokens": flat.shape[0],
        "token_dim": heads * width,
        "num_layers": slots // 2,
        "num_attention_heads": heads,
        "num_transformer_submodules": 1,
        "encoder_hidden_size": heads * width,
        "prefix_projection": False,
    }
    return config, {KEY: flat}


def read(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], targets: tuple[Target, ...]
) -> tuple[list[Method], dict[str, Tensor], dict[str, Tensor]]:
    """Return the method, its state, and the tensors that are not the method's."""
    refuse_unknown(config, {"num_virtual_tokens", "num_transformer_submodules", "prefix_projection"})
    flat, others = virtual_tokens(config, tensors)
    shape = target_of(targets, "memory").reader.shape
    slots, heads, width = shape
    if flat.shape[1] != slots * heads * width:
        raise HalkaError(
            f"the prefix holds {flat.shape[1]} values a token, this base takes {slots * heads * width} "
            f"({slots // 2} layers of {heads} key/value heads of {width}): it was made for another base"
        )
    pairs = flat.view(-1, *shape)
    if config.get("num_transformer_submodules") == 2:
        layer = torch.arange(slots // 2, device="cpu") * 2 % (slots // 2)
        pairs = pairs[:, torch.stack([2 * layer, 2 * layer + 1], dim=1).flatten()].contiguous()
    return [Prefix(length=flat.shape[0], start="random")], {"memory.keys_values": pairs}, others
