"""Numbers by chance, and those that should be equal but for rounding."""

from __future__ import annotations

import torch

ROUNDING = {torch.bfloat16: 0.1, torch.float16: 0.02, torch.float32: 1e-4, torch.float64: 1e-9}


def close(actual: torch.Tensor, expected: torch.Tensor, within: float | None = None) -> None:
    """Assert that `actual` is `expected` but for rounding, whatever the size of the numbers.

    within: the largest difference allowed, in standard deviations of `expected` (largest value if all are the same). By
        default what a few layers round in the coarser of the two dtypes, `ROUNDING`; above 0.5 nothing would be proved.
    """
    assert actual.shape == expected.shape, f"{tuple(actual.shape)}, not {tuple(expected.shape)}"
    within = max(ROUNDING[actual.dtype], ROUNDING[expected.dtype]) if within is None else within
    assert within <= 0.5, f"a tolerance of {within} standard deviations proves nothing"
    actual, expected = actual.detach().double(), expected.detach().double()
    assert actual.isfinite().all(), "not finite"
    assert expected.isfinite().all(), "the expected numbers are not finite"
    size = expected.std(correction=0).item() or expected.abs().max().item() or 1.0
    worst = (actual - expected).abs().max().item() / size if expected.numel() else 0.0
    assert worst <= within, f"differs by up to {worst:.3g} standard deviations, more than {within:g}"


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    """Of a normal distribution, the same ones for a seed."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
