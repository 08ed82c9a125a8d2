"""Where virtual tokens join a base: a stack of layers that attend to them, or that receives them as input."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from halka.core import VirtualPart
from halka.models.layouts import Layout
from halka.util.cached import Cached
from halka.util.errors import HalkaError
from halka.util.mode import in_mode

T = TypeVar("T")


class LayerStack:
    """A base's decoder or encoder: how many layers have attention, of which shape, and how its passes are called.

    shape   of a token's keys and values in these L layers, (2·L, H, head width), if they are alike
    first   the position of the first token
    limit   how many positions there are; None if there is no end
    """

    def __init__(self, base: Any, layout: Layout):
        self.layout = layout
        self.module: Any = base.get_submodule(layout.decoder)
        self.embed: nn.Module = base.get_submodule(layout.embed)
        layers = [layer for layer in base.get_submodule(layout.layers).children() if layout.has_attention(layer)]
        self.attentions: tuple[Any, ...] = (*(layer.get_submodule(layout.attention) for layer in layers),)
        self.layers = len(layers)
        config = self.module.config.get_text_config()
        first = config if layout.alike else config.per_layer_config[0]
        heads = config.num_attention_heads
        width = getattr(first, "head_dim", None) or config.hidden_size // heads
        self.shape = (2 * self.layers, getattr(first, "num_key_value_heads", None) or heads, width)
        self.padding = config.pad_token_id
        self.first = self.padding + 1 if layout.positions == "words" else 0
        positions = getattr(config, "max_position_embeddings", None)
        self.limit: int | None = None if positions is None else positions - self.first
        self._names = tuple(inspect.signature(self.module.forward).parameters)  # of what is given by position

    def named(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """What a pass receives, all of it by name."""
        return {**dict(zip(self._names, args, strict=False)), **kwargs}

    def run(self, **inputs: Any) -> Any:
        """A pass in eval mode: nothing of it is recomputed in backward, when other rows may be routed."""
        with in_mode(False, self.module):
            return self.module(use_cache=False, **inputs)

    def run_from_start(self, embeddings: Tensor, **inputs: Any) -> Any:
        """A pass over embeddings (N, P, D) at the first positions. Raises HalkaError where there are fewer."""
        self.check(embeddings.shape[1], 0)
        inputs["inputs_embeds"] = embeddings
        start = torch.zeros(1, 1, dtype=torch.int64, device=embeddings.device)
        return self.run(**inputs, **self.positions(inputs, 0, start))

    def positions(self, kwargs: dict[str, Any], past: Any, shift: Tensor) -> dict[str, Tensor]:
        """As arguments of a pass, the positions (1 or B, T) of its text, moved by shift (1 or B, 1 or T)."""
        if self.layout.positions == "relative":
            return {}
        positions, mask = kwargs.get("position_ids"), kwargs.get("attention_mask")
        ids, tokens = kwargs.get("input_ids"), tokens_of(kwargs)
        if positions is not None:
            return {"position_ids": positions + shift}
        if self.layout.positions == "mask" and mask is not None:
            return {"position_ids": (mask.cumsum(1) * mask - 1).long()[:, past:] + shift}
        if self.layout.positions == "words" and ids is not None:
            words = ids != self.padding
            return {"position_ids": self.padding + (words.cumsum(1) + past + shift) * words}
        return {"position_ids": torch.arange(tokens.shape[1], device=tokens.device)[None] + self.first + past + shift}

    def bias(self, lengths: Tensor, tokens: int, past: int, device: torch.device) -> Tensor | None:
        """With relative positions, what is added to scores of virtual tokens: (N, Q, T, P) for lengths (N,) on the CPU.

        A row's last one stands right before its text, of which `past` tokens came before this pass.
        """
        if self.layout.positions != "relative":
            return None
        longest, rows = int(lengths.max()), []
        for length in lengths.tolist():
            keys = self.attentions[0].compute_bias(tokens, length, device, past + length)
            rows.append(nn.functional.pad(keys, (0, longest - length)))
        return torch.cat(rows)

    def check(self, virtual: int, text: int) -> None:
        """Raises HalkaError for more tokens than there are positions."""
        if self.limit is not None and virtual + text > self.limit:
            beside, way = (f" and {text} of text", "the text or the prefix") if text else ("", "the prefix")
            raise HalkaError(
                f"{virtual} virtual tokens{beside} exceed the base's {self.limit} positions: shorten {way}"
            )


@dataclass(frozen=True)
class LayerMemory:
    """One layer's virtual keys and values (R, H, P, W) for R rows, or one for all; valid (R, P), None if all are.

    bias    what a base with relative positions adds to their scores, (R, Q, T, P)
    gates   of tokens that are attended to apart from the text: the factor on their attention, (R,)
    """

    keys: Tensor
    values: Tensor
    valid: Tensor | None
    bias: Tensor | None = None
    gates: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(R, P)."""
        return self.keys.shape[0], self.keys.shape[2]

    def on_device(self, device: torch.device) -> LayerMemory:
        """The virtual tokens on a layer's device."""
        tensors = (self.keys, self.values, self.valid, self.bias, self.gates)
        if all(tensor is None or tensor.device == device for tensor in tensors):
            return self
        return LayerMemory(*(None if tensor is None else tensor.to(device) for tensor in tensors))  # type: ignore[arg-type]

    def of_run(self, run: int) -> LayerMemory:
        """A run's own, or what all runs share."""
        if len(self.keys) == 1:
            return self
        tensors = (self.keys, self.values, self.valid, self.bias, self.gates)
        return LayerMemory(*(None if rows is None else rows[run : run + 1] for rows in tensors))  # type: ignore[arg-type]


