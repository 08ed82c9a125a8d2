"""One step over a line: torch's products of all tokens, and kernels for each row's own.

    N tokens of the line   D hidden width   F inner width   Q query heads   H key/value heads   W head width

Residuals are fp32, all else is in the base's precision. A single token is one call of a kernel,
unless its adapter has parts that no kernel computes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from halka.engine.line import Line
from halka.engine.llama import kernels
from halka.engine.llama.attention_tiles import TileAttention, batched, tiles_of
from halka.engine.llama.line_adapters import LineAdapters, stacked
from halka.engine.llama.product import NO_SCALE, Product
from halka.engine.llama.row_adapter import Tables
from halka.engine.llama.row_parts import RowParts, pieces_of
from halka.engine.llama.weights import LlamaLayer, LlamaWeights
from halka.kernels.shared import Shared, array_of, shared
from halka.models.attention.paged import SIZE, KVBlocks, PagedPlan, PagedText
from halka.util.machine import CPU
from halka.util.precision import slow_in_bfloat16

SHORT = 512  # tokens of a text by the blocks they see, up to which each attends by itself: tiles take longer to set up


class Scratch:
    """What is computed between products, for up to N tokens."""

    def __init__(self, weights: LlamaWeights, count: int):
        D, Q, H, W, F, _ = weights.dims

        def empty(*shape: int, dtype: torch.dtype = weights.embed.dtype) -> Shared:
            return shared(torch.empty(count, *shape, dtype=dtype))

        self.count = count
        self.x = empty(D, dtype=torch.float32)
        self.h, self.y, self.z = empty(D), empty(D), empty(F)
        self.qkv, self.gate_up, self.out = empty((Q + 2 * H) * W), empty(2 * F), empty(Q * W)
        self.q = empty(Q, W)

    def rows(self, count: int) -> Scratch:
        own = object.__new__(Scratch)
        for name, value in vars(self).items():
            setattr(own, name, value.rows(count) if isinstance(value, Shared) else count)
        return own


class LlamaStep:
    """Computes lines whose adapters act where the step passes through (`LineAdapters.misplaced` is None)."""

    def __init__(self, weights: LlamaWeights):
        D, Q, H, W, F, _ = self.dims = weights.dims
        self.weights, self.watched = weights, weights.watch()
        self.embed, self.head, self.norm = (array_of(it) for it in (weights.embed, weights.head, weights.norm))
        self.eps, self.scale = np.float32(weights.eps), np.float32(weights.scale)
        dtype = weights.embed.dtype
        self.pairs = kernels.PAIRS and dtype == torch.bfloat16 and not any((D % 2, Q * W % 2, F % 2))
        how = self.pairs, dtype, dtype == torch.bfloat16 and slow_in_bfloat16(CPU)
        self.products = [
            {name: Product(it.weight, it.scale, it.bias, *how) for name, it in layer.products.items()}
            for layer in weights.layers
        ]
        self.to_logits = Product(weights.head, None, None, *how)
        self.norms = [[array_of(norm) for norm in layer.norms()] for layer in weights.layers]
        self._addresses = np.array(weights.addresses(), np.int64)
        self._windows = np.array([layer.window or 0 for layer in weights.layers])
        self._scratch = Scratch(weights, 64)
        self._cos_sin = self._cos_sin_of(1024)
        self._partial: tuple[Any, Any] | None = None
        self.attend_tiles = TileAttention(H, dtype)

    def __call__(self, line: Line, adapters: LineAdapters) -> Tensor:
        """The logits (len(line.last), V), fp32."""
        threads = torch.get_num_threads()
        if len(line.tokens) == 1 and len(line.last) == 1 and not adapters.edits:
            return self._one_row(line, adapters, threads)
        return _Pass(self, line, adapters, threads).logits()

    def rotary(self, positions: Any) -> tuple[Any, Any]:
        """Cosines and sines (N, W), fp32, of these positions (N,)."""
        if (most := int(positions.max())) >= len(self._cos_sin[0]):
            self._cos_sin = self._cos_sin_of(2 * most)
        return self._cos_sin[0][positions], self._cos_sin[1][positions]

    def _cos_sin_of(self, count: int) -> tuple[Any, Any]:
        cos, sin = self.weights.rotary(torch.empty(1), torch.arange(count)[None])
        return cos[0].numpy(), sin[0].numpy()

    def _one_row(self, line: Line, adapters: LineAdapters, threads: int) -> Tensor:
        plan, logits = line.plan, torch.empty(1, len(self.head))
        cos, sin = self.rotary(plan.positions.numpy())
        kernels.one_row(
            *(threads, self.embed, self._addresses, self.norm, self.head, line.tokens[0], self.eps),
            *(cos[0], sin[0], array_of(plan.kv.data), int(plan.slots[0])),
            *(plan.tables[0].numpy(), plan.counts[0].numpy(), plan.begins[0].numpy(), int(plan.positions[0])),
            *(self._windows, self.scale, *(table.array[0] for table in adapters.tables), self.dims.Q, self.dims.F),
            *(partial[0] for partial in self._partial_sums(threads)),
            logits[0].numpy(),
        )
        return logits

    def _partial_sums(self, threads: int) -> tuple[Any, Any]:
        """What one row's threads attend to, the same from one line to the next."""
        if self._partial is None or self._partial[0].shape[1] != threads:
            self._partial = kernels.partial_sums(1, threads, self.dims.Q, self.dims.W)
        return self._partial

    def warm(self) -> None:
        """Compile all kernels: by a token alone, one whose logits nobody wants, a chunk, and one beside a chunk."""
        D, _, H, W, _, L = self.dims
        kv = KVBlocks(2, (2 * L, H, W), self.weights.embed.dtype)
        tables = stacked([Tables.empty(L)])
        with torch.inference_mode():
            for counts, last in (([1], [0]), ([1], []), ([2], [1]), ([1, 2], [0, 2])):
                texts = [PagedText(count, [number], [count], [0]) for number, count in enumerate(counts)]
                places = [(number, place) for number, count in enumerate(counts) for place in range(count)]
                slots, positions = [SIZE * number + place for number, place in places], [place for _, place in places]
                adapters = LineAdapters((None,) * len(counts), (), (-1,) * len(counts), tables, {}, None)
                plan = PagedPlan(kv, texts, positions, slots, counts)
                self(Line([0] * len(places), plan, adapters.names, last), adapters)
            room, nobody = self.scratch(1), np.empty(0, np.int64)
            low_rank, bottlenecks, factors = (table.array for table in tables)
            h, x, y, widths = room.h.array, room.x.array, room.y.array, np.array([D])
            kernels.pack_low_rank(1, *[np.empty((0, 2), np.int64)] * 2, NO_SCALE, np.empty((0, 3), np.int64), h[0])
            kernels.add_low_rank(1, h, y, low_rank, nobody, nobody, 0, 0, widths, 1)
            kernels.add_bottlenecks(1, h, x, y, bottlenecks, nobody, nobody, 0, 0)
            kernels.scale(1, y, factors, nobody, nobody, 0, 0, widths)
            if self.pairs:
                kernels.add_low_rank_chunks(1, h, y, low_rank, nobody, nobody, nobody, 0, 0, widths, 1)

    def scratch(self, count: int) -> Scratch:
        """Room for a line of so many tokens, the same from one line to the next."""
        if count > self._scratch.count:
            self._scratch = Scratch(self.weights, count)
        return self._scratch.rows(count)


