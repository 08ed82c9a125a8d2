"""Batches: examples of similar length together, within a budget of tokens or rows; reproducible from seed and epoch.

Shape letters: B rows of a batch, T tokens of its longest row.
"""

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from halka.data.tokens import Tokens
from halka.util.errors import HalkaError

IGNORE_INDEX = -100
"""A label without loss, as torch's cross entropy and transformers have it."""

Side = Literal["left", "right"]


@dataclass(frozen=True, eq=False)
class Batch:
    """Padded rows as int64 tensors.

    input_ids, attention_mask   (B, T)
    labels           `IGNORE_INDEX` where there is no loss. Language model: (B, T), at each token's own position, not
                     shifted. Tagger: (B, T), at every word's first token. Classifier: (B,). Sequence to sequence: the
                     answer's tokens (B, S)
    token_type_ids   (B, T), 1 in the second of two texts; None where the base has no token types
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    labels: torch.Tensor
    token_type_ids: torch.Tensor | None = None

    @property
    def inputs(self) -> dict[str, torch.Tensor]:
        """The base's keyword arguments."""
        inputs = {"input_ids": self.input_ids, "attention_mask": self.attention_mask}
        return inputs if self.token_type_ids is None else {**inputs, "token_type_ids": self.token_type_ids}

    @property
    def tokens(self) -> int:
        """The number of tokens without padding."""
        return int(self.attention_mask.sum())

    def to(self, device: torch.device | str) -> "Batch":
        types = None if self.token_type_ids is None else self.token_type_ids.to(device)
        return Batch(self.input_ids.to(device), self.attention_mask.to(device), self.labels.to(device), types)


def plan(
    lengths: Sequence[int],
    *,
    seed: int,
    epoch: int,
    batch_tokens: int | None = None,
    batch_size: int | None = None,
) -> list[list[int]]:
    """The examples' indices batch by batch, each exactly once; reproducible from (seed, epoch).

    A batch has at most `batch_size` examples and at most `batch_tokens` tokens with padding (rows x longest),
    whichever limit is reached first. An example over the budget has a batch of its own. Examples whose lengths differ
    by up to some 4 % are shuffled among each other in every epoch, and so are the batches.

    Raises HalkaError if neither limit is set, or one is below 1.
    """
    if batch_tokens is None and batch_size is None:
        raise HalkaError("set batch_tokens (tokens of a batch with padding), batch_size (examples of a batch) or both")
    for name, limit in (("batch_tokens", batch_tokens), ("batch_size", batch_size)):
        if limit is not None and limit < 1:
            raise HalkaError(f"{name} is {limit}; it must be at least 1")
    rng = random.Random(f"{seed}/{epoch}")
    order = list(range(len(lengths)))
    rng.shuffle(order)
    order.sort(key=lambda index: round(16 * math.log2(max(lengths[index], 1))))  # stable: the shuffle stays within
    batches: list[list[int]] = []
    longest = 0
    for index in order:
        widened = max(longest, lengths[index])
        rows = len(batches[-1]) + 1 if batches else math.inf
        if rows <= (batch_size or math.inf) and rows * widened <= (batch_tokens or math.inf):
            batches[-1].append(index)
            longest = widened
        else:
            batches.append([index])
            longest = lengths[index]
    rng.shuffle(batches)
    return batches


def collate(items: Sequence[Tokens], pad_id: int, side: Side = "right") -> Batch:
    """Pad the items to the longest, on the right for training or on the left for generation.

    Raises HalkaError if there are no items.
    """
    labels = [[t if loss else IGNORE_INDEX for t, loss in zip(item.ids, item.loss, strict=True)] for item in items]
    ids = [item.ids for item in items]
    return Batch(padded(ids, pad_id, side), mask_of(ids, side), padded(labels, IGNORE_INDEX, side))


def padded(rows: Sequence[Sequence[int]], fill: int, side: Side = "right") -> torch.Tensor:
    """The rows as one tensor (B, T), padded with `fill` to the longest. Raises HalkaError if there are none."""
    if side not in ("left", "right"):
        raise HalkaError(f"side is {side!r}; choose left or right")
    if not rows:
        raise HalkaError("a batch needs at least one item")
    tensor = torch.full((len(rows), max(map(len, rows))), fill, dtype=torch.int64)
    for row, values in zip(tensor, rows, strict=True):
        columns = slice(0, len(values)) if side == "right" else slice(len(row) - len(values), len(row))
        row[columns] = torch.tensor(values, dtype=torch.int64)
    return tensor


def mask_of(rows: Sequence[Sequence[int]], side: Side = "right") -> torch.Tensor:
    """1 where `padded` has a row's own values, 0 at the padding."""
    return padded([[1] * len(values) for values in rows], 0, side)


def batches(
    items: Sequence[Tokens],
    *,
    pad_id: int,
    seed: int,
    epoch: int,
    batch_tokens: int | None = None,
    batch_size: int | None = None,
    side: Side = "right",
) -> Iterator[Batch]:
    """One epoch of batches: `plan`, then `collate`. Raises as they do."""
    lengths = [len(item.ids) for item in items]
    for indices in plan(lengths, seed=seed, epoch=epoch, batch_tokens=batch_tokens, batch_size=batch_size):
        yield collate([items[index] for index in indices], pad_id, side)
