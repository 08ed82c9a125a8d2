"""Examples of like length into batches under a budget, the same for the same seed and epoch.

Shape letters: B rows of a batch, T tokens of its longest row.
"""

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from halka.data.tokens import Tokens
from halka.util.errors import HalkaError

IGNORE_INDEX = -100
"""The label that torch's cross entropy and transformers pass over."""


@dataclass(frozen=True, eq=False)
class Batch:
    """int64 tensors: tokens (B, T), their mask (B, T), and labels, `IGNORE_INDEX` where no loss is.

    Of a language model labels stand at their own token's place (B, T), not shifted; of a tagger at each word's first
    token; of a classifier they are one a row (B,); of a sequence-to-sequence model they are the answer's tokens (B, S).
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    labels: torch.Tensor
    token_type_ids: torch.Tensor | None = None  # 1 at the second of two texts, where a base tells them apart

    @property
    def inputs(self) -> dict[str, torch.Tensor]:
        """What the base receives."""
        given = {"input_ids": self.input_ids, "attention_mask": self.attention_mask}
        return given if self.token_type_ids is None else {**given, "token_type_ids": self.token_type_ids}

    @property
    def tokens(self) -> int:
        """Tokens without the padding."""
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
    """The examples' indices, batch by batch, every one exactly once; reproducible from (seed, epoch).

    A batch holds at most `batch_size` examples and at most `batch_tokens` tokens, padding included (rows x longest);
    with both, whichever is reached first. An example longer than the budget has a batch of its own. Lengths within
    some 4 % count as alike: such examples meet others in every epoch. The order of the batches is shuffled.

    Raises:
        ValueError: neither limit is given, or one is below 1.
    """
    if batch_tokens is None and batch_size is None:
        raise HalkaError("give batch_tokens (tokens a batch, padding included), batch_size (examples a batch) or both")
    for name, limit in (("batch_tokens", batch_tokens), ("batch_size", batch_size)):
        if limit is not None and limit < 1:
            raise HalkaError(f"{name} is {limit}; it must be at least 1")
    rng = random.Random(f"{seed}/{epoch}")
    order = list(range(len(lengths)))
    rng.shuffle(order)
    order.sort(key=lambda index: round(16 * math.log2(max(lengths[index], 1))))  # stable: the shuffle stays within
    planned: list[list[int]] = []
    longest = 0
    for index in order:
        widened = max(longest, lengths[index])
        rows = len(planned[-1]) + 1 if planned else math.inf
        if rows <= (batch_size or math.inf) and rows * widened <= (batch_tokens or math.inf):
            planned[-1].append(index)
            longest = widened
        else:
            planned.append([index])
            longest = lengths[index]
    rng.shuffle(planned)
    return planned


def collate(items: Sequence[Tokens], pad_id: int, side: str = "right") -> Batch:
    """Pads the items to their longest, on the `side` "right" (training) or "left" (generation).

    Raises:
        ValueError: there are no items, or `side` is neither.
    """
    if side not in ("left", "right"):
        raise HalkaError(f"side is {side!r}; choose left or right")
    labels = [[t if loss else IGNORE_INDEX for t, loss in zip(item.ids, item.loss, strict=True)] for item in items]
    ids = [item.ids for item in items]
    return Batch(padded(ids, pad_id, side), mask_of(ids, side), padded(labels, IGNORE_INDEX, side))


def padded(rows: Sequence[Sequence[int]], fill: int, side: str = "right") -> torch.Tensor:
    """The rows as one tensor (B, T), filled up to the longest. Raises ValueError if there are none."""
    if not rows:
        raise HalkaError("a batch needs at least one item")
    whole = torch.full((len(rows), max(map(len, rows))), fill, dtype=torch.int64)
    for row, values in zip(whole, rows, strict=True):
        place = slice(0, len(values)) if side == "right" else slice(len(row) - len(values), len(row))
        row[place] = torch.tensor(values, dtype=torch.int64)
    return whole


def mask_of(rows: Sequence[Sequence[int]], side: str = "right") -> torch.Tensor:
    """1 where `padded` has a row's own values, 0 where it is filled up."""
    return padded([[1] * len(values) for values in rows], 0, side)


def batches(
    items: Sequence[Tokens],
    *,
    pad_id: int,
    seed: int,
    epoch: int,
    batch_tokens: int | None = None,
    batch_size: int | None = None,
    side: str = "right",
) -> Iterator[Batch]:
    """One epoch, batch by batch: `plan`, then `collate`. Raises as they do."""
    lengths = [len(item.ids) for item in items]
    for indices in plan(lengths, seed=seed, epoch=epoch, batch_tokens=batch_tokens, batch_size=batch_size):
        yield collate([items[index] for index in indices], pad_id, side)
