"""Prefix tuning: `prompt_embeddings` (P, 2·L·H·W), a layer's key and value in turn; the MLP's result, not the MLP."""

from __future__ import annotations

from torch import Tensor

from halka.core import Adapter, Method, Target
from halka.formats.folder import Folder
from halka.formats.peft.options import refuse_unknown
from halka.formats.peft.places import target_of
from halka.formats.peft.prompt import KEY, virtual_tokens
from halka.methods import Prefix

PEFT_TYPE = "PREFIX_TUNING"
METHODS = ("prefix",)


def write(adapter: Adapter, targets: tuple[Target, ...]) -> Folder:
    part = adapter.parts["memory"]
    slots, heads, width = adapter.targets["memory"].shape
    flat = part.virtual().flatten(1)
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
    return Folder(config, {KEY: flat})


def read(folder: Folder, targets: tuple[Target, ...]) -> tuple[Method, dict[str, Tensor]]:
    refuse_unknown(folder.config, {"num_virtual_tokens", "prefix_projection"})
    flat = virtual_tokens(folder.tensors)
    memory = target_of(targets, "memory")
    slots, heads, width = memory.shape
    if flat.shape[1] != slots * heads * width:
        raise ValueError(
            f"the prefix holds {flat.shape[1]} values a token, this base takes {slots * heads * width} "
            f"({slots // 2} layers of {heads} key/value heads of {width}): it was made for another base"
        )
    return Prefix(length=flat.shape[0], start="random"), {"memory.keys_values": flat.view(-1, *memory.shape)}
