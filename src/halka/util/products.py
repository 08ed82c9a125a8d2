"""Products with one weight, or with a weight for each row or run of tokens; and how such weights are stacked.

B rows   T tokens   I, O a weight's widths, in and out   R rank   C tokens in runs
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache
from itertools import accumulate, pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from halka.util.float32_linear import linear_in_float32, pays
from halka.util.transfer import to_device

GROUPS = 1023  # that torch's kernel takes at most, with a weight each (GroupMM.cu)


class Runs:
    """Runs of tokens, one after another: run i goes on to the token before `ends[i]`, ends (G,) int64."""

    def __init__(self, ends: Tensor):
        self.ends = ends

    @cached_property
    def sizes(self) -> list[int]:
        """How many tokens each run has, for which the host waits for a GPU, once."""
        return [end - start for start, end in pairwise([0, *self.ends.tolist()])]


class ShortRuns:
    """Runs of a few tokens, as `Runs`, of which some may be empty; the host knows their sizes.

    ends     (G,) as `Runs` has them, int32
    numbers  (C,) each token's run
    places   (G·T,) the tokens of rows of one length T, a run each, filled up with tokens that do not count; None if all
             runs are that long
    back     (C,) where in these rows each token is
    """

    def __init__(self, sizes: Sequence[int], device: torch.device):
        self.sizes, self.longest = [*sizes], max(sizes)
        count, stops = sum(sizes), [*accumulate(sizes)]
        of_tokens = [(run, place) for run, size in enumerate(sizes) for place in range(size)]
        places = [
            min(stop - size + (place if place < size else 0), count - 1)
            for size, stop in zip(sizes, stops, strict=True)
            for place in range(self.longest)
        ]
        numbers, back = [run for run, _ in of_tokens], [run * self.longest + place for run, place in of_tokens]
        tensors = [torch.tensor(it, dtype=torch.int64, device="cpu") for it in (stops, numbers, places, back)]
        ends, self.numbers, filled_up, self.back = to_device(tensors, device)
        self.ends = ends.int()
        self.places = None if len(places) == count else filled_up
        self._bags: dict[int, tuple[Tensor, Tensor]] = {}

    def of_tokens(self, rows: Tensor) -> Tensor:
        """(C, …), for each token what its run has among `rows` (G, …)."""
        return rows if self.longest == 1 and self.places is None else rows[self.numbers]

    def bags(self, length: int) -> tuple[Tensor, Tensor]:
        """For each token, the rows of its run's bag of `length` rows; and where each token's rows start."""
        if length not in self._bags:
            self._bags[length] = _bags(self.numbers, length)
        return self._bags[length]


@lru_cache(maxsize=32)
def short_runs(sizes: tuple[int, ...], device: torch.device) -> ShortRuns:
    """`ShortRuns` of these sizes: one for all modules of a pass."""
    with torch.inference_mode(False):
        return ShortRuns(sizes, device)


class Grouped(NamedTuple):
    """Weights (G, O, I), one for each run of tokens."""

    weights: Tensor
    runs: Runs | ShortRuns


def linear(x: Tensor, weight: Tensor | Grouped, bias: Tensor | None = None) -> Tensor:
    """x (…, I) times a weight (R, I); or x (B, T, I) times a weight for each row (B, R, I); bias (R,), or (B, 1, R).

    Of runs, as experts have them: x (C, I) times a weight for each run of tokens; bias (C, R).
    """
    if isinstance(weight, Tensor) and weight.dim() == 2:
        return linear_in_float32(x, weight, bias) if pays(x, weight) else F.linear(x, weight, bias)
    if isinstance(weight, Grouped):
        result = _of_runs(x, weight)
    elif x.shape[1] == 1 and _lies_by_input(x, weight):
        result = _one_token(x, weight)
    else:
        result = x @ weight.mT
    return result if bias is None else result + bias


def add_low_rank(y: Tensor, x: Tensor, A: Tensor | Grouped, B: Tensor | Grouped) -> Tensor:
    """y + B(A x), with A (R, I) and B (O, R) as `linear` takes them.

    In half precision the second product adds itself to y, so that the sum is rounded once, for one weight or one for
    each row alike; in fp32 it is peft's to the bit.
    """
    low = linear(x, A)
    if isinstance(A, Tensor) and isinstance(B, Tensor) and _are_half(y, x, A, B):
        if B.dim() == 2 and pays(low, B):
            return linear_in_float32(low, B, plus=y)
        if B.dim() == 2:
            return torch.addmm(y.reshape(-1, len(B)), low.reshape(-1, len(A)), B.mT).view(y.shape)
        if x.shape[1] > 1:
            return torch.baddbmm(y, low, B.mT)
    return y + linear(low, B)


def _are_half(*tensors: Tensor) -> bool:
    return {tensor.dtype for tensor in tensors} in ({torch.bfloat16}, {torch.float16})


def _of_runs(x: Tensor, grouped: Grouped) -> Tensor:
    if _fits_kernel(x, grouped.weights):
        return _in_one_go(x, grouped)
    if isinstance(grouped.runs, Runs):
        return _run_by_run(x, grouped)
    if _lies_by_input(x, grouped.weights):
        return _sums(x, grouped.weights, grouped.runs.bags(x.shape[1]))
    return _as_rows(x, grouped.weights, grouped.runs)


def _lies_by_input(x: Tensor, weights: Tensor) -> bool:
    """Whether weights (G, R, I) lie as `_sums` wants them, in a pass that it can compute, which autocast does not."""
    by_input = weights.device.type == "cpu" and weights.mT.is_contiguous() and x.dtype == weights.dtype
    return by_input and not torch.is_grad_enabled()


def _fits_kernel(x: Tensor, weights: Tensor) -> bool:
    """Whether torch's grouped product takes them and is to: on GPUs where it has a kernel of its own.

    Elsewhere it computes run by run, too, and waits for the runs' sizes at every product.
    """
    aligned = all(width * x.element_size() % 16 == 0 for width in weights.shape[1:])
    return x.dtype == torch.bfloat16 and aligned and len(x) > 0 and has_grouped_kernel(x.device)


def has_grouped_kernel(device: torch.device) -> bool:
    """Whether torch's grouped product, in bfloat16, is a kernel of its own there, which reads the groups' sizes itself.

    There is one for NVIDIA's Hopper (aten/native/cuda/GroupedBlas.cpp), and one for data-centre Blackwell that is not
    used: as the gradient of weights whose group has no tokens it returns what its memory had (pytorch#172439,
    cutlass#2674). On other GPUs, and on Windows, for which torch builds neither, the host waits for the sizes and
    computes group by group; torch 2.8 has no such product there. An estimate's GPU, "xpu", is taken for a Hopper.
    """
    if device.type != "cuda":
        return device.type == "xpu"
    built = torch.version.hip is None and sys.platform != "win32"
    return built and torch.cuda.get_device_capability(device)[0] == 9


def _in_one_go(
    x: Tensor, grouped: Grouped, kernel: Callable[..., Tensor] = torch.ops.aten._grouped_mm, most: int = GROUPS
) -> Tensor:
    """By torch's kernel; of more weights than it takes, part by part, for which the host waits for the runs' sizes."""
    weights, runs = grouped
    if len(weights) <= most:
        return kernel(x, weights.mT, offs=runs.ends.int())
    sizes = [sum(runs.sizes[first : first + most]) for first in range(0, len(weights), most)]
    starts = accumulate(sizes[:-1], initial=0)
    parts = zip(x.split(sizes), weights.split(most), runs.ends.split(most), starts, strict=True)
    return torch.cat([kernel(own, w.mT, offs=(ends - start).int()) for own, w, ends, start in parts if len(own)])


def _as_rows(x: Tensor, weights: Tensor, runs: ShortRuns) -> Tensor:
    """One batched product, of runs that are filled up to the length of the longest."""
    rows = x if runs.places is None else x[runs.places]
    product = (rows.unflatten(0, (len(weights), runs.longest)) @ weights.mT).flatten(0, 1)
    return product if runs.places is None else product[runs.back]


def _run_by_run(x: Tensor, grouped: Grouped) -> Tensor:
    """The slow twin of all others."""
    runs = zip(x.split(grouped.runs.sizes), grouped.weights.unbind(), strict=True)
    return torch.cat([_of_run(run, own) for run, own in runs if len(run)])


def _of_run(x: Tensor, weight: Tensor) -> Tensor:
    """x (C, I) times a weight (R, I), with C filled up in bf16: a CPU makes a kernel anew for every other C.

    Every run is copied, so that none keeps all of them for the backward pass.
    """
    if pays(x, weight):
        return linear_in_float32(x, weight)
    if x.dtype != torch.bfloat16 or x.device.type != "cpu":
        return F.linear(x, weight)
    return F.linear(F.pad(x, (0, 0, 0, -len(x) % 16)), weight)[: len(x)]


def _one_token(x: Tensor, weight: Tensor) -> Tensor:
    """x (B, 1, I) times a weight for each row (B, R, I), laid out as (B, I, R)."""
    return _sums(x[:, 0], weight, _bags_of_rows(len(weight), weight.shape[2]))[:, None]


def _sums(x: Tensor, weights: Tensor, bags: tuple[Tensor, Tensor]) -> Tensor:
    """x (C, I) times, for each token, one of the weights (G, R, I), laid out as (G, I, R): weighted sums of table rows.

    As embedding bags are. Each weight is read once, on a CPU; torch's batched product of one row takes up to four times
    as long.
    """
    count, width, length = weights.shape
    rows, starts = bags
    table = weights.mT.reshape(count * length, width)
    return torch.embedding_bag(table, rows, starts, False, 0, False, x.reshape(-1))[0]


@lru_cache(maxsize=64)
def _bags_of_rows(count: int, length: int) -> tuple[Tensor, Tensor]:
    return _bags(torch.arange(count, device="cpu"), length)


def _bags(numbers: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """The rows of bags of these numbers (C,), of `length` rows each, and where each one's rows start."""
    with torch.inference_mode(False):
        rows = numbers[:, None] * length + torch.arange(length, device="cpu")
        starts = torch.arange(0, rows.numel(), length, device="cpu")
        return rows.flatten().int(), starts.int()


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
