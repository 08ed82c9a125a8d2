"""Convert prompt tuning: `prompt_embeddings` (P, D); (2·P, D) of an encoder-decoder, where peft uses the first half."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from torch import Tensor

from halka.core import Method, Part, Target, VirtualPart
from halka.methods import Prompt
from halka.storage.formats.format import layers_of, target_of
from halka.storage.formats.peft.modules import OUTER as PREFIX  # noqa: F401 (every kind has one)  # pyright: ignore[reportUnusedImport]
from halka.storage.formats.peft.options import refuse_unknown
from halka.util.errors import HalkaError

PEFT_TYPE = "PROMPT_TUNING"
METHODS = ("prompt",)
KEY = "prompt_embeddings"
BARE = (KEY,)


def write(
    methods: Sequence[Method], parts: Mapping[Method, Mapping[str, Part]], targets: tuple[Target, ...]
) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
    """Return options and tensors; in an encoder-decoder only the encoder gets the prompt, as in Halka."""
    (part,) = parts[methods[0]].values()
    embeddings = cast(VirtualPart, part).virtual()
    config = {
        "peft_type": PEFT_TYPE,
        "num_virtual_tokens": embeddings.shape[0],
        "token_dim": embeddings.shape[1],
        "num_layers": layers_of(targets),
        "num_attention_heads": 1,
        "num_transformer_submodules": 1,
        "prompt_tuning_init": "RANDOM",
    }
    return config, {KEY: embeddings}


def read(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], targets: tuple[Target, ...]
) -> tuple[list[Method], dict[str, Tensor], dict[str, Tensor]]:
    """Return the method, its state, and the tensors that are not the method's."""
    refuse_unknown(config, {"num_virtual_tokens", "num_transformer_submodules"})
    return read_embeddings(config, tensors, targets)


def read_embeddings(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], targets: tuple[Target, ...]
) -> tuple[list[Method], dict[str, Tensor], dict[str, Tensor]]:
    """Read the embeddings as `read` does, without checking for unknown options."""
    embeddings, others = virtual_tokens(config, tensors)
    layers = layers_of(targets)
    if config.get("num_layers") not in (None, layers):
        raise HalkaError(f"the prompt was made for another base: of {config['num_layers']} layers, not {layers}")
    method = Prompt(length=embeddings.shape[0], start="random")
    return [method], {f"{target_of(targets, 'embed').name}.embeddings": embeddings}, others


def virtual_tokens(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the tensor (P, …) of a prefix or prompt, and all others. Raises HalkaError if missing or no matrix."""
    if KEY not in tensors:
        raise HalkaError(f"the weights lack {KEY}: they hold {', '.join(sorted(tensors)[:5]) or 'nothing'}")
    rows = tensors[KEY]
    if rows.dim() != 2 or not rows.numel():
        raise HalkaError(f"{KEY} is {tuple(rows.shape)}, where one row per virtual token is expected")
    count = config.get("num_virtual_tokens")
    if config.get("num_transformer_submodules") == 2 and isinstance(count, int) and rows.shape[0] == 2 * count:
        rows = rows[:count]
    if count not in (None, rows.shape[0]):
        raise HalkaError(
            f"{KEY} has {rows.shape[0]} rows, and adapter_config.json says {count!r} virtual tokens: the file is "
            "another adapter's, or incomplete"
        )
    return rows, {key: tensor for key, tensor in tensors.items() if key != KEY}
