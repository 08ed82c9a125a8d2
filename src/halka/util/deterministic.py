"""`deterministic`: kernels of a GPU that give the same bits in every run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"  # NVIDIA's cuBLAS reads it at its first product


@contextmanager
def deterministic(wanted: bool = True) -> Iterator[None]:
    """Within the block, if it is wanted, torch computes by kernels whose results do not differ from run to run.

    They are slower on a GPU; a CPU's never differ. Enter it before the GPU's first product. Torch raises RuntimeError
    for an operation that has no such kernel.
    """
    if not wanted:
        yield
        return
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    os.environ.setdefault(WORKSPACE, ":4096:8")
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
