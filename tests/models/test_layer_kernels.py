"""Norms and gates by kernels compute what transformers' own forward does, and leave the base as it was."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

import halka
from halka.estimating.dry_runs import Setup, dry_run
from halka.models.layer_kernels import layer_kernels
from halka.training import TrainConfig, train
from tiny import tiny
from tokenizers_for_tests import chatml_tokenizer
from training_for_tests import items

TAKEN = {"llama": 5 + 2, "qwen3": 5 + 4 + 2, "mixtral": 5, "gemma": 0, "gpt2": 0}
"""By architecture how many norms and gates of two layers kernels compute."""


def bf16(architecture: str) -> Any:
    base: Any = tiny(architecture).bfloat16()
    generator = torch.Generator().manual_seed(1)
    for name, parameter in base.named_parameters():
        if "norm" in name:
            parameter.data.uniform_(0.5, 1.5, generator=generator)
    return base


def replaced(base: Any) -> list[Any]:
    return [module for module in base.modules() if "forward" in vars(module)]


def loss_and_gradients(base: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    base.zero_grad()
    ids = torch.arange(3, 43).view(2, 20)
    loss = base(input_ids=ids, labels=ids).loss
    loss.backward()
    return loss.detach(), {name: parameter.grad.clone() for name, parameter in base.named_parameters()}


@pytest.mark.parametrize("architecture", TAKEN)
def test_loss_and_gradients_are_those_of_the_twin(architecture):
    base = bf16(architecture)
    plain, plain_gradients = loss_and_gradients(base)
    with layer_kernels(base):
        assert len(replaced(base)) == TAKEN[architecture]
        loss, gradients = loss_and_gradients(base)
    assert not replaced(base)
    torch.testing.assert_close(loss, plain, rtol=1e-2, atol=0)
    for name, gradient in gradients.items():
        distance = (gradient - plain_gradients[name]).float().norm() / plain_gradients[name].float().norm()
        assert distance < 0.05, name
    if not TAKEN[architecture]:
        assert all(torch.equal(gradient, plain_gradients[name]) for name, gradient in gradients.items())
    again, same = loss_and_gradients(base)
    assert torch.equal(again, plain)
    assert all(torch.equal(gradient, plain_gradients[name]) for name, gradient in same.items())


def test_only_bf16_is_computed_by_kernels():
    base = tiny("llama")
    with layer_kernels(base):
        assert not replaced(base)


def test_who_has_a_forward_of_its_own_keeps_it():
    class Doubled(type(tiny("llama").model.norm)):
        def forward(self, hidden_states):
            return 2 * super().forward(hidden_states)

    base = bf16("llama")
    base.model.norm.__class__ = Doubled
    base.model.layers[0].input_layernorm.forward = own = lambda x: x
    with layer_kernels(base):
        assert "forward" not in vars(base.model.norm)
        assert base.model.layers[0].input_layernorm.forward is own
        assert len(replaced(base)) == TAKEN["llama"] - 1  # that lambda among them
    assert base.model.layers[0].input_layernorm.forward is own


def test_norms_in_fp32_within_a_bf16_base_compute_as_ever():
    base = bf16("llama")
    base.model.norm.float()
    x = torch.randn(3, 64).bfloat16()
    expected = base.model.norm(x)
    with layer_kernels(base):
        assert torch.equal(base.model.norm(x), expected)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("method", [halka.LoRA(rank=4), halka.Full()], ids=["lora", "full"])
def test_training_by_kernels_learns_what_it_learns_without(method, checkpointing):
    config = TrainConfig(lr=1e-3, steps=4, batch_size=3, checkpointing=checkpointing)
    losses = []
    for own in (False, True):
        model = halka.adapt(bf16("llama"))
        model.add("a", method)
        for module in model.base.modules() if own else ():
            module.forward = module.forward  # so that no kernel takes its place
        losses.append([step.loss for step in train(model, "a", items(), config)])
        assert len(replaced(model.base)) == (len([*model.base.modules()]) if own else 0)
    assert losses[0] == pytest.approx(losses[1], rel=5e-3)
    assert losses[0] != losses[1]


def test_a_dry_run_counts_what_kernels_keep():
    base = tiny("llama", hidden_size=256, intermediate_size=1024, num_hidden_layers=24)
    setup = Setup(rows=8, length=64, answers=8, dtype="bfloat16")
    both = [
        dry_run(base.config, halka.LoRA(rank=4), replace(setup, dtype=dtype)).memory
        for dtype in ("bfloat16", "float32")
    ]
    assert both[0].activations < 0.45 * both[1].activations  # norms keep nothing in fp32


def test_a_base_that_transformers_gives_forwards_with_every_mode_trains():
    """As from_pretrained leaves bases from transformers 5.25 on; on this device they keep their own."""
    pytest.importorskip("kernels")
    config, losses = TrainConfig(lr=1e-3, steps=2, batch_size=2), []
    for kernels in (False, True):
        base = bf16("llama").eval()
        base.set_use_kernels(kernels)
        model = halka.adapt(base)
        model.add("a", halka.LoRA(rank=4))
        losses.append([step.loss for step in train(model, "a", items(4), config)])
        assert not replaced(base)
    assert losses[0] == losses[1]


def test_no_code_of_the_hub_computes_a_base_that_is_loaded(tmp_path):
    tiny("llama").save_pretrained(tmp_path)
    chatml_tokenizer().save_pretrained(tmp_path)
    base, _ = halka.load_base(str(tmp_path))
    assert not base.use_kernels
