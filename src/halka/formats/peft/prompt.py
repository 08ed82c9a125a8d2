"""Prompt tuning: `prompt_embeddings` (P, D)."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from halka.core import Adapter, Method, Target
from halka.formats.folder import Folder
from halka.formats.peft.options import refuse_unknown
from halka.formats.peft.places import target_of
from halka.methods import Prompt

PEFT_TYPE = "PROMPT_TUNING"
METHODS = ("prompt",)
KEY = "prompt_embeddings"


def write(adapter: Adapter, targets: tuple[Target, ...]) -> Folder:
    (part,) = adapter.parts.values()
    embeddings = part.virtual()
    config = {
        "peft_type": PEFT_TYPE,
        "num_virtual_tokens": embeddings.shape[0],
        "token_dim": embeddings.shape[1],
        "num_layers": layers_of(targets),
        "num_attention_heads": 1,
        "num_transformer_submodules": 1,
        "prompt_tuning_init": "RANDOM",
    }
    return Folder(config, {KEY: embeddings})


def read(folder: Folder, targets: tuple[Target, ...]) -> tuple[Method, dict[str, Tensor]]:
    refuse_unknown(folder.config, {"num_virtual_tokens"})
    embeddings = virtual_tokens(folder.tensors)
    layers = layers_of(targets)
    if folder.config.get("num_layers") not in (None, layers):
        raise ValueError(f"the prompt was made for another base: of {folder.config['num_layers']} layers, not {layers}")
    method = Prompt(length=embeddings.shape[0], start="random")
    return method, {f"{target_of(targets, 'embed').name}.embeddings": embeddings}


def layers_of(targets: tuple[Target, ...]) -> int:
    return 1 + max(target.layer for target in targets if target.layer is not None)


def virtual_tokens(tensors: Mapping[str, Tensor]) -> Tensor:
    """The one tensor (P, …) of a prefix or a prompt. Raises ValueError for others, and for no such form."""
    if set(tensors) != {KEY}:
        raise ValueError(f"the weights should be {KEY} alone; they are {', '.join(sorted(tensors)[:5])}")
    if tensors[KEY].dim() != 2 or not tensors[KEY].numel():
        raise ValueError(f"{KEY} is {tuple(tensors[KEY].shape)}, where a row a virtual token is expected")
    return tensors[KEY]
