"""Memory in huge pages, for what is read from end to end at every step, and `Arena`, which shares it out.

A processor looks up where each page of memory lies. With the usual pages of 4 kB it waits for that while it reads a
large weight: one row decodes a tenth faster where pages have 2 MB (Linux: madvise(2)). Elsewhere memory is as usual.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

PAGE = 2 * 2**20  # bytes of a huge page
ALIGNED = 64  # bytes of a line of the cache, at which what is shared out begins


def empty(*shape: int, dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
    """As `torch.empty`. Only whole pages are huge: nothing is held beyond what the tensor needs."""
    size = math.prod(shape) * dtype.itemsize
    if torch.device(device).type != "cpu" or size < PAGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(shape, dtype=dtype, device=device)
    try:
        memory = mmap.mmap(-1, size + PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        start = -torch.frombuffer(memory, dtype=torch.uint8, count=1).data_ptr() % PAGE
        memory.madvise(mmap.MADV_HUGEPAGE, start, size // PAGE * PAGE)
    except OSError:  # a kernel without huge pages, or too little memory, which torch says in its way
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(memory, dtype=dtype, offset=start, count=math.prod(shape)).view(shape)


class Arena:
    """Memory that tensors are copied to, one behind the other, and that is free again once none of them is left."""

    def __init__(self, tensors: Iterable[Tensor]):
        """Room for these, in whatever parts `cat` is called with them."""
        self._memory = empty(sum(map(_aligned, tensors)), dtype=torch.uint8)
        self._used = 0

    def cat(self, tensors: Sequence[Tensor]) -> Tensor:
        """As `torch.cat`, of tensors on the CPU, in this room."""
        first, self._used = self._used, self._used + sum(map(_aligned, tensors))
        size, rows = sum(tensor.nbytes for tensor in tensors), sum(map(len, tensors))
        whole = self._memory[first : first + size].view(tensors[0].dtype).view(rows, *tensors[0].shape[1:])
        return torch.cat([*tensors], out=whole)


def _aligned(tensor: Tensor) -> int:
    return -(-tensor.nbytes // ALIGNED) * ALIGNED
