"""Lines for passes of the engine: texts that grow by some tokens a step, in blocks of their own or shared ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from halka.core import AdaptedModel
from halka.engine.line import Forward, Line
from halka.models.attention.paged import ALWAYS, SIZE, KVBlocks, PagedPlan, PagedText


class Text:
    """What a text has in blocks so far: how many tokens, and of each block its number, tokens and first position."""

    def __init__(self, name: str | None, blocks: Sequence[int] = (), begins: Sequence[int] = (), fill: int = SIZE):
        self.name, self.position = name, sum(SIZE for begin in begins if begin != ALWAYS)
        self.blocks, self.begins, self.counts = [*blocks], [*begins], [fill if b == ALWAYS else SIZE for b in begins]


class Lines:
    """Blocks of a model, in which lines of texts are computed by a pass."""

    def __init__(self, model: AdaptedModel, forward: Forward, seed: int = 0):
        config, self.forward = model.base.config, forward
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self.shape = (2 * config.num_hidden_layers, config.num_key_value_heads, width)
        self.kv = KVBlocks(80, self.shape, next(model.base.parameters()).dtype)
        self.kv.clear(range(80))
        self.generator = torch.Generator().manual_seed(seed)
        self.free = iter(range(1, 80))

    def text(self, name: str | None = None, *, virtual: int = 0, behind: Text | None = None) -> Text:
        """A new text with so many virtual tokens, or behind the whole blocks of another one, which it shares."""
        if behind is not None:
            whole = [index for index, count in enumerate(behind.counts) if count == SIZE]
            return Text(name, [behind.blocks[i] for i in whole], [behind.begins[i] for i in whole])
        if not virtual:
            return Text(name)
        block = next(self.free)
        self.kv.data[block] = torch.randn(self.kv.data[block].shape, generator=self.generator)
        return Text(name, [block], [ALWAYS], virtual)

    def __call__(self, tokens: Mapping[Text, int], last: Sequence[int] | None = None) -> torch.Tensor:
        """The logits after each text's new tokens, so many of each, in this order; or after those at `last`."""
        ids, positions, slots, paged, ends = [], [], [], [], []
        for text, count in tokens.items():
            for _ in range(count):
                if not text.counts or text.counts[-1] == SIZE or text.begins[-1] == ALWAYS:
                    text.blocks.append(next(self.free))
                    text.begins.append(text.position)
                    text.counts.append(0)
                slots.append(text.blocks[-1] * SIZE + text.counts[-1])
                positions.append(text.position)
                text.counts[-1] += 1
                text.position += 1
            ids += torch.randint(3, 97, (count,), generator=self.generator).tolist()
            paged.append(PagedText(count, tuple(text.blocks), tuple(text.counts), tuple(text.begins)))
            ends.append(len(ids) - 1)
        plan = PagedPlan(self.kv, paged, positions, slots, [*tokens.values()])
        return self.forward(Line(ids, plan, tuple(text.name for text in tokens), ends if last is None else last))
