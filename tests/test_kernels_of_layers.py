"""Each kernel of a layer computes the line of torch in its docstring, and its gradient that of autograd."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from halka.kernels import layers
from halka.kernels.shared import array_of
from numbers_for_tests import random

DTYPES = [torch.float32, torch.bfloat16]
EPS = 1e-5


def assert_close(a: Tensor, b: Tensor) -> None:
    bound = 1e-5 if a.dtype == torch.float32 else 1e-2
    torch.testing.assert_close(a, b, rtol=bound, atol=bound)


def plain_norm(x: Tensor, weight: Tensor) -> Tensor:
    exact = x.float()
    return weight * (exact * torch.rsqrt(exact.pow(2).mean(-1, keepdim=True) + EPS)).to(x.dtype)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES)
def test_norm(dtype, threads):
    x, weight, dy = random(7, 48, dtype=dtype), 1 + random(48, dtype=dtype, seed=1), random(7, 48, dtype=dtype, seed=2)
    x[3] *= 100
    y, scale, dx, dweight = torch.empty_like(x), torch.empty(7), torch.empty_like(x), torch.zeros(threads, 48)
    layers.rms_norm(threads, array_of(x), array_of(weight), np.float32(EPS), scale.numpy(), array_of(y))
    inputs = x.clone().requires_grad_(), weight.clone().requires_grad_()
    expected = plain_norm(*inputs)
    assert_close(y, expected.detach())
    own = array_of(dy), array_of(x), array_of(weight), scale.numpy()
    layers.rms_norm_gradient(threads, *own, array_of(dx), dweight.numpy())
    of_x, of_weight = torch.autograd.grad(expected, inputs, dy)
    assert_close(dx, of_x)
    torch.testing.assert_close(dweight.sum(0), of_weight.float(), rtol=2e-2, atol=2e-2 * of_weight.abs().max().item())
    again = torch.empty_like(dx)
    layers.rms_norm_gradient(threads, *own, array_of(again), np.empty((0, 48), np.float32))
    assert torch.equal(again, dx)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES)
def test_gate(dtype, threads):
    gate, up, dz = (random(5, 40, dtype=dtype, seed=seed) for seed in range(3))
    gate[0, :4] = torch.tensor([-200.0, 200.0, 0.0, -90.0])
    z, dgate, dup = (torch.empty_like(gate) for _ in range(3))
    layers.silu_gate(threads, array_of(gate), array_of(up), array_of(z))
    inputs = gate.clone().requires_grad_(), up.clone().requires_grad_()
    expected = F.silu(inputs[0]) * inputs[1]
    assert_close(z, expected.detach())
    layers.silu_gate_gradient(threads, array_of(dz), array_of(gate), array_of(up), array_of(dgate), array_of(dup))
    for ours, theirs in zip((dgate, dup), torch.autograd.grad(expected, inputs, dz), strict=True):
        assert_close(ours, theirs)