class _Pass:
    """A line on its way through the layers."""

    def __init__(self, step: LlamaStep, line: Line, adapters: LineAdapters, threads: int):
        self._step, self._line, self._threads = step, line, threads
        plan = line.plan
        self._kv, self._slots, self._positions = array_of(plan.kv.data), plan.slots.numpy(), plan.positions.numpy()
        self._blocks = plan.tables.numpy(), plan.counts.numpy(), plan.begins.numpy()
        self._rotary = step.rotary(self._positions)
        self._scratch = step.scratch(len(line.tokens))
        own = self._scratch.h, self._scratch.x
        self._parts = RowParts(adapters, plan.forest.runs, *own, threads, step.pairs)
        short = np.array([_short(text, step.pairs) for text in plan.texts])
        texts = np.repeat(np.arange(len(plan.texts)), [text.tokens for text in plan.texts])  # of each token
        self._places = np.flatnonzero(short[texts])
        self._single = texts[self._places]
        pieces = pieces_of(len(self._single), threads)
        self._sums = kernels.partial_sums(len(self._single), pieces, step.dims.Q, step.dims.W)
        long = np.flatnonzero(~short).tolist()
        windows = {layer.window for layer in step.weights.layers}
        self._tiles = {
            window: batched([tile for number in long for tile in tiles_of(plan, number, window)]) for window in windows
        }

    def logits(self) -> Tensor:
        step, scratch = self._step, self._scratch
        torch.index_select(step.weights.embed, 0, torch.tensor(self._line.tokens), out=scratch.h.tensor)
        scratch.x.tensor.copy_(scratch.h.tensor)
        nothing = scratch.y.array[:0]
        for number, layer in enumerate(step.weights.layers):
            self._attention(number, layer, scratch.y.array if number else nothing)
            self._mlp(number, layer)
        kernels.add_norm(self._threads, scratch.x.array, scratch.y.array, step.norm, step.eps, scratch.h.array)
        hidden = shared(scratch.h.tensor[torch.tensor(self._line.last, dtype=torch.int64)])
        logits = torch.empty(len(self._line.last), len(step.head))  # in fp32, as of one row: bf16 would make ties
        step.to_logits(self._threads, hidden, shared(logits))
        return logits

    def _attention(self, number: int, layer: LlamaLayer, y: Any) -> None:
        step, scratch, kv = self._step, self._scratch, self._kv
        norm, q_norm, k_norm, _ = step.norms[number]
        kernels.add_norm(self._threads, scratch.x.array, y, norm, step.eps, scratch.h.array)
        self._product(number, layer, "qkv", scratch.h, scratch.qkv)
        kernels.keep(
            *(self._threads, scratch.qkv.array, q_norm, k_norm, step.eps, *self._rotary, kv, number, self._slots),
            scratch.q.array,
        )
        if len(self._single):
            kernels.attend(
                *(self._threads, scratch.q.array, kv, number, self._places, self._single, *self._blocks),
                *(self._positions, layer.window or 0, step.scale, *self._sums, scratch.out.array),
            )
        for tiles in self._tiles[layer.window]:
            step.attend_tiles(self._threads, scratch.q, kv, number, tiles, step.scale, scratch.out)
        self._product(number, layer, "o", scratch.out, scratch.y)

    def _mlp(self, number: int, layer: LlamaLayer) -> None:
        step, scratch = self._step, self._scratch
        kernels.add_norm(
            self._threads, scratch.x.array, scratch.y.array, step.norms[number][3], step.eps, scratch.h.array
        )
        self._product(number, layer, "gate_up", scratch.h, scratch.gate_up)
        kernels.silu_product(self._threads, scratch.gate_up.array, scratch.z.array)
        self._product(number, layer, "down", scratch.z, scratch.y)

    def _product(self, number: int, layer: LlamaLayer, name: str, x: Shared, y: Shared) -> None:
        """A fused product with what the rows' parts do to its input, and to its outputs."""
        self._parts.edit_input(number, layer, name, x)
        self._step.products[number][name](self._threads, x, y)
        self._parts.edit_output(number, layer, name, x, y)


def _short(text: PagedText, pairs: bool) -> bool:
    """Whether a text's tokens attend one by one, all of them at once, by the kernel that reads pairs of bf16."""
    return text.tokens == 1 or (pairs and text.tokens * len(text.blocks) <= SHORT)
