"""Products with one weight, or with a weight for each row or run of tokens; and how such weights are stacked.

B rows   T tokens   I, O a weight's widths, in and out   R rank   C tokens in runs
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from halka.util.machine import has_grouped_kernel


class Runs:
    """Runs of tokens, one after another: run i goes on to the token before `ends[i]`, ends (G,) int64."""

    def __init__(self, ends: Tensor):
        self.ends = ends

    @cached_property
    def sizes(self) -> list[int]:
        """How many tokens each run has, for which the host waits for a GPU, once."""
        return [end - start for start, end in pairwise([0, *self.ends.tolist()])]


class Grouped(NamedTuple):
    """Weights (G, O, I), one for each run of tokens."""

    weights: Tensor
    runs: Runs


def linear(x: Tensor, weight: Tensor | Grouped, bias: Tensor | None = None) -> Tensor:
    """x (…, I) times a weight (R, I); or x (B, T, I) times a weight for each row (B, R, I); bias (R,), or (B, 1, R).

    Of experts: x (C, I) times a weight for each run of tokens; bias (C, R).
    """
    if isinstance(weight, Grouped):
        result = _in_one_go(x, weight) if _fits_kernel(x, weight.weights) else _run_by_run(x, weight)
        return result if bias is None else result + bias
    if weight.dim() == 2:
        return F.linear(x, weight, bias)
    by_input = weight.device.type == "cpu" and weight.mT.is_contiguous() and not torch.is_grad_enabled()
    result = _one_token(x, weight) if by_input and x.shape[1] == 1 else x @ weight.mT
    return result if bias is None else result + bias


def _fits_kernel(x: Tensor, weights: Tensor) -> bool:
    """Whether torch's grouped product takes them and is to: on GPUs where it has a kernel of its own.

    Elsewhere it computes run by run, too, and waits for the runs' sizes at every product.
    """
    aligned = all(width * x.element_size() % 16 == 0 for width in weights.shape[1:])
    return x.dtype == torch.bfloat16 and aligned and len(x) > 0 and has_grouped_kernel(x.device)


def _in_one_go(x: Tensor, grouped: Grouped) -> Tensor:
    return torch.ops.aten._grouped_mm(x, grouped.weights.mT, offs=grouped.runs.ends.int())


def _run_by_run(x: Tensor, grouped: Grouped) -> Tensor:
    """The slow twin of `_in_one_go`."""
    runs = zip(x.split(grouped.runs.sizes), grouped.weights.unbind(), strict=True)
    return torch.cat([_of_run(run, own) for run, own in runs if len(run)])


def _of_run(x: Tensor, weight: Tensor) -> Tensor:
    """x (C, I) times a weight (R, I), with C filled up in bf16: a CPU makes a kernel anew for every other C.

    Every run is copied, so that none keeps all of them for the backward pass.
    """
    if x.dtype != torch.bfloat16 or x.device.type != "cpu":
        return F.linear(x, weight)
    return F.linear(F.pad(x, (0, 0, 0, -len(x) % 16)), weight)[: len(x)]


def _one_token(x: Tensor, weight: Tensor) -> Tensor:
    """x (B, 1, I) times a weight for each row (B, R, I), laid out as (B, I, R): weighted sums, as embedding bags are.

    Each weight is read once, on a CPU; torch's batched product of one row takes up to four times as long.
    """
    batch, width, length = weight.shape
    rows, starts = _bags(batch, length)
    table = weight.mT.reshape(batch * length, width)
    return torch.embedding_bag(table, rows, starts, False, 0, False, x.reshape(-1))[0][:, None]


@lru_cache(maxsize=64)
def _bags(count: int, length: int) -> tuple[Tensor, Tensor]:
    """The rows of `count` bags of `length` rows each, one after another, and where each bag starts."""
    with torch.inference_mode(False):
        rows = torch.arange(count * length, dtype=torch.int32, device="cpu")
        return rows, rows[::length].contiguous()


def stacked(tensors: Sequence[Tensor], *, by_input: bool = False) -> Tensor:
    """(N, …) of N vectors or matrices, each filled up with zeros to the largest; vectors become (N, 1, O).

    by_input: matrices (N, R, I) lie as (N, I, R) in memory, which `linear` reads fastest for one token a row.
    """
    same_shape = filled(tensors)
    if same_shape[0].dim() == 1:
        return torch.stack(same_shape)[:, None]
    return torch.stack([tensor.mT for tensor in same_shape]).mT if by_input else torch.stack(same_shape)


def filled(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Tensors of one dimensionality, each filled up with zeros to the largest."""
    shape = torch.Size(max(sizes) for sizes in zip(*(tensor.shape for tensor in tensors), strict=True))
    return [tensor if tensor.shape == shape else _padded(tensor, shape) for tensor in tensors]


def _padded(tensor: Tensor, shape: Sequence[int]) -> Tensor:
    sides = zip(reversed(tensor.shape), reversed(shape), strict=True)
    return F.pad(tensor, [side for have, want in sides for side in (0, want - have)])
