"""Batches: examples of similar length together, within a budget of tokens or rows; reproducible from seed and epoch.

Shape letters: B rows of a batch, T tokens of its longest row.
"""

import math
import random
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch

from halka.data.packing import computed_tokens, paths_of
from halka.data.tokens import Tokens
from halka.util.errors import HalkaError
from halka.util.transfer import to_device

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

    def to(self, device: torch.device | str) -> "Batch":
        """What the base reads goes there; labels stay on the CPU, where the losses look for them without a wait."""
        ids, mask, *types = to_device([*self.inputs.values()], device)
        return Batch(ids, mask, self.labels, *types)


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
    _check_limits(batch_tokens, batch_size)
    rng = random.Random(f"{seed}/{epoch}")
    order = _by_length(lengths, rng)
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


def plan_packed(
    items: Sequence[Tokens],
    *,
    seed: int,
    epoch: int,
    batch_tokens: int | None = None,
    batch_size: int | None = None,
    group_shared: bool = False,
) -> list[list[int]]:
    """As `plan`, for packed batches: `batch_tokens` limits the tokens that are computed, as `pack` makes them.

    Examples come in the order of `plan`, so a batch has more of them where padding or common beginnings are saved.
    `group_shared` brings examples with common beginnings together instead, in an order that differs by epoch.

    Raises HalkaError as `plan` does.
    """
    _check_limits(batch_tokens, batch_size)
    rng = random.Random(f"{seed}/{epoch}")
    paths = paths_of(items)
    order = _by_beginning(items, rng) if group_shared else _by_length([len(item) for item in items], rng)

    def fits(start: int, size: int) -> bool:
        batch = [paths[index] for index in order[start : start + size]]
        return batch_tokens is None or computed_tokens(batch) <= batch_tokens

    batches: list[list[int]] = []
    start, size = 0, 1
    while start < len(order):
        left = len(order) - start
        size = _largest(partial(fits, start), limit=min(batch_size or left, left), guess=size)
        batches.append(order[start : start + size])
        start += size
    rng.shuffle(batches)
    return batches


def _check_limits(batch_tokens: int | None, batch_size: int | None) -> None:
    if batch_tokens is None and batch_size is None:
        raise HalkaError("set batch_tokens (tokens of a batch), batch_size (examples of a batch) or both")
    for name, limit in (("batch_tokens", batch_tokens), ("batch_size", batch_size)):
        if limit is not None and limit < 1:
            raise HalkaError(f"{name} is {limit}; it must be at least 1")


def _by_length(lengths: Sequence[int], rng: random.Random) -> list[int]:
    """Indices from short to long; those whose lengths differ by up to some 4 % are shuffled among each other."""
    order = list(range(len(lengths)))
    rng.shuffle(order)
    order.sort(key=lambda index: round(16 * math.log2(max(lengths[index], 1))))  # stable: the shuffle stays within
    return order


def _by_beginning(items: Sequence[Tokens], rng: random.Random) -> list[int]:
    """Indices such that those with a common beginning are adjacent, sorted by a shuffled order of the vocabulary."""
    order = list(range(len(items)))
    rng.shuffle(order)  # of equal examples
    rank = list(range(1 + max((max(item.ids) for item in items), default=0)))
    rng.shuffle(rank)
    order.sort(key=lambda index: [rank[token] for token in items[index].ids])
    return order


def _largest(fits: Callable[[int], bool], limit: int, guess: int) -> int:
    """A size from 1 to `limit` that fits, where the next one is over the limit or does not; near `guess`.

    1 is taken whether it fits or not.
    """
    low, high, step = 1, limit + 1, 1  # low fits, high does not
    size = min(max(guess, 2), limit)
    while low < size < high:
        if fits(size):
            low, size = size, size + step
        else:
            high, size = size, size - step
        step *= 2
    return low + bisect_left(range(low + 1, high), True, key=lambda size: not fits(size))


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
    tensor = torch.full((len(rows), max(map(len, rows))), fill, dtype=torch.int64, device="cpu")
    for row, values in zip(tensor, rows, strict=True):
        columns = slice(0, len(values)) if side == "right" else slice(len(row) - len(values), len(row))
        row[columns] = torch.tensor(values, dtype=torch.int64, device="cpu")
    return tensor


def mask_of(rows: Sequence[Sequence[int]], side: Side = "right") -> torch.Tensor:
    """1 where `padded` has a row's own values, 0 at the padding."""
    return padded([[1] * len(values) for values in rows], 0, side)
