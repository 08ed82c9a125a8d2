"""Learned tokens that a stack's last layers attend to beside the text, through a gate, as LLaMA-Adapter has them.

A layer's tokens are what its attention receives: keys and values come of one pass of the bare base at position 0, in
which every layer reads its own. They take no positions, and the text's attention is as it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from halka.core import VirtualPart
from halka.core.interfaces import Arguments
from halka.models.attention.function import use_attention
from halka.models.attention.layer_stack import LayerMemory, LayerStack, LayerTokens, Recorded
from halka.util.transfer import to_device


class Gated(LayerTokens[list[LayerMemory | None]]):
    """What `parts` hold for a stack's layers; the module of a `memory.gated` target."""

    def __init__(self, base: Any, stack: LayerStack):
        super().__init__(base, stack, (stack.layers, stack.module.config.get_text_config().hidden_size))

    def join(self, kwargs: dict[str, Any], runs: Sequence[int]) -> dict[str, Any]:
        return {**kwargs, "gated": self.contents()} if any(self.parts) else kwargs

    def compute(self, distinct: Sequence[VirtualPart]) -> list[LayerMemory | None]:
        """Every layer's tokens; None in layers without."""
        tokens_and_gates = [(part.virtual(), part.gates()) for part in distinct]  # P K D and K
        longest, count = (max(tokens.shape[side] for tokens, _ in tokens_and_gates) for side in (0, 1))
        tokens_NPKD = torch.stack([_filled(tokens, longest, count) for tokens, _ in tokens_and_gates])
        gates_NK = torch.stack([F.pad(gates, (count - gates.shape[0], 0)) for _, gates in tokens_and_gates])
        lengths = [*(tokens.shape[0] for tokens, _ in tokens_and_gates), longest]
        valid_NP = torch.arange(longest, device="cpu") < torch.tensor(lengths, device="cpu")[:, None]
        place = {id(part): number for number, part in enumerate(distinct)}
        of_row = [place.get(id(part), len(distinct)) for part in self.parts]
        (rows,) = to_device([torch.tensor(of_row, device="cpu")], gates_NK.device)
        valid = None if valid_NP.all() else valid_NP.to(rows.device)[rows]
        contents: list[LayerMemory | None] = [None] * (self.stack.layers - count)
        for gates_N, pair in zip(_with_nobody(gates_NK).unbind(1), self._read(tokens_NPKD), strict=True):
            keys, values = map(_with_nobody, pair)
            here = rows.to(keys.device)
            gates = gates_N[rows].to(keys.dtype)
            contents.append(LayerMemory(keys[here], values[here], valid, gates=gates))
        return contents

    def _read(self, tokens_NPKD: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Keys and values (N, H, P, W) that the last K layers make of what they are given, differentiable."""
        recorded = Recorded()
        count, length, last = tokens_NPKD.shape[:3]
        tokens = tokens_NPKD.to(self._base[0].dtype)
        nothing = tokens.new_zeros(count, length, self.stack.embed.get_parameter("weight").shape[1])
        at_zero = torch.zeros(count, length, dtype=torch.int64, device=nothing.device)
        positions = {} if self.stack.layout.positions == "relative" else {"position_ids": at_zero}
        with use_attention(self._base[0]), self.bare(), ExitStack() as hooks:
            for attention, states in zip(self.stack.attentions[-last:], tokens.unbind(2), strict=True):
                hook = partial(_replace_input, states)
                hooks.enter_context(attention.register_forward_pre_hook(hook, with_kwargs=True))
            self.stack.run(inputs_embeds=nothing, record=recorded, **positions)
        return [recorded[layer] for layer in range(self.stack.layers - last, self.stack.layers)]


def _replace_input(states: Tensor, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
    """The module's arguments with these (N, P, D) instead of the hidden states."""
    states = states.to((args[0] if args else kwargs["hidden_states"]).device)
    return ((states, *args[1:]), kwargs) if args else ((), {**kwargs, "hidden_states": states})


def _with_nobody(tensor_N: Tensor) -> Tensor:
    """With zeros behind the last, for rows without a part: those of another, times a gate of 0, would be its NaN."""
    return torch.cat([tensor_N, tensor_N.new_zeros(1, *tensor_N.shape[1:])])


def _filled(tokens_PKD: Tensor, longest: int, count: int) -> Tensor:
    """With zeros for tokens that are missing at the end, and for layers at the beginning."""
    length, layers, _ = tokens_PKD.shape
    return F.pad(tokens_PKD, (0, 0, count - layers, 0, 0, longest - length))
