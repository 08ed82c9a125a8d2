"""Gated tokens: in the last layers alone, each row its own, beside other methods."""

from __future__ import annotations

import pytest
import torch

import halka
from contract import disturb, ids
from kinds import bare, logits
from tiny import tiny


def model_with(**methods):
    model = halka.adapt(tiny(num_hidden_layers=3))
    for seed, (name, method) in enumerate(methods.items()):
        model.add(name, method)
        disturb(model, name, seed=seed, by=0.3)
    return model


def test_rows_with_other_layers_and_lengths_equal_their_own_runs():
    model = model_with(
        a=halka.LlamaAdapter(length=4),
        b=halka.LlamaAdapter(length=7, layers=1),
        c=halka.LlamaAdapter(length=2, layers=2),
        d=halka.Prefix(length=3),
    )
    text, names = ids(6), ["b", None, "a", "d", "c", "a"]
    with torch.no_grad(), model.use(names):
        together = model.base(text).logits
    for row, name in enumerate(names):
        with torch.no_grad(), model.use(name):
            torch.testing.assert_close(
                together[row : row + 1], model.base(text[row : row + 1]).logits, rtol=0, atol=1e-5
            )


def test_the_gate_alone_lets_them_act():
    model = model_with(a=halka.LlamaAdapter(length=4, layers=2))
    adapter = model.adapter("a")
    assert (logits(model, "a") - bare(model)).abs().max() > 1e-3
    adapter.load_state_dict({k: v * ("gate" not in k) for k, v in adapter.state_dict().items()})
    torch.testing.assert_close(logits(model, "a"), bare(model), rtol=0, atol=1e-5)


def test_the_first_layers_are_left_alone():
    model = model_with(a=halka.LlamaAdapter(length=4, layers=1))
    with torch.no_grad():
        expected = model.base(ids(), output_hidden_states=True).hidden_states
        with model.use("a"):
            states = model.base(ids(), output_hidden_states=True).hidden_states
    torch.testing.assert_close(states[2], expected[2], rtol=0, atol=1e-5)
    assert (states[3] - expected[3]).abs().max() > 1e-3


def test_gated_tokens_stand_beside_other_methods_in_one_adapter():
    lora, gated = halka.LoRA(rank=4, targets=("attn.q",)), halka.LlamaAdapter(length=4)
    model = model_with(both=halka.Joint((lora, gated)))
    assert {each.role for each in model.adapter("both").targets.values()} == {"attn.q", "memory.gated"}
    expected = logits(model, "both")
    with pytest.raises(ValueError, match=r"acts on memory\.gated, which is no weight"):
        model.merge("both")
    torch.testing.assert_close(logits(model, "both"), expected)


def test_more_layers_than_there_are_is_refused():
    with pytest.raises(ValueError, match="layers is 4, and this base has 2"):
        halka.adapt(tiny()).add("a", halka.LlamaAdapter(layers=4))
