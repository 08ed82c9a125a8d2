"""Virtual tokens: keys and values that join every layer's own, per row and of any length.

A prefix holds them as parameters. A prompt holds embeddings, and the base computes the keys and values: virtual tokens
see only each other under causal attention, so one pass over them a batch is enough, instead of one in every row.
Either way a row with P virtual tokens starts its own tokens at position P, unless its part takes no positions. Nothing
enters the cache: where the decoder is called, an argument is added, and transformers hands that on, layer by layer, to
`attention.attend`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from halka.core import Part, repeats, state_of
from halka.models.attention import LayerMemory, use_attention
from halka.models.layouts import Layout


class VirtualTokens(nn.Module):
    """Implements `core.Memory` for one base; also the module of its `memory` target."""

    def __init__(self, base: Any, layout: Layout):
        super().__init__()
        config = base.config.get_text_config()
        heads = config.num_attention_heads
        self.layers = len(list(base.get_submodule(layout.layers).children()))
        width = getattr(config, "head_dim", None) or config.hidden_size // heads
        self.shape = (2 * self.layers, getattr(config, "num_key_value_heads", None) or heads, width)
        self.limit: int | None = getattr(config, "max_position_embeddings", None)
        self._layout = layout
        self._base = (base,)  # in a tuple, so that the base is no submodule of this one
        self._decoder = (base.get_submodule(layout.decoder),)
        self._names = tuple(inspect.signature(self._decoder[0].forward).parameters)  # of what is given by position
        self._parts: tuple[Part | None, ...] = ()
        self._known: tuple[Any, Tensor, Tensor] | None = None
        self._bare: Callable[[], AbstractContextManager[None]] = nullcontext
        self._attention: Any = None

    # ── core.Memory ─────────────────────────────────────────────────────────────────────────────────────────────

    def enter(self, parts: Sequence[Part | None], bare: Callable[[], AbstractContextManager[None]]) -> None:
        if parts:
            self._parts, self._known, self._bare = tuple(parts), None, bare
            self._attention = use_attention(self._base[0])
            self._attention.__enter__()

    def leave(self) -> None:
        if self._parts:
            self._parts, self._known = (), None
            self._attention.__exit__(None, None, None)

    @contextmanager
    def aside(self) -> Iterator[None]:
        parts, attention, self._parts = self._parts, self._attention, ()
        try:
            yield
        finally:
            self._parts, self._attention = parts, attention

    # ── what the rows attend to ─────────────────────────────────────────────────────────────────────────────────

    def vocabulary(self) -> nn.Module:
        """The base's embedding module: token ids (P,) to input embeddings (P, D)."""
        return self._base[0].get_submodule(self._layout.embed)

    def read(self, embeddings: Tensor) -> Tensor:
        """The keys and values (N, P, 2·L, H, W) that the base computes for embeddings (N, P, D), differentiable."""
        recorded: dict[int, tuple[Tensor, Tensor]] = {}
        decoder = self._decoder[0]
        positions = torch.arange(embeddings.shape[1], device=embeddings.device)[None]
        training = decoder.training
        decoder.eval()  # nothing to recompute in backward, when rows are routed
        try:
            with use_attention(self._base[0]), self._bare():  # virtual tokens see only each other
                decoder(
                    inputs_embeds=embeddings.to(self._base[0].dtype),
                    position_ids=positions,
                    use_cache=False,
                    record=recorded,
                )
        finally:
            decoder.train(training)
        pairs = [each for layer in range(self.layers) for each in recorded[layer]]
        return torch.stack(pairs).permute(1, 3, 0, 2, 4)  # 2L N H P W -> N P 2L H W

    def _contents(self) -> tuple[Tensor, Tensor]:
        """Keys and values (2·L, N, H, P, W) padded to the longest, and lengths (N,), for N rows or one for all."""
        distinct = [part for part in dict.fromkeys(self._parts) if part is not None]
        state = state_of(parameter for part in distinct for parameter in part.parameters())
        graph = torch.is_grad_enabled() and any(p.requires_grad for part in distinct for p in part.parameters())
        if self._known is not None and not graph and self._known[0] == state:
            return self._known[1:]
        made = [part.virtual() for part in distinct]
        embedded = [i for i, each in enumerate(made) if each.dim() == 2]
        if embedded:
            read = self.read(pad_sequence([made[i] for i in embedded], batch_first=True))
            for row, i in zip(read, embedded, strict=True):
                made[i] = row[: made[i].shape[0]]
        dtype, device = self._base[0].dtype, made[0].device
        by_part = {id(part): each.to(dtype) for part, each in zip(distinct, made, strict=True)}
        nothing = torch.zeros(0, *self.shape, dtype=dtype, device=device)
        rows = [nothing if part is None else by_part[id(part)] for part in self._parts]
        lengths = torch.tensor([row.shape[0] for row in rows], device=device)
        contents = pad_sequence(rows, batch_first=True).permute(2, 0, 3, 1, 4).contiguous()
        self._known = None if graph else (state, contents, lengths)
        return contents, lengths

    def begin(self, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
        """Hand the rows' keys and values to this pass of the decoder, and move its own tokens behind them."""
        if not self._parts:
            return None
        kwargs = {**dict(zip(self._names, args, strict=False)), **kwargs}
        tokens = kwargs.get("inputs_embeds") if kwargs.get("input_ids") is None else kwargs["input_ids"]
        assert tokens is not None
        batch, length = tokens.shape[:2]
        contents, lengths = self._contents()
        cache = kwargs.get("cache") or kwargs.get("past_key_values")
        past = cache.get_seq_length() if cache is not None else 0
        longest = contents.shape[3]
        taking = [part is not None and part.takes_positions for part in self._parts]
        shift = lengths * torch.tensor(taking, device=lengths.device)
        text = int(past) + length
        if self.limit is not None and text + longest > self.limit < text + (taken := int(shift.max())):
            raise ValueError(
                f"{taken} virtual tokens and {text} of text exceed the base's {self.limit} positions: "
                "shorten the text or the prefix"
            )
        valid = None
        if len(self._parts) > 1:
            valid = torch.arange(longest, device=lengths.device) < lengths[:, None]
            shift = shift.repeat_interleave(repeats(batch, len(lengths)))
        kwargs["position_ids"] = self._positions(kwargs, past, length, tokens.device) + shift[:, None]
        pairs = contents.unbind(0)
        kwargs["memory"] = [LayerMemory(pairs[2 * i], pairs[2 * i + 1], valid) for i in range(self.layers)]
        return (), kwargs

    def _positions(self, kwargs: dict[str, Any], past: Any, length: int, device: torch.device) -> Tensor:
        """The positions (1 or B, T) that the decoder would have used."""
        if kwargs.get("position_ids") is not None:
            return kwargs["position_ids"]
        mask = kwargs.get("attention_mask")
        if self._layout.positions_from_mask and mask is not None:
            return (mask.cumsum(1) * mask - 1).long()[:, past:]
        return torch.arange(length, device=device)[None] + past
