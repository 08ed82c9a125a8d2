"""Virtual tokens: what a batch's rows attend to besides their text, of any length.

Under causal attention virtual tokens see only each other, so one pass over a prompt's embeddings a batch is enough,
instead of one in every row; a prefix needs none. Either way a row with P virtual tokens starts its own tokens at
position P, unless its part takes no positions. Nothing enters the cache: where the decoder is called, an argument is
added, and transformers hands that on, layer by layer, to `attention.attend`. In an encoder virtual tokens see the text,
too: there a prompt's enter the input.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

from torch import nn

from halka.core import VirtualPart
from halka.core.interfaces import Arguments
from halka.models.attention.function import use_attention
from halka.models.attention.gated import Gated
from halka.models.attention.inserted import ALL, MEAN, TOKENS, Inserted
from halka.models.attention.layer_stack import LayerStack, tokens_of
from halka.models.attention.virtual_kv import VirtualKV
from halka.models.kinds import kind_of
from halka.models.layouts import Layout
from halka.util.errors import HalkaError

BOTH = "an adapter with a prefix and a prompt works in encoders alone: elsewhere give each an adapter of its own"


class VirtualTokens:
    """Implements `core.VirtualAttention` for one base.

    readers by role, the keys and values: `memory`, those of the decoder's own attention, or of an encoder that stands
            alone; and beside a decoder `memory.encoder` and `memory.cross`, those of its attention to the encoder.
            Besides `memory.gated`, tokens that are attended to apart
    """

    def __init__(self, base: Any, layout: Layout):
        self._base = base
        decoder = LayerStack(base, layout)
        self.readers: dict[str, VirtualKV | Gated] = {
            "memory": VirtualKV(base, decoder),
            "memory.gated": Gated(base, decoder),
        }
        self._entry = None if layout.causal else decoder  # whose input takes a prompt's embeddings
        if layout.encoder is not None:
            self._entry = LayerStack(base, layout.encoder)
            self.readers |= {
                "memory.encoder": VirtualKV(base, self._entry),
                "memory.cross": VirtualKV(base, decoder, over=self._entry),
            }
        self.entries: Sequence[nn.Module] = list(dict.fromkeys(module.stack.module for module in self.readers.values()))
        self._output = _output(base, layout)
        self._inserted: tuple[VirtualPart | None, ...] = ()

    # ── core.VirtualAttention ───────────────────────────────────────────────────────────────────────────────────

    @contextmanager
    def using(
        self, parts: Mapping[str, Sequence[VirtualPart | None]], bare: Callable[[], AbstractContextManager[None]]
    ) -> Iterator[None]:
        parts = dict(parts)
        embedded = tuple(parts.pop("embed", ()))
        if self._entry is None and embedded:
            parts["memory"] = _either(parts.get("memory", (None,) * len(embedded)), embedded)
        with ExitStack() as block:
            block.callback(setattr, self, "_inserted", self._inserted)
            self._inserted = () if self._entry is None else embedded
            for role, reader in self.readers.items():
                block.enter_context(reader.using(parts.get(role, ()), bare))
            block.enter_context(use_attention(self._base))
            yield

    def begin(
        self, entry: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], runs: Sequence[int]
    ) -> Arguments | None:
        """Hand the rows' virtual tokens to this pass, and move its own tokens behind them."""
        at_entry = [reader for reader in self.readers.values() if reader.stack.module is entry]
        kwargs = at_entry[0].stack.named(args, kwargs)
        if self._entry is not None and any(self._inserted):
            if entry is self._entry.module:
                kwargs = self._in_batch(tokens_of(kwargs).shape[0]).enter(self._entry, kwargs)
            else:
                kwargs = self._widened(kwargs)
        for reader in at_entry:
            kwargs = reader.join(kwargs, runs)
        return (), kwargs

    def end(self, entry: nn.Module, kwargs: dict[str, Any], output: Any) -> Any:
        """What an encoder returns for its input's tokens, without those that were inserted."""
        if self._entry is None or entry is not self._entry.module or not any(self._inserted):
            return None
        hidden = self._in_batch(output[0].shape[0]).leave(output[0], kwargs.get("attention_mask"), self._output)
        if isinstance(output, tuple):
            return (hidden, *output[1:])
        return type(output)(**{**output, "last_hidden_state": hidden})

    # ── what enters an encoder's input ──────────────────────────────────────────────────────────────────────────

    def _in_batch(self, batch: int) -> Inserted:
        """Every row's embeddings (P, D) of those that are inserted, in a pass of so many rows."""
        virtual = {id(part): part.virtual() for part in dict.fromkeys(self._inserted) if part is not None}
        nothing = next(iter(virtual.values()))[:0]
        return Inserted([nothing if part is None else virtual[id(part)] for part in self._inserted], batch)

    def _widened(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """A decoder's mask of the encoder's tokens, with those that were inserted there."""
        states, mask = kwargs.get("encoder_hidden_states"), kwargs.get("encoder_attention_mask")
        if states is None:
            return kwargs
        inserted = self._in_batch(states.shape[0])
        tokens = states.shape[1] - inserted.longest
        if mask is not None and mask.shape[1] != tokens:
            return kwargs  # the encoder was run before, without them
        return {**kwargs, **inserted.mask(mask, tokens, "encoder_attention_mask")}


def _either(prefixes: Sequence[VirtualPart | None], prompts: Sequence[VirtualPart | None]) -> list[VirtualPart | None]:
    """Each row's one of the two. Raises HalkaError for a row with both."""
    if any(prefix is not None and prompt is not None for prefix, prompt in zip(prefixes, prompts, strict=True)):
        raise HalkaError(BOTH)
    return [prompt if prefix is None else prefix for prefix, prompt in zip(prefixes, prompts, strict=True)]


def _output(base: Any, layout: Layout) -> str:
    """What the rest of the base takes of an encoder's output."""
    if layout.encoder is None and kind_of(base) != "sequence-classification":
        return TOKENS
    return MEAN if getattr(base.config, "classifier_pooling", "cls") == "mean" else ALL
