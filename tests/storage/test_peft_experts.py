"""LoRA on experts gives the same numbers in Hugging Face peft (`target_parameters`) and here, both ways."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import halka
from contract import disturb, ids
from kinds import logits
from peft_for_tests import disturb as disturb_theirs
from peft_for_tests import peft_logits
from tiny import tiny

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings(  # peft's own; it looks for a pattern's modules, not for its parameters
    "ignore::FutureWarning", "ignore::UserWarning", "ignore:The following (rank|alpha)_pattern keys:RuntimeWarning"
)

BOTH = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


def lora(modules=(), parameters=BOTH, **options):
    return peft.LoraConfig(
        r=4,
        lora_alpha=6,
        target_modules=list(modules) if not isinstance(modules, str) else modules,
        target_parameters=parameters,
        task_type="CAUSAL_LM",
        **options,
    )


READ = {
    "experts": ("mixtral", lora),
    "experts and attention": ("qwen3_moe", lambda: lora(["q_proj", "o_proj"])),
    "one weight": ("olmoe", lambda: lora(parameters=["experts.down_proj"])),
    "the other": ("qwen2_moe", lambda: lora(parameters=["gate_up_proj"])),
    "shared experts too": ("qwen2_moe", lambda: lora(["k_proj", "shared_expert.up_proj"])),
    "rslora": ("mixtral", lambda: lora(use_rslora=True)),
    "rank_pattern": ("mixtral", lambda: lora(["q_proj"], rank_pattern={"down_proj": 2}, alpha_pattern={"q_proj": 3})),
    "one layer": ("mixtral", lambda: lora(parameters=["model.layers.1.mlp.experts.down_proj"])),
    "modules_to_save": ("mixtral", lambda: lora(["v_proj"], modules_to_save=["lm_head"])),
}


def test_a_folder_of_experts_that_are_modules_each_says_how_to_renew_it(tmp_path):
    """As peft wrote Mixtral's before transformers 5."""
    theirs = peft.get_peft_model(tiny("mixtral"), lora(["q_proj"], parameters=None))
    theirs.save_pretrained(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    expert = "block_sparse_moe.experts.0.w1"
    save_file({key.replace("self_attn.q_proj", expert): it for key, it in load_file(file).items()}, file)
    with pytest.raises(ValueError, match="Experts are one weight since transformers 5: load it with peft, and save it"):
        halka.load(halka.adapt(tiny("mixtral")), tmp_path, name="a")


@pytest.mark.parametrize("kind", READ)
def test_a_peft_adapter_on_experts_computes_the_same_here(kind, tmp_path):
    architecture, config = READ[kind]
    theirs = peft.get_peft_model(tiny(architecture), config())
    disturb_theirs(p for p in theirs.parameters() if p.requires_grad)
    expected = peft_logits(theirs, ids())
    theirs.save_pretrained(tmp_path / "theirs")
    model = halka.adapt(tiny(architecture))
    bare = model.base(ids()).logits
    halka.load(model, tmp_path / "theirs", name="a")
    assert (expected - bare).abs().max() > 1e-2
    torch.testing.assert_close(logits(model, "a"), expected, rtol=0, atol=1e-5)


WRITTEN = {
    "experts": ("mixtral", halka.LoRA(rank=3, targets=("experts",))),
    "experts and all else": ("qwen2_moe", halka.LoRA(rank=4, alpha=3, targets=("linear", "experts"))),
    "one weight": ("olmoe", halka.LoRA(rank=5, targets=("experts.gate_up", "attn.v"))),
    "one layer": ("qwen3_moe", halka.LoRA(rank=4, targets=("model.layers.1.mlp.experts.down_proj",))),
    "root": ("qwen3_moe", halka.LoRA(rank=4, targets=("attn.linear", "experts"), scaling="root")),
    "two ranks": ("mixtral", halka.Joint((halka.LoRA(rank=2), halka.LoRA(rank=7, targets=("experts.down",))))),
    "attention alone": ("qwen3_moe", halka.LoRA(rank=4, targets=("attn.linear",))),
}


@pytest.mark.parametrize("kind", WRITTEN)
def test_an_adapter_on_experts_from_here_computes_the_same_in_peft(kind, tmp_path):
    architecture, method = WRITTEN[kind]
    model = halka.adapt(tiny(architecture))
    model.add("a", method)
    disturb(model, "a", by=0.1)
    expected = logits(model, "a")
    halka.save(model, "a", tmp_path / "a")
    theirs = peft.PeftModel.from_pretrained(tiny(architecture), tmp_path / "a")
    torch.testing.assert_close(peft_logits(theirs, ids()), expected, rtol=0, atol=1e-5)
    again = halka.adapt(tiny(architecture))
    assert halka.load(again, tmp_path / "a", name="b").count() == model.adapter("a").count()
    assert torch.equal(logits(again, "b"), expected)


@pytest.mark.parametrize("architecture", ["mixtral", "qwen3_moe"])
def test_gradients_equal_pefts(architecture, tmp_path):
    theirs = peft.get_peft_model(tiny(architecture), lora(["q_proj"]))
    disturb_theirs(p for p in theirs.parameters() if p.requires_grad)
    theirs.save_pretrained(tmp_path / "a")
    theirs.eval()
    theirs(input_ids=ids(), labels=ids()).loss.backward()
    expected = {
        name.removeprefix("base_model.model.").replace(".default", ""): parameter.grad
        for name, parameter in theirs.named_parameters()
        if parameter.grad is not None
    }
    model = halka.adapt(tiny(architecture))
    halka.load(model, tmp_path / "a", name="a")
    with model.use("a"):
        model.base(ids(), labels=ids()).loss.backward()
    compared = 0
    for path, part in model.adapter("a").parts.items():
        for name in ("lora_A", "lora_B"):
            ours, place = part.get_parameter(name).grad, path
            if path.endswith("gate_up_proj"):
                place = path.replace(".gate_up_proj", ".base_layer")
            elif path.endswith("down_proj"):
                place = path.replace(".down_proj", "")
            if ours.dim() == 3:  # peft's A is (E·R, I), its B (O, R·E)
                ours = ours.flatten(0, 1) if name == "lora_A" else ours.permute(1, 2, 0).flatten(1)
            torch.testing.assert_close(ours, expected[f"{place}.{name}.weight"], rtol=1e-4, atol=1e-6)
            compared += 1
    assert compared == len(expected)


def test_what_peft_cannot_hold_has_a_form_of_its_own(tmp_path):
    for folder, (architecture, method) in enumerate(
        (
            ("mixtral", halka.LoRA(rank=4, dropout=0.1, targets=("experts",))),  # peft has no dropout there
            ("qwen3_moe", halka.LoRA(rank=4)),  # peft would take its first layer's MLP for experts
            ("mixtral", halka.IA3(targets=("experts.down",))),
        )
    ):
        model = halka.adapt(tiny(architecture))
        model.add("a", method)
        halka.save(model, "a", tmp_path / str(folder))
        config = json.loads((tmp_path / str(folder) / "adapter_config.json").read_text())
        assert config["peft_type"] == f"HALKA_{method.name.upper()}"
        assert halka.load(model, tmp_path / str(folder), name="b").method == method


@pytest.mark.parametrize(
    ("architecture", "config", "message"),
    [
        (
            "mixtral",
            lambda: lora("all-linear", None),
            r"target_parameters names gate.weight, and .*does not adapt routers",
        ),
        ("llama", lambda: lora(parameters=["q_proj.weight"]), r"names q_proj.weight, and .* is no weight of experts"),
    ],
)
def test_what_is_not_to_be_had_is_refused_by_name(architecture, config, message, tmp_path):
    peft.get_peft_model(tiny(architecture), config()).save_pretrained(tmp_path / "a")
    with pytest.raises(ValueError, match=message):
        halka.load(halka.adapt(tiny(architecture)), tmp_path / "a", name="a")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"target_parameters": ["mlp.experts.gate_up_proj", "experts.up_proj"]}, "names experts.up_proj"),
        ({"target_parameters": "experts"}, "where a list of names is expected"),
        ({"target_parameters": ["experts.down_proj"]}, "modules that this base does not have"),
        ({"target_parameters": None}, "modules that this base does not have"),
        ({"lora_dropout": 0.1}, "lora_dropout cannot be combined with target_parameters"),
        ({"use_dora": True}, "use_dora cannot be combined with target_parameters"),
    ],
)
def test_so_is_a_configuration_that_does_not_fit_its_weights(changed, message, tmp_path):
    peft.get_peft_model(tiny("mixtral"), lora()).save_pretrained(tmp_path / "a")
    file = tmp_path / "a" / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changed}))
    with pytest.raises(ValueError, match=message):
        halka.load(halka.adapt(tiny("mixtral")), tmp_path / "a", name="a")


def test_another_number_of_experts_is_refused(tmp_path):
    peft.get_peft_model(tiny("mixtral"), lora()).save_pretrained(tmp_path / "a")
    with pytest.raises(ValueError, match="not of 3 experts"):
        halka.load(halka.adapt(tiny("mixtral", num_local_experts=3)), tmp_path / "a", name="a")
