"""Linear layers by products in float32 compute what they do in bf16, and are as they were afterwards."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import halka
from halka.models.float32_products import float32_products
from halka.training import TrainConfig, mean_loss, train
from halka.util.float32_linear import BLOCK, FEWEST, linear_in_float32
from halka.util.precision import slow_in_bfloat16
from halka.util.products import Grouped, Runs, add_low_rank
from halka.util.products import linear as product
from tiny import tiny
from tokenizers_for_tests import tokenizer
from training_for_tests import items

ROWS = FEWEST


def linear(inputs: int, outputs: int, bias: bool) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(inputs, outputs, bias=bias).bfloat16()


def outcome(layer: nn.Linear, x: torch.Tensor, dy: torch.Tensor) -> list[torch.Tensor]:
    """The output, and the gradients of the input and of what trains."""
    layer.zero_grad()
    x = x.clone().requires_grad_()
    y = layer(x)
    y.backward(dy)
    gradients = [parameter.grad for parameter in layer.parameters() if parameter.requires_grad]
    return [y.detach(), *(gradient.clone() for gradient in (x.grad, *gradients))]


@pytest.fixture
def slow(monkeypatch):
    """A processor without instructions for products in bf16."""
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: False)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    slow_in_bfloat16.cache_clear()
    yield
    slow_in_bfloat16.cache_clear()


def replaced(base: nn.Module) -> list[nn.Module]:
    return [module for module in base.modules() if "forward" in vars(module)]


@pytest.mark.parametrize("trains", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("inputs", [48, BLOCK // 40])
def test_what_is_computed_is_the_product_in_bf16(inputs, bias, trains):
    """To a rounding of bf16, in one block of weights or in several, the last of them smaller."""
    layer = linear(inputs, 96, bias).requires_grad_(trains)
    x, dy = torch.randn(2, ROWS, inputs).bfloat16(), torch.randn(2, ROWS, 96).bfloat16()
    expected = outcome(layer, x, dy)
    with float32_products(layer, anywhere=True):
        assert replaced(layer) == [layer]
        computed = outcome(layer, x, dy)
    assert not replaced(layer)
    assert len(computed) == len(expected) == 2 + trains * (1 + bias)
    exact = outcome(layer.float(), x.float(), dy.float())
    for own, other, right in zip(computed, expected, exact, strict=True):
        assert (own.dtype, own.shape) == (other.dtype, other.shape)
        torch.testing.assert_close(own.float(), right, rtol=2**-7, atol=2**-7 * float(right.abs().mean()))


def test_a_low_rank_product_adds_itself_and_is_rounded_once():
    """With the gradients of all four; of few rows, by another way."""
    shapes = {"y": (2, ROWS, 40), "x": (2, ROWS, 24), "A": (8, 24), "B": (40, 8)}
    torch.manual_seed(0)
    numbers = {name: torch.randn(shape).bfloat16() for name, shape in shapes.items()}
    results = []
    for wide in (False, True):
        y, x, A, B = own = [(it.float() if wide else it.clone()).requires_grad_() for it in numbers.values()]
        low = linear_in_float32(x, A) if not wide else (x @ A.mT).bfloat16().float()
        result = linear_in_float32(low, B, plus=y) if not wide else y + low @ B.mT
        result.sum().backward()
        results.append([result, *(it.grad for it in own)])
    for bf16, exact in zip(*results, strict=True):
        torch.testing.assert_close(bf16.float(), exact, rtol=2**-7, atol=2**-6)
    torch.testing.assert_close(results[0][0].float(), results[1][0], rtol=1.01 * 2**-8, atol=1e-4)


def test_methods_compute_so_where_a_processor_is_slow(slow):
    """One low-rank product, and the runs of several: to a rounding what is computed elsewhere."""
    torch.manual_seed(0)
    y, x, A, B = (torch.randn(shape).bfloat16() for shape in ((ROWS, 40), (ROWS, 24), (8, 24), (40, 8)))
    assert add_low_rank(y, x, A.requires_grad_(), B).grad_fn.name() == "_LinearBackward"
    with torch.autocast("cpu", torch.bfloat16):
        assert add_low_rank(y, x, A, B).grad_fn.name() != "_LinearBackward"
    A.requires_grad_(False)
    expected = y.float() + (x.float() @ A.float().mT).bfloat16().float() @ B.float().mT
    torch.testing.assert_close(add_low_rank(y, x, A, B).float(), expected, rtol=2**-6, atol=2**-6)
    runs = Grouped(torch.stack([A, -A]), Runs(torch.tensor([ROWS, 2 * ROWS])))
    both = product(torch.cat([x, x]), runs).float()
    torch.testing.assert_close(
        both, torch.cat([x.float() @ A.float().mT, x.float() @ -A.float().mT]), rtol=2**-6, atol=2**-6
    )


def test_few_rows_and_other_precisions_are_computed_as_ever():
    layer = linear(48, 96, bias=True)
    few, many = torch.randn(ROWS - 1, 48).bfloat16(), torch.randn(ROWS, 48)
    expected = layer(few)
    with float32_products(layer, anywhere=True):
        assert torch.equal(layer(few), expected)
    layer = layer.float()
    with float32_products(layer, anywhere=True):
        assert not replaced(layer)
        layer(many)


def test_who_has_a_forward_of_its_own_keeps_it():
    class Doubled(nn.Linear):
        def forward(self, input):
            return 2 * super().forward(input)

    base = nn.Sequential(linear(8, 8, bias=False), linear(8, 8, bias=False), Doubled(8, 8).bfloat16())
    base[0].forward = own = lambda x: x
    with float32_products(base, anywhere=True):
        assert base[0].forward is own
        assert replaced(base) == [base[0], base[1]]
    assert replaced(base) == [base[0]]


def test_only_a_processor_that_is_slow_in_bf16_computes_so():
    base = tiny("llama").bfloat16()
    with float32_products(base):
        assert bool(replaced(base)) == slow_in_bfloat16(base.device)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("method", [halka.LoRA(rank=4), halka.Full(), halka.DoRA(rank=2)], ids=["lora", "full", "dora"])
def test_training_learns_what_it_learns_without(method, checkpointing):
    config = TrainConfig(lr=1e-3, steps=4, batch_size=6, checkpointing=checkpointing)
    losses = []
    for so in (False, True):
        model = halka.adapt(tiny("llama").bfloat16())
        model.add("a", method)
        for module in model.base.modules():
            if not (so and isinstance(module, nn.Linear)):
                module.forward = module.forward  # so that nothing takes its place
        with float32_products(model.base, anywhere=True):
            losses.append([step.loss for step in train(model, "a", items(12, length=ROWS // 4), config)])
    assert losses[0] == pytest.approx(losses[1], rel=5e-3)
    assert losses[0] != losses[1]


def by_loss(model: halka.AdaptedModel) -> None:
    mean_loss(model, None, items(3, length=ROWS))


def by_transformers(model: halka.AdaptedModel) -> None:
    halka.generate(model, ["word " * ROWS], max_new_tokens=2, num_beams=1)


def by_engine(model: halka.AdaptedModel) -> None:
    halka.generate(model, ["word " * ROWS], max_new_tokens=2)


@pytest.mark.parametrize("ask", [by_loss, by_transformers, by_engine])
def test_what_does_not_train_is_computed_so_too(ask, slow):
    """A validation's loss, and the prompts of whoever answers."""
    model = halka.adapt(tiny("gpt_neox", max_position_embeddings=512, vocab_size=640).bfloat16(), tokenizer(None))
    rows_and_forwards = set()
    linear = next(module for module in model.base.modules() if type(module) is nn.Linear)
    linear.register_forward_pre_hook(
        lambda module, inputs: rows_and_forwards.add((inputs[0].shape[:-1].numel() >= ROWS, "forward" in vars(module)))
    )
    ask(model)
    assert {replaced for many, replaced in rows_and_forwards if many} == {True}
    assert not replaced(model.base)
