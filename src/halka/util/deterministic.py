"""`deterministic`: kernels of a GPU that give the same bits in every run."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from halka.util.errors import HalkaError

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"  # NVIDIA's cuBLAS reads it at its first product


@contextmanager
def deterministic(wanted: bool = True) -> Iterator[None]:
    """Within the block, if it is wanted, torch computes by kernels whose results do not differ from run to run.

    They are slower on a GPU; a CPU's never differ. Torch raises RuntimeError for an operation that has no such kernel.
    Raises HalkaError where the process has computed on a GPU before without CUBLAS_WORKSPACE_CONFIG in its environment.
    """
    if not wanted:
        yield
        return
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    os.environ.setdefault(WORKSPACE, ":4096:8")
    torch.use_deterministic_algorithms(True)
    try:
        if torch.cuda.is_initialized():
            check_product(lambda: torch.ones(2, 2, device="cuda") @ torch.ones(2, 2, device="cuda"))
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def check_product(product: Callable[[], object]) -> None:
    """Raises HalkaError where a GPU's product is refused because cuBLAS has read its setting already."""
    try:
        product()
    except RuntimeError as error:
        if WORKSPACE not in str(error):
            raise
        raise HalkaError(
            f"this process has computed on the GPU already, and cuBLAS reads {WORKSPACE} at its first product alone: "
            f"start the process with {WORKSPACE}=:4096:8 in its environment, or enter `halka.deterministic()` first"
        ) from None
