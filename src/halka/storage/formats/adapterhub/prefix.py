"""Convert prefix tuning: one tensor or a small network gives all layers' keys and values, which take no positions.

Files hold the tensors under the decoder and again under every layer: a flat `control_trans` (P·2·L·H·W,), or `wte`
(P, D) followed by `control_trans.0`, a non-linearity and `control_trans.2`. `read` computes the keys and values of
either form, `write` writes the flat one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor

from halka.core import Adapter, Method, Target, VirtualPart
from halka.methods import PositionlessPrefix
from halka.methods import bottleneck as bottlenecks
from halka.storage.formats.adapterhub.bottleneck import activation_of
from halka.storage.formats.adapterhub.config import GATES, NAME, count, refuse
from halka.storage.formats.adapterhub.tensor_names import Keys, architecture_of, decoder_of
from halka.util.errors import HalkaError

ARCHITECTURE = "prefix_tuning"
METHODS = ("positionless_prefix",)
PLACE = "self_prefix"
READ = {
    *("prefix_length", "non_linearity", "flat", "bottleneck_size", "shared_gating"),
    *("encoder_prefix", "cross_prefix", "dropout"),  # of encoder-decoder bases; of training only
}


def read(config: Mapping[str, Any], keys: Keys, targets: tuple[Target, ...]) -> tuple[Method, dict[str, Tensor]]:
    refuse(config, READ, {}, {"use_gating": GATES})
    memory = next((target for target in targets if target.role == "memory"), None)
    if memory is None:
        raise HalkaError("Halka does not have prefixes for this base")
    copies = list(keys.take("prefix").values())
    first = copies[0] if copies else {}
    for other in copies[1:]:
        if other.keys() != first.keys() or not all(torch.equal(other[key], first[key]) for key in first):
            raise HalkaError("the prefix is saved under every layer, and its copies differ: the folder is damaged")
    flat = _flat(first, config)
    length = count(config, "prefix_length")
    size = length * memory.d_out
    if flat.numel() != size:
        raise HalkaError(
            f"the prefix holds {flat.numel()} values, where {length} tokens of this base have {size}: it was made for "
            "another base"
        )
    return PositionlessPrefix(length, start="random"), {
        "memory.keys_values": flat.reshape(length, *memory.reader.shape)
    }


def _flat(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> Tensor:
    """Return the keys and values: the flat tensor, or the network's output."""
    own = {key.removeprefix(f"{PLACE}."): tensor for key, tensor in tensors.items()}
    network = ("wte.weight", *(f"control_trans.{i}.{key}" for i in (0, 2) for key in ("weight", "bias")))
    if set(own) == {"control_trans"}:
        return own["control_trans"]
    if set(own) != set(network):
        raise HalkaError(
            f"a prefix has control_trans, or {', '.join(network)}; this one has {', '.join(own) or 'nothing'}"
        )
    table, narrow, narrow_bias, wide, wide_bias = (own[key] for key in network)
    if any(matrix.dim() != 2 for matrix in (table, narrow, wide)) or (
        (narrow.shape[1], wide.shape[1], *narrow_bias.shape, *wide_bias.shape)
        != (table.shape[1], len(narrow), len(narrow), len(wide))
    ):
        shapes = ", ".join(f"{key} {tuple(own[key].shape)}" for key in network)
        raise HalkaError(f"the prefix's network holds {shapes}: they do not fit one another, the folder is damaged")
    activation = bottlenecks.ACTIVATIONS[activation_of(config)]
    return activation(table @ narrow.T + narrow_bias) @ wide.T + wide_bias


def write(adapter: Adapter, targets: tuple[Target, ...]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    architecture_of(targets)
    values = cast(VirtualPart, adapter.parts["memory"]).virtual()
    config: dict[str, Any] = {
        "architecture": "prefix_tuning",
        "flat": True,
        "prefix_length": values.shape[0],
        "encoder_prefix": True,
        "cross_prefix": True,
        "leave_out": [],
        "dropout": 0.0,
        "use_gating": False,
    }
    return config, {
        f"{decoder_of(targets)}.prefix_tuning.prefix_tunings.{NAME}.{PLACE}.control_trans": values.flatten()
    }
