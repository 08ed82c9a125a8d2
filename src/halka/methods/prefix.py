"""Prefix tuning: learned keys and values in front of every layer's own (Li & Liang 2021, arXiv:2101.00190)."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from halka.core import Part, Target, VirtualPart
from halka.methods._checks import positive_int
from halka.methods._fields import method, option
from halka.methods.prompt import starting_embeddings
from halka.util.errors import HalkaError

AttentionRole = Literal["memory", "memory.encoder", "memory.cross"]


@method
class Prefix:
    name: ClassVar[str] = "prefix"
    plain: ClassVar[str] = "Learns a memory that every layer reads before the text: a small file that needs more steps."
    paper: ClassVar[str] = "Li & Liang 2021, arXiv:2101.00190"
    lr: ClassVar[float] = 1.5e-2

    length: int = option(default=20, help="virtual tokens P", check=positive_int)
    start: Literal["vocabulary", "random"] = option(
        default="vocabulary",
        help="what the base computes for sampled tokens (vocabulary), or noise (random, as with hidden)",
    )
    tokens: tuple[int, ...] = option(default=(), help="start from what the base computes for these token ids")
    hidden: int | None = option(
        default=None,
        help="width of the paper's MLP that makes keys and values while training; none: trained freely",
        check=positive_int,
    )
    targets: tuple[AttentionRole, ...] = option(
        default=("memory",),
        help="which attention: memory; in encoder-decoders that is the decoder's own, and the paper has "
        "memory.encoder and memory.cross, too",
    )

    def __post_init__(self) -> None:
        if not self.targets:
            raise HalkaError("prefix: targets is empty: name at least memory")
        if self.hidden is not None and self.tokens:
            raise HalkaError("prefix: the MLP (hidden) starts at random: give hidden or tokens to start from, not both")

    def roles(self) -> tuple[str, ...]:
        return self.targets

    def build(self, target: Target) -> Part:
        reader = target.reader
        if self.hidden is not None:
            return MLPPrefixPart(target, reader.shape, self.length, self.hidden)
        if self.start == "random" and not self.tokens:
            return PrefixPart(torch.randn(self.length, *reader.shape) * 0.02)
        embeddings = starting_embeddings(reader.vocabulary(), self.length, self.start, self.tokens)
        with torch.no_grad():
            return PrefixPart(reader.read(embeddings[None])[0].float().contiguous())


class PrefixPart(VirtualPart):
    """`keys_values` (P, 2·L, H, W): key and value of each layer in turn, used as they are (keys carry no rotation)."""

    def __init__(self, start: Tensor):
        super().__init__()
        self.keys_values = nn.Parameter(start)

    def virtual(self) -> Tensor:
        return self.keys_values


class MLPPrefixPart(VirtualPart):
    """The paper's reparametrisation: `table` (P, D) through tanh to all keys and values; stored as its result."""

    def __init__(self, target: Target, shape: tuple[int, ...], length: int, hidden: int):
        super().__init__()
        self.shape = shape
        self.table = nn.Parameter(torch.randn(length, target.d_in))
        self.narrow = nn.Linear(target.d_in, hidden)
        self.wide = nn.Linear(hidden, target.d_out)

    def virtual(self) -> Tensor:
        return self.wide(torch.tanh(self.narrow(self.table))).view(-1, *self.shape)
