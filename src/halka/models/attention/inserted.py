"""Virtual tokens in an encoder's input: tokens see both ways there, so no pass of their own can stand for them.

They stand before each row's text, whose rows are filled up behind it where others have more of them. What the encoder
returns for tokens is cut to the text's again. A classifier pools over all of them, as peft's does: the first token
where it takes the first, the mean of all where it takes that.

    B rows of a batch   N rows that have virtual tokens of their own, or one for all   P virtual tokens   T of text
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from halka.models.attention.layer_stack import LayerStack
from halka.util.errors import HalkaError
from halka.util.rows import repeats
from halka.util.transfer import numbers

TOKENS, MEAN, ALL = "tokens", "mean", "all"  # what becomes of an encoder's output


class Inserted:
    """The virtual embeddings (P, D) of N rows, or of all in one, in one pass's batch of B."""

    def __init__(self, rows: Sequence[Tensor], batch: int):
        self.longest = max(len(row) for row in rows)
        self.lengths = numbers(tuple(map(len, rows)), rows[0].device)
        self.uneven = any(len(row) != self.longest for row in rows)
        self.rows = rows
        self.batch = batch
        self._times = repeats(batch, len(rows))

    def enter(self, stack: LayerStack, kwargs: dict[str, Any]) -> dict[str, Any]:
        """The encoder's arguments with the virtual tokens. Raises HalkaError for a mask that is not (rows, tokens)."""
        ids, mask = kwargs.get("input_ids"), kwargs.get("attention_mask")
        text = kwargs["inputs_embeds"] if ids is None else stack.embed(ids)
        stack.check(self.longest, text.shape[1])
        virtual = self._of_batch(pad_sequence(list(self.rows), batch_first=True).to(text.dtype))
        changed = {"input_ids": None, "inputs_embeds": self._before(virtual, text), **self.mask(mask, text.shape[1])}
        positions = stack.positions(kwargs, 0, self._of_batch(self.lengths)[:, None]).get("position_ids")
        if positions is not None:
            counted = torch.arange(self.longest, device=text.device)[None] + stack.first
            changed["position_ids"] = self._before(counted, positions)
        if (types := kwargs.get("token_type_ids")) is not None:
            changed["token_type_ids"] = self._before(types.new_zeros(1, self.longest), types)
        return {**kwargs, **changed}

    def mask(self, text_mask: Tensor | None, tokens: int, name: str = "attention_mask") -> dict[str, Tensor]:
        """As an argument, the mask (B, P + T) for that of the text (B, T); none where all tokens are real."""
        if text_mask is None and not self.uneven:
            return {}
        if text_mask is None:
            text_mask = torch.ones(1, tokens, dtype=torch.int64, device=self.lengths.device)
        if text_mask.dim() != 2:
            raise HalkaError(
                f"virtual tokens enter this encoder's input: give it {name} as (rows, tokens), "
                f"not {tuple(text_mask.shape)}"
            )
        return {name: self._before(self._valid().to(text_mask.dtype), text_mask)}

    def leave(self, hidden: Tensor, mask: Tensor | None, how: str) -> Tensor:
        """The encoder's hidden states (B, P + T, D) as what comes next takes them."""
        if how == ALL:
            return hidden
        lengths, tokens = self._of_batch(self.lengths)[:, None], hidden.shape[1] - self.longest
        places = lengths + torch.arange(tokens, device=hidden.device)
        text = hidden.gather(1, places.expand(self.batch, -1)[..., None].expand(-1, -1, hidden.shape[-1]))
        if how == TOKENS:
            return text
        # the mean of the text's becomes that of all: it is taken over the text's mask
        every = torch.arange(hidden.shape[1], device=hidden.device)
        virtual = (hidden * (every < lengths)[..., None]).sum(1, keepdim=True)
        real = mask.sum(1)[:, None] if mask is not None else lengths + tokens
        return (text * ((real - lengths) / real)[..., None] + virtual / real[..., None]).to(hidden.dtype)

    def _valid(self) -> Tensor:
        return torch.arange(self.longest, device=self.lengths.device) < self._of_batch(self.lengths)[:, None]

    def _of_batch(self, rows: Tensor) -> Tensor:
        return rows.repeat_interleave(self._times, dim=0) if len(self.rows) > 1 else rows

    def _before(self, front: Tensor, own: Tensor) -> Tensor:
        """(B, P + T, …) of (1 or B, P, …) and (1 or B, T, …): virtual tokens, the text, then what fills a row up."""
        front, own = (rows.expand(self.batch, *rows.shape[1:]) for rows in (front, own))
        whole = torch.cat([front, own], dim=1)
        if not self.uneven:
            return whole
        rank = torch.where(self._valid(), 0, 2).expand(self.batch, -1)
        order = torch.cat([rank, rank.new_ones(own.shape[:2])], dim=1).argsort(dim=1, stable=True)
        return whole.gather(1, order.view(*order.shape, *[1] * (whole.dim() - 2)).expand_as(whole))
