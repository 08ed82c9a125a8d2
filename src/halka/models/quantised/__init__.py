"""Quantised bases: the linear layers of the blocks keep their weights as NF4 or int8.

linear.py  what a quantised layer computes
int8.py    eight bits a weight, needs no library
nf4.py     four bits a weight, by bitsandbytes
"""

from __future__ import annotations

from typing import Any

import torch

from halka.core import LINEAR_ROLES, quantization_of
from halka.models.layouts import layout_of
from halka.models.quantised.int8 import Int8Linear
from halka.models.quantised.linear import QuantizedLinear, bytes_of, samples
from halka.models.quantised.nf4 import NF4Linear, bitsandbytes
from halka.models.targets import linear_targets
from halka.util.errors import HalkaError
from halka.util.mapped_pages import release_pages

__all__ = [
    "LAYERS",
    "QuantizedLinear",
    "bytes_of",
    "check_quantize",
    "quantisable",
    "quantise",
    "quantise_layer",
]

LAYERS: dict[str, type[QuantizedLinear]] = {"nf4": NF4Linear, "int8": Int8Linear}


def check_quantize(quantize: str) -> None:
    """Raises HalkaError for another name than nf4 and int8, and for nf4 where bitsandbytes is not installed."""
    if quantize not in LAYERS:
        raise HalkaError(f"quantize {quantize!r} is none of {', '.join(LAYERS)}")
    if quantize == NF4Linear.quantization:
        bitsandbytes()


def quantisable(base: Any) -> list[tuple[str, bool]]:
    """The paths of the linear layers of the blocks, and whether the weight is stored as (I, O)."""
    targets = linear_targets(base, layout_of(base))
    return [(target.name, target.transposed) for target in targets if target.role in LINEAR_ROLES]


def quantise_layer(base: Any, path: str, transposed: bool, quantize: str, device: torch.device | None = None) -> None:
    """Quantise one linear layer in place, on the device, if one is named."""
    parent, _, leaf = path.rpartition(".")
    linear = base.get_submodule(path)
    weight = linear.weight
    there = weight if device is None else weight.to(device)
    layer = LAYERS[quantize](
        there.T.contiguous() if transposed else there, linear.bias, transposed, samples(weight).to(there.device)
    )
    base.get_submodule(parent).register_module(leaf, layer.train(linear.training))
    if weight.device.type == "cpu":  # an address of a GPU's is none of the process's pages
        release_pages(weight.data_ptr(), weight.numel() * weight.element_size())


def quantise(base: Any, quantize: str, device: torch.device | None = None) -> None:
    """Quantise the linear layers of a transformers model's blocks in place; embeddings, norms, biases and head stay.

    Each layer's weight is freed before the next is quantised, and the tensors that stay are copied out of the file that
    was mapped into memory: the model is never in memory twice. With a device, weights go there one at a time and are
    quantised there: it never holds more than the quantised layers and one weight.

    Raises HalkaError as `check_quantize` does, for an architecture without a layout, and for a quantised base.
    """
    check_quantize(quantize)
    if (already := quantization_of(base)) is not None:
        raise HalkaError(f"the base is quantised to {already} already: load it again to quantise it to {quantize}")
    with torch.no_grad():
        for path, transposed in quantisable(base):
            quantise_layer(base, path, transposed, quantize, device)
        for module in base.modules():
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data.clone()
