"""Examples of like length into batches under a budget, the same for the same seed and epoch.

Shape letters: B rows of a batch, T tokens of its longest row.
"""

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from halka.data.tokens import Tokens

NO_LOSS = -100
"""The label that torch's cross entropy and transformers pass over."""


@dataclass(frozen=True, eq=False)
class Batch:
    """Three int64 tensors (B, T). Labels stand at their own token's place (not shifted), `NO_LOSS` where no loss is."""

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    labels: torch.Tensor

    @property
    def tokens(self) -> int:
        """Tokens without the padding."""
        return int(self.attention_mask.sum())

    def to(self, device: torch.device | str) -> "Batch":
        return Batch(self.input_ids.to(device), self.attention_mask.to(device), self.labels.to(device))


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
        raise ValueError("give batch_tokens (tokens a batch, padding included), batch_size (examples a batch) or both")
    for name, limit in (("batch_tokens", batch_tokens), ("batch_size", batch_size)):
        if limit is not None and limit < 1:
            raise ValueError(f"{name} is {limit}; it must be at least 1")
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
        raise ValueError(f"side is {side!r}; choose left or right")
    if not items:
        raise ValueError("a batch needs at least one item")
    shape = (len(items), max(len(item.ids) for item in items))
    input_ids = torch.full(shape, pad_id, dtype=torch.int64)
    attention_mask = torch.zeros(shape, dtype=torch.int64)
    labels = torch.full(shape, NO_LOSS, dtype=torch.int64)
    for row, item in enumerate(items):
        length = len(item.ids)
        place = slice(0, length) if side == "right" else slice(shape[1] - length, shape[1])
        ids = torch.tensor(item.ids, dtype=torch.int64)
        input_ids[row, place] = ids
        attention_mask[row, place] = 1
        labels[row, place] = ids.masked_fill(~torch.tensor(item.loss, dtype=torch.bool), NO_LOSS)
    return Batch(input_ids, attention_mask, labels)


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
