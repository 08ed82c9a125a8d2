"""Several methods in one adapter, single layers by their paths, and modules trained whole."""

from __future__ import annotations

import copy

import pytest
import torch

import halka
from contract import disturb, ids
from halka.methods import build_method, described
from kinds import bare, logits
from tiny import tiny

NORM = "model.norm"


def test_a_joint_adapter_computes_what_its_methods_do_in_turn():
    """LoRA on queries and factors on values do not touch: their deltas in one adapter are those of two in one base."""
    methods = halka.LoRA(rank=4, targets=("attn.q",)), halka.IA3(targets=("attn.v",))
    model = halka.adapt(tiny())
    joint = model.add("joint", halka.Joint(methods))
    disturb(model, "joint")
    model.add("lora", methods[0]).load_state_dict({k: v for k, v in joint.state_dict().items() if "lora" in k})
    model.merge("lora")
    merged = halka.adapt(model.base)
    factors = {k: v for k, v in joint.state_dict().items() if "ia3" in k}
    merged.add("ia3", methods[1]).load_state_dict(factors)
    expected = logits(merged, "ia3")
    model.unmerge()
    torch.testing.assert_close(logits(model, "joint"), expected, rtol=0, atol=1e-5)


def test_a_joint_adapter_names_its_parts_by_their_methods_alone():
    model = halka.adapt(tiny())
    adapter = model.add("a", halka.Joint((halka.LoRA(rank=2, targets=("attn.q",)), halka.Modules((NORM,)))))
    assert set(adapter.state_dict()) == {
        *(f"model.layers.{i}.self_attn.q_proj.{key}" for i in (0, 1) for key in ("lora_A", "lora_B")),
        f"{NORM}.weight",
    }


def test_two_methods_at_one_target_are_refused():
    model = halka.adapt(tiny())
    with pytest.raises(ValueError, match=r"lora and ia3 both act on model\.layers\.0\.mlp\.down_proj"):
        model.add("a", halka.Joint((halka.LoRA(), halka.IA3(targets=("mlp.down",)))))
    assert not model.adapters


def test_joint_takes_several_methods_that_are_not_joint():
    for methods in ((halka.LoRA(),), (halka.LoRA(), halka.Joint((halka.Prefix(), halka.IA3())))):
        with pytest.raises(ValueError, match="two or more methods, none of them a Joint"):
            halka.Joint(methods)


def test_nothing_joins_full_fine_tuning():
    with pytest.raises(ValueError, match="full trains all of the base's weights"):
        halka.Joint((halka.Full(), halka.Prompt(3)))


@pytest.mark.parametrize("first", [0, 1])
def test_nothing_acts_within_a_module_that_is_trained_whole(first):
    methods = (halka.LoRA(rank=2), halka.Modules(("model.layers.0.mlp",)))
    model = halka.adapt(tiny())
    with pytest.raises(ValueError, match=r"model\.layers\.0\.mlp is trained whole, .* at model\.layers\.0\.mlp\."):
        model.add("a", halka.Joint((methods[first], methods[1 - first])))
    assert not model.adapters
    beside = halka.Joint((halka.LoRA(rank=2, targets=("attn.q",)), methods[1]))
    model.add("a", beside)


def test_a_method_is_made_again_from_what_is_told_of_it():
    for method in (
        halka.LoRA(rank=3, targets=("attn.q",)),
        halka.Prompt(tokens=(3, 4)),
        halka.Joint((halka.LoRA(rank=4), halka.Modules(("head", NORM)))),
    ):
        assert build_method(**described(method)) == method


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"name": "lora", "fields": {"rang": 3}}, "LoRA has no field 'rang'"),
        ({"name": "joint", "fields": {"methods": [{"name": "lore", "fields": {}}]}}, "there is no method 'lore'"),
        ({"name": "joint", "fields": {"methods": [{"fields": {}}]}}, "name"),
    ],
)
def test_what_is_told_wrongly_is_refused(told, message):
    with pytest.raises(ValueError, match=message):
        build_method(**told)


def test_a_path_selects_a_single_layer():
    path = "model.layers.1.self_attn.q_proj"
    model = halka.adapt(tiny())
    adapter = model.add("a", halka.LoRA(rank=2, targets=(path, "mlp.up")))
    assert set(adapter.parts) == {path, "model.layers.0.mlp.up_proj", "model.layers.1.mlp.up_proj"}


@pytest.mark.parametrize("path", ["model.layers.7.mlp.up_proj", "model.layers.0.mlp", "model.layers.0.self_attn.q"])
def test_a_path_without_a_linear_layer_is_refused(path):
    with pytest.raises(ValueError, match=f"lora wants '{path}', which this base does not have"):
        halka.adapt(tiny()).add("a", halka.LoRA(targets=(path,)))


def test_a_module_trained_whole_takes_the_place_of_the_base_s():
    model = halka.adapt(tiny())
    adapter = model.add("a", halka.Modules((NORM, "head", "embedding")))
    disturb(model, "a", by=0.5)
    reference = tiny()
    with torch.no_grad():
        for key, tensor in adapter.state_dict().items():
            reference.get_parameter(key).copy_(tensor)
        expected = reference(ids()).logits
    assert (bare(model) - expected).abs().max() > 0.1
    torch.testing.assert_close(logits(model, "a"), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "method",
    [
        halka.Modules((NORM, "head")),
        halka.LoRA(rank=4),
        halka.Bottleneck(width=4),
        halka.Prefix(length=3),
        halka.Prompt(length=3),
        halka.Full(),
    ],
    ids=lambda method: type(method).__name__,
)
def test_a_copy_of_a_base_has_no_adapters(method):
    """Whatever is in use beside it: references of TRL's and of distillations are such copies."""
    model = halka.adapt(tiny())
    for name in ("a", "b"):  # the second copies modules that have hooks of the first
        model.add(name, method)
        disturb(model, name, by=0.5)
    copied = copy.deepcopy(model.base)
    assert (logits(model, "b") - bare(model)).abs().max() > 0.01
    with torch.no_grad(), model.use("b"):
        torch.testing.assert_close(copied(ids()).logits, tiny()(ids()).logits, rtol=0, atol=0)
    torch.testing.assert_close(copied(ids()).logits, tiny()(ids()).logits, rtol=0, atol=0)


def test_a_module_without_parameters_cannot_be_trained_whole():
    with pytest.raises(ValueError, match="a SiLUActivation has nothing to train"):
        halka.adapt(tiny()).add("a", halka.Modules(("model.layers.0.mlp.act_fn",)))
    for architecture, module in (
        ("bert", "bert.encoder.layer.1"),
        ("gpt2", "transformer.h.1"),
        ("bert", "bert.embeddings"),
    ):
        with pytest.raises(ValueError, match=r"takes several inputs .* name modules with one input"):
            halka.adapt(tiny(architecture)).add("a", halka.Modules((module,)))  # a mask, types: computed without
    with pytest.raises(ValueError, match=r"linear_attn\.conv1d is a convolution over tokens, .* leave it out"):
        halka.adapt(tiny("qwen3_5_text")).add("a", halka.Modules(("model.layers.0.linear_attn.conv1d",)))
    with pytest.raises(ValueError, match=r"modules wants 'model\.nrm', which this base does not have"):
        halka.adapt(tiny()).add("a", halka.Modules(("model.nrm",)))
