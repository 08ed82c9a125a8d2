"""What is predicted is what autograd keeps."""

from __future__ import annotations

import pytest
import torch

import halka
from contract import adapted
from halka.core import AdaptedModel
from halka.estimate import memory
from halka.models import hidden_states
from halka.models.attention import use_attention
from tiny import tiny

ROWS, LENGTH = 4, 64
WIDE = {"hidden_size": 128, "num_hidden_layers": 3, "intermediate_size": 384}


def kept(model: AdaptedModel) -> int:
    """Bytes of the tensors that a forward pass saves for backward, parameters aside."""
    own = {p.untyped_storage().data_ptr() for p in [*model.base.parameters(), *model.parameters("a")]}
    saved: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    model.base.train()
    ids = torch.randint(3, 97, (ROWS, LENGTH))
    with (
        model.use("a"),
        use_attention(model.base),
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
    ):
        states = hidden_states(model, input_ids=ids, attention_mask=torch.ones_like(ids))
    assert states.requires_grad
    return sum(tensor.untyped_storage().nbytes() for address, tensor in saved.items() if address not in own)


@pytest.mark.parametrize(
    ("method", "tolerance"),
    [(halka.LoRA(rank=16), 0.05), (halka.LoRA(rank=16, targets=("head", "attn.qv", "mlp.linear")), 0.2)],
    ids=["lora", "some of it"],
)
def test_activations_are_those_that_autograd_keeps(method, tolerance):
    model = halka.adapt(tiny("llama", torch.bfloat16, **WIDE))
    model.add("a", method)
    predicted = memory(model, "a", rows=ROWS, length=LENGTH, labels=0).activations
    assert predicted == pytest.approx(kept(model), rel=tolerance)


@pytest.mark.parametrize("architecture", ["mixtral", "qwen3_moe", "qwen2_moe"])
@pytest.mark.parametrize("targets", [("linear",), ("linear", "experts")])
def test_activations_of_experts_are_those_that_autograd_keeps(architecture, targets):
    wide = {**WIDE, "moe_intermediate_size": 384} if architecture != "mixtral" else WIDE
    model = halka.adapt(tiny(architecture, torch.bfloat16, **wide))
    model.add("a", halka.LoRA(rank=16, targets=targets))
    predicted = memory(model, "a", rows=ROWS, length=LENGTH, labels=0).activations
    assert predicted == pytest.approx(kept(model), rel=0.1)


@pytest.mark.parametrize("architecture", ["gpt2", "opt", "phi3", "qwen3"])
def test_the_widths_are_the_bases_own(architecture):
    """Whatever its configuration calls them; a wider MLP keeps more."""
    key = {"gpt2": "n_inner", "opt": "ffn_dim"}.get(architecture, "intermediate_size")
    sizes = []
    for width in (96, 192):
        model = halka.adapt(tiny(architecture, **{key: width}))
        model.add("a", halka.LoRA(rank=4))
        sizes.append(memory(model, "a", rows=1, length=10, labels=0).activations)
    factor = 2 if architecture in ("gpt2", "opt") else 4
    assert sizes[1] - sizes[0] == 2 * 10 * factor * 96 * 4


def test_weights_gradients_and_moments_are_counted():
    for method in (halka.LoRA(rank=4), halka.Full()):
        model = adapted(method, torch.bfloat16)
        base = sum(p.numel() for p in model.base.parameters())
        trained, split = model.adapter("a").count(), memory(model, "a", rows=1, length=10, labels=5)
        copies = 2 if method.name == "full" else 1
        assert (split.weights, split.gradients, split.optimizer) == (
            2 * base * copies + 4 * trained,
            4 * trained,
            8 * trained,
        )


def test_checkpointing_keeps_one_layer_and_the_layers_inputs():
    model = adapted(halka.LoRA(rank=4))
    whole = memory(model, "a", rows=2, length=10, labels=0).activations
    less = memory(model, "a", rows=2, length=10, labels=0, checkpointing=True).activations
    assert less == whole // 2 + 2 * 10 * 2 * 64 * 4
