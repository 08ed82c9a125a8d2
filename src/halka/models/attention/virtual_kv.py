"""Keys and values that rows have beside their text for one attention of every layer: a stack's own, or cross-attention.

A prefix has them as parameters. A prompt has embeddings, and the base computes the keys and values.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from halka.core import VirtualPart
from halka.models.attention.function import use_attention
from halka.models.attention.layer_stack import LayerMemory, LayerStack, LayerTokens, Recorded, tokens_of
from halka.util.rows import repeats
from halka.util.transfer import to_device


class VirtualKV(LayerTokens[tuple[Tensor, Tensor]]):
    """The virtual keys and values of a stack's layers; with `over`, of their attention to that encoder's tokens.

    Implements `core.Reader`: it is the module of a `memory` target.
    """

    def __init__(self, base: Any, stack: LayerStack, over: LayerStack | None = None):
        super().__init__(base, stack, stack.shape)
        self._over = over

    def vocabulary(self) -> nn.Module:
        """The base's embedding module: token ids (P,) to input embeddings (P, D)."""
        return self.stack.embed

    def read(self, embeddings: Tensor) -> Tensor:
        """The keys and values (N, P, 2·L, H, W) that the base computes for embeddings (N, P, D), differentiable."""
        recorded = Recorded()
        embeddings = embeddings.to(self._base[0].dtype)
        with use_attention(self._base[0]), self.bare():  # virtual tokens see only each other
            if self._over is None:
                self.stack.run_from_start(embeddings, record=recorded)
            else:
                states = self._over.run_from_start(embeddings).last_hidden_state
                self.stack.run_from_start(embeddings[:, :1], encoder_hidden_states=states, record_cross=recorded)
        pairs = [tensor.to(embeddings.device) for layer in range(self.stack.layers) for tensor in recorded[layer]]
        return torch.stack(pairs).permute(1, 3, 0, 2, 4)  # 2L N H P W -> N P 2L H W

    def join(self, kwargs: dict[str, Any], runs: Sequence[int]) -> dict[str, Any]:
        """What a pass of the stack receives instead: the rows' keys and values, and its positions behind them."""
        if not any(self.parts):
            return kwargs
        batch, length = tokens_of(kwargs).shape[:2]
        contents, lengths = self.contents()
        cache = kwargs.get("cache") or kwargs.get("past_key_values")
        past = cache.get_seq_length() if cache is not None else 0
        longest = contents.shape[3]
        taking = torch.tensor([part is not None and part.takes_positions for part in self.parts], device="cpu")
        shift, limit = lengths * taking, self.stack.limit
        last = None  # position, where tokens may come to lie behind it
        if limit is not None and int(past) + length + longest > limit:
            last = self.stack.first + limit - 1
            self._check(shift, _texts_of_line(kwargs, runs) if runs else _texts_of_rows(kwargs, int(past), len(shift)))
        if len(self.parts) > 1:
            times = torch.tensor(runs, device="cpu") if runs else repeats(batch, len(lengths))
            shift = shift.repeat_interleave(times)
        shift, seen = to_device([shift, lengths], contents.device)
        valid = None if len(self.parts) == 1 else torch.arange(longest, device=seen.device) < seen[:, None]
        shift = shift[None] if runs else shift[:, None]
        pairs = contents.unbind(0)
        bias = None if self._over is not None else self.stack.bias(lengths, length, past, contents.device)
        memory = [LayerMemory(pairs[2 * i], pairs[2 * i + 1], valid, bias) for i in range(self.stack.layers)]
        if self._over is not None:
            return {**kwargs, "cross_memory": memory}
        positions = self.stack.positions(kwargs, past, shift)
        if last is not None and not runs:  # a row's padding may come to lie behind the last position
            positions = {name: it.clamp(max=last) for name, it in positions.items()}
        return {**kwargs, **positions, "memory": memory}

    def _check(self, shift: Tensor, texts: Tensor) -> None:
        """Raises HalkaError where virtual tokens (N,) and the longest texts behind them (N or 1,) have no positions."""
        virtual, texts = torch.broadcast_tensors(shift, texts)
        worst = int((virtual + texts).argmax())
        self.stack.check(int(virtual[worst]), int(texts[worst]))

    def compute(self, distinct: Sequence[VirtualPart]) -> tuple[Tensor, Tensor]:
        """Keys and values (2·L, N, H, P, W) padded to the longest, and lengths (N,) on the CPU."""
        virtual = [part.virtual() for part in distinct]
        embedded = [i for i, tokens in enumerate(virtual) if tokens.dim() == 2]
        if embedded:
            read = self.read(pad_sequence([virtual[i] for i in embedded], batch_first=True))
            for row, i in zip(read, embedded, strict=True):
                virtual[i] = row[: virtual[i].shape[0]]
        dtype, device = self._base[0].dtype, virtual[0].device
        by_part = {id(part): tokens.to(dtype) for part, tokens in zip(distinct, virtual, strict=True)}
        nothing = torch.zeros(0, *self.shape, dtype=dtype, device=device)
        rows = [nothing if part is None else by_part[id(part)] for part in self.parts]
        lengths = torch.tensor([row.shape[0] for row in rows], device="cpu")
        return pad_sequence(rows, batch_first=True).permute(2, 0, 3, 1, 4).contiguous(), lengths


def _texts_of_line(kwargs: dict[str, Any], runs: Sequence[int]) -> Tensor:
    """The tokens of each run's longest text, (N,). On a GPU they are the forest's, for which the host does not wait.

    On a CPU tokens that no text has may fill up the line; their positions are 0.
    """
    positions = kwargs["position_ids"]
    if positions.device.type != "cpu":
        return torch.tensor(kwargs["forest"].forest.longest_of_runs, device="cpu")
    ends = [int(run.max()) + 1 if run.numel() else 0 for run in positions.split(list(runs), dim=-1)]
    return torch.tensor(ends, device="cpu")


def _texts_of_rows(kwargs: dict[str, Any], past: int, parts: int) -> Tensor:
    """The tokens of the longest row of each part up to its padding on the right, (N,) of N parts, or (1,) for all."""
    mask, tokens = kwargs.get("attention_mask"), past + tokens_of(kwargs).shape[1]
    if not isinstance(mask, Tensor) or mask.shape[1:] != (tokens,):  # beside images it is a mask for each kind of layer
        return torch.tensor([tokens], device="cpu")
    ends = ((mask != 0) * torch.arange(1, tokens + 1, device=mask.device)).amax(1)
    return ends.view(parts, repeats(len(ends), parts)).amax(1).cpu()
