"""Products with a weight for each run, and weights that are stacked."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from halka.util.products import (
    Grouped,
    Runs,
    _as_rows,
    _in_one_go,
    _run_by_run,
    add_low_rank,
    has_grouped_kernel,
    linear,
    short_runs,
    stacked,
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_runs_are_multiplied_bit_for_bit_as_alone(dtype):
    """In bf16 they are filled up to lengths that repeat, which no result may show; runs may be empty."""
    sizes = [3, 0, 17, 1, 16, 0]
    x, weights = torch.randn(sum(sizes), 64).to(dtype), torch.randn(len(sizes), 20, 64).to(dtype)
    alone = torch.cat([F.linear(run, weight) for run, weight in zip(x.split(sizes), weights, strict=True)])
    assert torch.equal(linear(x, Grouped(weights, Runs(torch.tensor(sizes).cumsum(0)))), alone)


def test_one_kernel_for_all_runs_computes_what_a_product_for_each_does():
    """In bf16, forward and back; runs may be empty."""
    sizes = [3, 0, 17, 1, 16]
    x = torch.randn(sum(sizes), 64).bfloat16().requires_grad_()
    runs = Runs(torch.tensor(sizes).cumsum(0))
    grouped = Grouped(torch.randn(len(sizes), 32, 64).bfloat16().requires_grad_(), runs)
    results = [product(x, grouped) for product in (_in_one_go, _run_by_run)]
    torch.testing.assert_close(*results, rtol=0.02, atol=0.02)
    gradients = [torch.autograd.grad(result.float().square().sum(), (x, grouped.weights)) for result in results]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=0.02, atol=0.5)


@pytest.mark.parametrize("short", [False, True])
def test_more_weights_than_the_kernel_takes_are_multiplied_part_by_part(short):
    """As of 128 experts with 8 LoRAs; of some parts no run has a token."""
    sizes = [3, 0, 17, 0, 0, 0, 0, 1, 16, 2]
    x, weights = torch.randn(sum(sizes), 64).bfloat16(), torch.randn(len(sizes), 32, 64).bfloat16().requires_grad_()
    runs = short_runs(tuple(sizes), x.device) if short else Runs(torch.tensor(sizes).cumsum(0))

    def kernel(x, weights, *, offs):
        assert len(weights) == len(offs) < 4, "Can't process more than 4 groups"
        return torch.ops.aten._grouped_mm(x, weights, offs=offs)

    grouped = Grouped(weights, runs)
    results = [_in_one_go(x, grouped, kernel, most=3), _in_one_go(x, grouped)]
    gradients = [torch.autograd.grad(result.float().square().sum(), weights)[0] for result in results]
    torch.testing.assert_close(*results)
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sizes", [(3, 0, 1, 1, 4, 0), (0, 2), (1, 1, 1), (2, 2)])
def test_short_runs_are_multiplied_as_each_alone(sizes, dtype):
    """By weighted sums, by rows that are filled up, and by the kernel for all runs."""
    x, weights = torch.randn(sum(sizes), 64).to(dtype), torch.randn(len(sizes), 16, 64).to(dtype)
    runs = short_runs(sizes, x.device)
    alone = torch.cat([F.linear(run, weight) for run, weight in zip(x.split(sizes), weights, strict=True)])
    lying_by_input = stacked([*weights], by_input=True)
    with torch.no_grad():
        results = [
            linear(x, Grouped(lying_by_input, runs)),
            linear(x, Grouped(weights, runs)),
            _as_rows(x, weights, runs),
        ]
    if dtype == torch.bfloat16:
        results.append(_in_one_go(x, Grouped(weights, runs)))
    for result in results:
        torch.testing.assert_close(result, alone, rtol=0.02, atol=1e-4 if dtype == torch.float32 else 0.02)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("frozen", [False, True])
def test_a_low_rank_product_is_added(dtype, frozen):
    """With the gradients of the sum, which it is to the bit in fp32; x needs none where nothing before it trains."""
    x, weight = torch.randn(2, 5, 24).to(dtype).requires_grad_(not frozen), torch.randn(40, 24).to(dtype)
    A, B = (torch.randn(*shape).to(dtype).requires_grad_() for shape in ((16, 24), (40, 16)))
    inputs = (A, B) if frozen else (x, A, B)
    plain = F.linear(x, weight) + linear(linear(x, A), B)
    result = add_low_rank(F.linear(x, weight), x, A, B)
    exact = F.linear(x.float(), weight.float() + B.float() @ A.float())
    gradients = [torch.autograd.grad(own.float().sin().sum(), inputs) for own in (result, plain)]
    if dtype == torch.float32:
        assert torch.equal(result, plain)
        assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))
    assert (result - exact).norm() <= (plain - exact).norm()  # rounded no more often
    torch.testing.assert_close(result, plain, rtol=2e-2, atol=2e-1)
    for one, other in zip(*gradients, strict=True):
        assert (one - other).float().norm() < 0.1 * other.float().norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [1, 5])
def test_a_rows_own_low_rank_product_is_added_as_that_of_all_rows(dtype, tokens):
    y, x = torch.randn(3, tokens, 40).to(dtype), torch.randn(3, tokens, 24).to(dtype)
    A, B = torch.randn(3, 16, 24).to(dtype), torch.randn(3, 40, 16).to(dtype)
    result = add_low_rank(y, x, A, B)
    alone = torch.cat([add_low_rank(*(it[row : row + 1] for it in (y, x)), A[row], B[row]) for row in range(3)])
    bound = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(result, alone, rtol=bound, atol=bound * alone.abs().max().item())
    assert torch.equal(y + linear(linear(x, A), B), result) == (dtype == torch.float32 or tokens == 1)


def test_a_low_rank_product_of_another_precision_is_added_in_the_higher_one():
    y, x, A, B = torch.zeros(6, 10), torch.randn(6, 8).bfloat16(), torch.randn(16, 8), torch.randn(10, 16)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = add_low_rank(y, x, A, B)
        assert torch.equal(mixed, y + linear(linear(x, A), B))
    assert mixed.dtype == torch.float32
    assert y.abs().max() == 0


def test_stacked_is_filled_up_with_zeros():
    matrices = stacked([torch.ones(2, 3), torch.ones(4, 3)])
    assert matrices.shape == (2, 4, 3)
    assert matrices.sum(dim=(1, 2)).tolist() == [6, 12]
    assert stacked([torch.ones(2), torch.ones(3)]).tolist() == [[[1, 1, 0]], [[1, 1, 1]]]


@pytest.mark.parametrize(
    ("capability", "kernel"),
    [((8, 0), False), ((8, 9), False), ((9, 0), True), ((10, 0), False), ((10, 3), False), ((12, 0), False)],
)
def test_the_product_of_groups_is_for_gpus_that_have_a_kernel(monkeypatch, capability, kernel):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert has_grouped_kernel(torch.device("cuda:0")) == kernel
    assert not has_grouped_kernel(torch.device("cpu"))