class Recorded:
    """A pass's keys and values by layer. It is no dict, since FSDP copies those among a layer's arguments."""

    def __init__(self) -> None:
        self._by_layer: dict[int, tuple[Tensor, Tensor]] = {}

    def __setitem__(self, layer: int, pair: tuple[Tensor, Tensor]) -> None:
        self._by_layer[layer] = pair

    def __getitem__(self, layer: int) -> tuple[Tensor, Tensor]:
        return self._by_layer[layer]


def tokens_of(kwargs: dict[str, Any]) -> Tensor:
    """Token ids (B, T), or embeddings (B, T, D), of a pass."""
    return kwargs["inputs_embeds"] if kwargs.get("input_ids") is None else kwargs["input_ids"]


class LayerTokens(nn.Module, Generic[T]):
    """The virtual tokens that rows have at a stack's layers, made into contents T once for all passes of a block.

    shape   of a token, as `core.Reader` has it
    """

    def __init__(self, base: Any, stack: LayerStack, shape: tuple[int, ...]):
        super().__init__()
        self.parts: tuple[VirtualPart | None, ...] = ()  # a row's each, or one for all
        self.bare: Callable[[], AbstractContextManager[None]] = nullcontext
        self.stack, self.shape = stack, shape
        self._base = (base,)  # in a tuple, so that the base is no submodule of this one
        self._contents = Cached[T]()

    @contextmanager
    def using(
        self, parts: Sequence[VirtualPart | None], bare: Callable[[], AbstractContextManager[None]]
    ) -> Iterator[None]:
        """Within the block rows have these, for which the base computes within `bare()`."""
        outer = self.parts, self.bare, self._contents
        self.parts, self.bare, self._contents = tuple(parts), bare, Cached()
        try:
            yield
        finally:
            self.parts, self.bare, self._contents = outer

    def contents(self) -> T:
        """What `compute` makes of the parts, for N rows or one for all."""
        distinct = [part for part in dict.fromkeys(self.parts) if part is not None]
        parameters = [parameter for part in distinct for parameter in part.parameters()]
        return self._contents.get(parameters, lambda: self.compute(distinct))

    def compute(self, distinct: Sequence[VirtualPart]) -> T:
        raise NotImplementedError
