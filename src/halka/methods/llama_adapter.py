"""LLaMA-Adapter: the last layers also attend to learned tokens, through gates (Zhang et al. 2023, arXiv:2303.16199)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from halka.core import Part, Target, VirtualPart, init_parameter
from halka.methods._checks import positive_int
from halka.methods._fields import method, option
from halka.util.errors import HalkaError


@method
class LlamaAdapter:
    name: ClassVar[str] = "llama_adapter"
    plain: ClassVar[str] = (
        "Lets the last layers read a learned memory, at first not at all: a small file that starts gently."
    )
    paper: ClassVar[str] = "Zhang et al. 2023, arXiv:2303.16199"
    lr: ClassVar[float] = 9e-3

    length: int = option(default=10, help="learned tokens P of a layer", check=positive_int)
    layers: int | None = option(
        default=None, help="how many of the last layers have them; all if not given", check=positive_int
    )

    def roles(self) -> tuple[str, ...]:
        return ("memory.gated",)

    def build(self, target: Target) -> Part:
        depth, width = target.reader.shape
        if self.layers is not None and self.layers > depth:
            raise HalkaError(f"llama_adapter: layers is {self.layers}, and this base has {depth}")
        return LlamaAdapterPart(self.layers or depth, self.length, width)


class LlamaAdapterPart(VirtualPart):
    """`adaption_prompt` (K, P, D) for the last K layers, `adaption_gate` (K,), which starts at zero: y stays y."""

    takes_positions = False

    def __init__(self, layers: int, length: int, width: int):
        super().__init__()
        self.adaption_prompt = init_parameter(torch.empty(layers, length, width), nn.init.normal_)
        self.adaption_gate = init_parameter(torch.empty(layers), nn.init.zeros_)

    def virtual(self) -> Tensor:
        return self.adaption_prompt.transpose(0, 1)

    def gates(self) -> Tensor:
        return self.adaption_gate
