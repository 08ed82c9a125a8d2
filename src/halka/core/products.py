"""Products of what parts compute with: a weight for all rows, for each row, or for each run of tokens."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Grouped(NamedTuple):
    """A weight (O, I) for each run of tokens; run i is the next `sizes[i]` of them, or none."""

    weights: Sequence[Tensor]
    sizes: Sequence[int]


def linear(x: Tensor, weight: Tensor | Grouped, bias: Tensor | None = None) -> Tensor:
    """x (B, T, I) times a weight (R, I), or a weight for each row (B, R, I); bias (R,), or (B, 1, R).

    Of experts: x (C, I) times a weight for each run of tokens; bias (C, R).
    """
    if isinstance(weight, Grouped):
        runs = zip(x.split(list(weight.sizes)), weight.weights, strict=True)
        result = torch.cat([_of_run(run, each) for run, each in runs if len(run)])
        return result if bias is None else result + bias
    if weight.dim() == 2:
        return F.linear(x, weight, bias)
    result = _one_token(x, weight) if x.shape[1] == 1 and _readable_once(weight) else x @ weight.mT
    return result if bias is None else result + bias


def _of_run(x: Tensor, weight: Tensor) -> Tensor:
    """x (C, I) times a weight (R, I), with C filled up in bf16: a CPU makes a kernel anew for every other C.

    Every run is copied, so that none keeps all of them for the backward pass.
    """
    if x.dtype != torch.bfloat16 or x.device.type != "cpu":
        return F.linear(x, weight)
    return F.linear(F.pad(x, (0, 0, 0, -len(x) % 16)), weight)[: len(x)]


def _readable_once(weight: Tensor) -> bool:
    """Whether `_one_token` can take it: laid out as (B, I, R), on a CPU, with nothing to differentiate."""
    return weight.device.type == "cpu" and weight.mT.is_contiguous() and not torch.is_grad_enabled()


def _one_token(x: Tensor, weight: Tensor) -> Tensor:
    """x (B, 1, I) times a weight for each row (B, R, I): sums of weighted rows of a table, as embedding bags are.

    Each weight is read once; torch's batched product of one row takes up to four times as long.
    """
    batch, width, length = weight.shape
    rows, starts = _bags(batch, length)
    table = weight.mT.reshape(batch * length, width)
    return torch.embedding_bag(table, rows, starts, False, 0, False, x.reshape(-1))[0][:, None]


@functools.lru_cache(maxsize=64)
def _bags(count: int, length: int) -> tuple[Tensor, Tensor]:
    """The rows of `count` bags of `length` rows each, one after another, and where each bag starts."""
    with torch.inference_mode(False):
        rows = torch.arange(count * length, dtype=torch.int32)
        return rows, rows[::length].contiguous()
