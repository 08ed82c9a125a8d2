"""The same weights give the same numbers in Hugging Face peft and here, both ways, to 1e-5 in fp32."""

from __future__ import annotations

import copy

import pytest
import torch
from safetensors.torch import load_file, save_file

import halka
from halka.models.quantised import quantise
from peft_for_tests import disturb, peft_logits
from tiny import tiny

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")  # peft's own

IDS = torch.randint(3, 97, (3, 11), generator=torch.Generator().manual_seed(1))
LLAMA = ["q_proj", "v_proj", "down_proj"]


def lora(modules=LLAMA, **options):
    return peft.LoraConfig(r=4, lora_alpha=6, target_modules=modules, task_type="CAUSAL_LM", **options)


# What peft writes and is read here: the architecture, and peft's configuration.
READ = {
    "lora": ("llama", lora),
    "rslora": ("llama", lambda: lora(use_rslora=True)),
    "dora": ("llama", lambda: lora(use_dora=True)),
    "dora, rslora": ("llama", lambda: lora(use_dora=True, use_rslora=True)),
    "rank_pattern": ("llama", lambda: lora(rank_pattern={"v_proj": 2, "layers.1.self_attn.q_proj": 7})),
    "alpha_pattern": ("llama", lambda: lora(alpha_pattern={r"model\.layers\.\d+\.self_attn\.(q|v)_proj": 3})),
    "rank_pattern, rslora": ("llama", lambda: lora(rank_pattern={"down_proj": 9}, use_rslora=True)),
    "rank_pattern, dora": ("llama", lambda: lora(rank_pattern={"down_proj": 9}, use_dora=True)),
    "lora_bias": ("llama", lambda: lora(lora_bias=True)),
    "bias: lora_only": ("gpt2", lambda: lora(["c_attn", "c_proj"], bias="lora_only", fan_in_fan_out=True)),
    "bias: all": ("gpt2", lambda: lora(["c_attn"], bias="all", fan_in_fan_out=True)),
    "bias: all, modules_to_save": (
        "opt",
        lambda: lora(["q_proj", "fc1"], bias="all", lora_bias=True, modules_to_save=["final_layer_norm"]),
    ),
    "Conv1D": ("gpt2", lambda: lora(["c_attn", "c_fc"], fan_in_fan_out=True)),
    "embedding": ("llama", lambda: lora(["embed_tokens", "v_proj"])),
    "embedding, scaled": ("gemma3_text", lambda: lora(["embed_tokens"])),
    "embedding, tied": ("gemma3_text", lambda: lora(["embed_tokens", "q_proj"], ensure_weight_tying=True)),
    "positions' embedding": ("gpt2", lambda: lora(["wte", "wpe", "c_attn"], fan_in_fan_out=True)),
    "head": ("llama", lambda: lora(["lm_head", "q_proj"])),
    "modules_to_save": ("llama", lambda: lora(modules_to_save=["lm_head", "embed_tokens", "norm", "classifier"])),
    "modules_to_save, several layers": ("llama", lambda: lora(["q_proj"], modules_to_save=["mlp"])),
    "modules_to_save, tied": (
        "gemma3_text",
        lambda: lora(["q_proj"], modules_to_save=["embed_tokens", "lm_head"], ensure_weight_tying=True),
    ),
    "modules_to_save, a head for masked words": (
        "bert",
        lambda: peft.LoraConfig(r=4, target_modules=["query"], modules_to_save=["cls"]),
    ),
    "modules_to_save, a module that is called head": (
        "modernbert",
        lambda: peft.LoraConfig(r=4, target_modules=["Wqkv"], modules_to_save=["head"]),
    ),
    "init_lora_weights: mica": ("llama", lambda: lora(init_lora_weights="mica")),
    "trainable_token_indices": ("llama", lambda: lora(trainable_token_indices=[5, 8, 13])),
    "trainable_token_indices, tied": (
        "gpt2",
        lambda: lora(["c_attn"], trainable_token_indices={"wte": [5, 8]}, fan_in_fan_out=True),
    ),
    "trainable_token_indices, two": (
        "llama",
        lambda: lora(trainable_token_indices={"embed_tokens": [5, 8], "lm_head": [13]}),
    ),
    "trainable_token_indices, a tied head alone": (
        "gemma3_text",
        lambda: lora(["q_proj"], trainable_token_indices={"lm_head": [5, 9]}),
    ),
    "trainable tokens alone": (
        "gemma3_text",
        lambda: peft.TrainableTokensConfig(token_indices=[5, 8, 13], task_type="CAUSAL_LM"),
    ),
    "target_modules: a regular expression": ("llama", lambda: lora(r"model\.layers\.(0|1)\..*(q|up)_proj")),
    "target_modules: all-linear": ("llama", lambda: lora("all-linear")),
    "layers_to_transform": ("llama", lambda: lora(layers_to_transform=[1])),
    "layers_pattern": ("llama", lambda: lora(layers_to_transform=0, layers_pattern="layers")),
    "exclude_modules": ("llama", lambda: lora("all-linear", exclude_modules=["up_proj", "layers.0.self_attn.q_proj"])),
    "exclude_modules: a regular expression": ("llama", lambda: lora(exclude_modules=r".*\.1\..*")),
    "ia3": (
        "llama",
        lambda: peft.IA3Config(
            target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"], task_type="CAUSAL_LM"
        ),
    ),
    "ia3, other feedforward_modules": (
        "llama",
        lambda: peft.IA3Config(
            target_modules=["q_proj", "up_proj", "down_proj"], feedforward_modules=["up_proj"], task_type="CAUSAL_LM"
        ),
    ),
    "ia3, head": (
        "llama",
        lambda: peft.IA3Config(target_modules=["q_proj", "lm_head"], feedforward_modules=[], task_type="CAUSAL_LM"),
    ),
    "ia3, modules_to_save": (
        "gpt2",
        lambda: peft.IA3Config(
            target_modules=["c_attn", "mlp.c_proj"],
            feedforward_modules=["mlp.c_proj"],
            modules_to_save=["lm_head"],
            fan_in_fan_out=True,
            task_type="CAUSAL_LM",
        ),
    ),
    "prefix": ("llama", lambda: peft.PrefixTuningConfig(num_virtual_tokens=5, task_type="CAUSAL_LM")),
    "prefix, prefix_projection": (
        "llama",
        lambda: peft.PrefixTuningConfig(
            num_virtual_tokens=5, prefix_projection=True, encoder_hidden_size=12, task_type="CAUSAL_LM"
        ),
    ),
    "prefix, modules_to_save": (
        "llama",
        lambda: peft.PrefixTuningConfig(num_virtual_tokens=5, modules_to_save=["lm_head"], task_type="CAUSAL_LM"),
    ),
    "prompt": ("llama", lambda: peft.PromptTuningConfig(num_virtual_tokens=5, task_type="CAUSAL_LM")),
    "prompt, modules_to_save": (
        "llama",
        lambda: peft.PromptTuningConfig(
            num_virtual_tokens=5, modules_to_save=["lm_head", "model.norm"], task_type="CAUSAL_LM"
        ),
    ),
    "P-tuning, MLP": (
        "llama",
        lambda: peft.PromptEncoderConfig(num_virtual_tokens=5, encoder_hidden_size=16, task_type="CAUSAL_LM"),
    ),
    "P-tuning, LSTM": (
        "llama",
        lambda: peft.PromptEncoderConfig(
            num_virtual_tokens=5, encoder_reparameterization_type="LSTM", encoder_hidden_size=16, task_type="CAUSAL_LM"
        ),
    ),
    "LLaMA-Adapter": (
        "llama",
        lambda: peft.AdaptionPromptConfig(adapter_len=4, adapter_layers=2, task_type="CAUSAL_LM"),
    ),
    "LLaMA-Adapter, the last layer": (
        "mistral",
        lambda: peft.AdaptionPromptConfig(adapter_len=4, adapter_layers=1, task_type="CAUSAL_LM"),
    ),
    "AdaLoRA": (
        "llama",
        lambda: peft.AdaLoraConfig(
            init_r=4, target_modules=["q_proj", "down_proj"], total_step=9, task_type="CAUSAL_LM"
        ),
    ),
    "AdaLoRA, head": (
        "llama",
        lambda: peft.AdaLoraConfig(init_r=4, target_modules=["q_proj", "lm_head"], total_step=9, task_type="CAUSAL_LM"),
    ),
    "VeRA, head": ("llama", lambda: peft.VeraConfig(r=8, target_modules=["lm_head"], task_type="CAUSAL_LM")),
    "VeRA": ("llama", lambda: peft.VeraConfig(r=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")),
    "VeRA, Conv1D": ("gpt2", lambda: peft.VeraConfig(r=8, target_modules=["c_attn"], fan_in_fan_out=True)),
}
Q, V, DOWN = "attn.q", "attn.v", "mlp.down"
ONE = "model.layers.1.self_attn.k_proj"
# What is written here and read by peft: the architecture, and the method.
WRITTEN = {
    "lora": ("llama", halka.LoRA(rank=4, alpha=6, targets=(Q, V, DOWN))),
    "rslora": ("llama", halka.LoRA(rank=4, alpha=6, targets=(Q, "mlp.up"), scaling="root")),
    "dora": ("llama", halka.DoRA(rank=4, alpha=6, targets=("attn.qv", "mlp.linear"))),
    "lora_bias": ("llama", halka.LoRABias(rank=4, alpha=6, targets=(Q, DOWN))),
    "Conv1D": ("gpt2", halka.LoRA(rank=4, targets=("attn.qkv", "attn.o", DOWN))),
    "lora_bias, Conv1D": ("gpt2", halka.LoRABias(rank=4, targets=("attn.qkv", "attn.o", DOWN))),
    "rank_pattern, alpha_pattern": (
        "llama",
        halka.Joint((halka.LoRA(4, targets=(Q, DOWN)), halka.LoRA(7, alpha=3, targets=(V, ONE)))),
    ),
    "rank_pattern, dora": ("llama", halka.Joint((halka.DoRA(4, targets=(Q,)), halka.DoRA(7, alpha=3, targets=(V,))))),
    "single layers": ("llama", halka.LoRA(rank=4, targets=(ONE, "model.layers.0.mlp.up_proj"))),
    "embedding": ("llama", halka.LoRA(rank=4, targets=("embedding", Q))),
    "embedding, scaled": ("gemma3_text", halka.LoRA(rank=4, targets=("embedding",))),
    "head": ("llama", halka.LoRA(rank=4, targets=("head", Q))),
    "modules_to_save": (
        "llama",
        halka.Joint((halka.LoRA(rank=4, targets=(Q,)), halka.Modules(("head", "embedding", "model.norm")))),
    ),
    "modules_to_save, a sublayer": (
        "llama",
        halka.Joint((halka.LoRA(rank=4, targets=(Q,)), halka.Modules(("model.layers.1.mlp",)))),
    ),
    "trainable_token_indices": (
        "llama",
        halka.Joint((halka.LoRA(rank=4, targets=(Q,)), halka.Tokens((5, 8, 13), ("embedding",)))),
    ),
    "trainable_token_indices, two": (
        "llama",
        halka.Joint((halka.DoRA(rank=4, targets=(Q,)), halka.Tokens((5, 8, 13)))),
    ),
    "trainable_token_indices, tied": (
        "gpt2",
        halka.Joint((halka.LoRA(rank=4, targets=("attn.qkv",)), halka.Tokens((5, 8, 13)))),
    ),
    "trainable tokens alone": ("gpt2", halka.Tokens((5, 8, 13))),
    "trainable tokens alone, the head": ("llama", halka.Tokens((5, 8, 13), ("head",))),
    "ia3": ("llama", halka.IA3()),
    "ia3, Conv1D": ("gpt2", halka.IA3()),
    "ia3, other feedforward_modules": ("llama", halka.IA3((Q, "mlp.up", DOWN), feedforward=("mlp.up",))),
    "ia3, all of GPT-2": ("gpt2", halka.IA3(("attn.linear", "mlp.linear"))),
    "ia3, a layer by path": ("llama", halka.IA3(("attn.k", "model.layers.1.mlp.down_proj"))),
    "ia3, modules_to_save": ("llama", halka.Joint((halka.IA3(), halka.Modules()))),
    "prefix": ("llama", halka.Prefix(length=5)),
    "prefix, GPT-2": ("gpt2", halka.Prefix(length=5)),
    "prefix through an MLP": ("llama", halka.Prefix(length=5, hidden=8)),
    "prefix, modules_to_save": ("llama", halka.Joint((halka.Prefix(length=5), halka.Modules(("head", "model.norm"))))),
    "LLaMA-Adapter": ("llama", halka.LlamaAdapter(length=4)),
    "LLaMA-Adapter, the last layer": ("mistral", halka.LlamaAdapter(length=4, layers=1)),
    "prompt": ("llama", halka.Prompt(length=5)),
    "prompt, GPT-2": ("gpt2", halka.Prompt(length=5)),
    "prompt, modules_to_save": ("llama", halka.Joint((halka.Prompt(length=5), halka.Modules()))),
}


@pytest.mark.parametrize("what", READ)
def test_a_peft_adapter_computes_the_same_here(what, tmp_path):
    architecture, config = READ[what]
    theirs = peft.get_peft_model(tiny(architecture), config())
    disturb(p for p in theirs.parameters() if p.requires_grad)
    expected = peft_logits(theirs, IDS)
    theirs.save_pretrained(tmp_path / "theirs")
    base = tiny(architecture)
    bare = base(IDS).logits
    model = halka.adapt(base)
    halka.load(model, tmp_path / "theirs", name="a")
    with torch.no_grad(), model.use("a"):
        ours = base(IDS, attention_mask=torch.ones_like(IDS)).logits
    assert (expected - bare).abs().max() > 1e-3
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)


NEW = range(97, 100)  # tokens that both sides have added
RESIZED = {
    "modules_to_save": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "trainable_token_indices": {"trainable_token_indices": [5, *NEW]},
}


def resized(architecture: str, seed: int):
    """A base with rows for new tokens, which begin otherwise on either side."""
    base = tiny(architecture)
    torch.manual_seed(seed)
    base.resize_token_embeddings(97 + len(NEW), mean_resizing=False)
    return base


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("options", RESIZED.values(), ids=RESIZED)
@pytest.mark.parametrize("architecture", ["llama", "gemma3_text"], ids=["apart", "tied"])
def test_an_adapter_with_new_tokens_is_read_on_a_resized_base(architecture, options, tmp_path):
    """peft saves the whole embeddings beside what was trained, of its own accord where it can see the base's folder."""
    ids = torch.cat([IDS, torch.tensor([[*NEW]]).expand(3, -1)], dim=1)
    theirs = peft.get_peft_model(resized(architecture, seed=1), lora(["q_proj"], **options))
    disturb(p for p in theirs.parameters() if p.requires_grad)
    expected = peft_logits(theirs, ids)
    theirs.save_pretrained(tmp_path / "theirs", save_embedding_layers=True)
    model = halka.adapt(resized(architecture, seed=2))
    halka.load(model, tmp_path / "theirs", name="a")
    with torch.no_grad(), model.use("a"):
        torch.testing.assert_close(model.base(ids).logits, expected, rtol=0, atol=1e-5)
    other = halka.adapt(tiny(architecture))
    with pytest.raises(ValueError, match=r"\(100, 64\).*\(97, 64\)"):
        halka.load(other, tmp_path / "theirs", name="a")


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize(
    "options",
    [{"trainable_token_indices": [5]}, {"target_modules": ["embed_tokens", "q_proj"]}],
    ids=["other tokens", "LoRA on the embedding"],
)
def test_new_tokens_that_were_not_trained_have_to_be_the_bases(options, tmp_path):
    options = {"target_modules": ["q_proj"], **options}
    config = peft.LoraConfig(r=4, task_type="CAUSAL_LM", **options)
    theirs = peft.get_peft_model(resized("llama", seed=1), config)
    theirs.save_pretrained(tmp_path / "theirs", save_embedding_layers=True)
    halka.load(halka.adapt(resized("llama", seed=1)), tmp_path / "theirs", name="a")
    with pytest.raises(ValueError, match=r"such as (row )?97: .*copy their rows into the base before halka\.adapt"):
        halka.load(halka.adapt(resized("llama", seed=2)), tmp_path / "theirs", name="a")


PRECISIONS = (torch.float32, torch.bfloat16, torch.float16)


@pytest.mark.parametrize("here", PRECISIONS, ids=str)
@pytest.mark.parametrize("there", PRECISIONS, ids=str)
@pytest.mark.parametrize("stored", PRECISIONS[:2], ids=str)
def test_an_embedding_that_was_saved_in_another_precision_is_the_bases(stored, there, here, tmp_path):
    base = tiny("llama", dtype=stored)
    theirs = peft.get_peft_model(copy.deepcopy(base).to(there), lora(["embed_tokens", "q_proj"]))
    theirs.save_pretrained(tmp_path / "theirs", save_embedding_layers=True)
    assert any("base_layer" in key for key in load_file(tmp_path / "theirs" / "adapter_model.safetensors"))
    halka.load(halka.adapt(copy.deepcopy(base).to(here)), tmp_path / "theirs", name="a")
    with torch.no_grad():
        base.model.embed_tokens.weight[7] *= 1.02
    with pytest.raises(ValueError, match="such as row 7"):
        halka.load(halka.adapt(base.to(here)), tmp_path / "theirs", name="a")


def test_what_only_a_backward_pass_reads_is_passed_over(tmp_path):
    """VeLoRA's projections of what is kept for it."""
    theirs = peft.get_peft_model(tiny("llama"), lora(["q_proj"]))
    disturb(p for p in theirs.parameters() if p.requires_grad)
    expected = peft_logits(theirs, IDS)
    theirs.save_pretrained(tmp_path / "theirs")
    file = tmp_path / "theirs" / "adapter_model.safetensors"
    prefix = "base_model.model.model.layers.0.self_attn.q_proj"
    save_file({**load_file(file), f"{prefix}.lora_velora_embed": torch.ones(3)}, file)
    model = halka.adapt(tiny("llama"))
    halka.load(model, tmp_path / "theirs", name="a")
    with torch.no_grad(), model.use("a"):
        torch.testing.assert_close(model.base(IDS).logits, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("bias", ["lora_only", "all"])
def test_trained_biases_as_peft_named_them_before_its_base_layers_are_read(bias, tmp_path):
    config = lora(["q_proj"], bias=bias)
    theirs = peft.get_peft_model(tiny("qwen2"), config)
    disturb(p for p in theirs.parameters() if p.requires_grad)
    expected = peft_logits(theirs, IDS)
    theirs.save_pretrained(tmp_path / "theirs")
    file = tmp_path / "theirs" / "adapter_model.safetensors"
    save_file({key.replace(".base_layer.bias", ".bias"): tensor for key, tensor in load_file(file).items()}, file)
    model = halka.adapt(tiny("qwen2"))
    halka.load(model, tmp_path / "theirs", name="a")
    with torch.no_grad(), model.use("a"):
        torch.testing.assert_close(model.base(IDS).logits, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("architecture", ["bert", "roberta"])
def test_a_bias_that_two_modules_have_is_read_once(architecture, tmp_path):
    """A masked language model's head and its decoder have one; peft writes both names."""
    config = peft.LoraConfig(r=4, target_modules=["query"], bias="all")
    theirs = peft.get_peft_model(tiny(architecture), config)
    disturb(p for p in theirs.parameters() if p.requires_grad)
    expected = peft_logits(theirs, IDS)
    theirs.save_pretrained(tmp_path / "theirs")
    model = halka.adapt(tiny(architecture))
    halka.load(model, tmp_path / "theirs", name="a")
    with torch.no_grad(), model.use("a"):
        torch.testing.assert_close(model.base(IDS).logits, expected, rtol=0, atol=1e-5)


def test_a_saved_head_of_several_layers_has_its_biases_twice(tmp_path):
    """peft writes them under the adapter's name, too."""
    config = peft.LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["query"], bias="all")
    base = tiny("roberta", kind="sequence-classification")
    base.save_pretrained(tmp_path / "base")
    theirs = peft.get_peft_model(base, config)
    disturb(p for p in theirs.parameters() if p.requires_grad)
    expected = peft_logits(theirs, IDS)
    theirs.save_pretrained(tmp_path / "theirs")
    model = halka.adapt(tiny("roberta", kind="sequence-classification"))
    halka.load(model, tmp_path / "theirs", name="a")
    with torch.no_grad(), model.use("a"):
        torch.testing.assert_close(model.base(IDS).logits, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("architecture", "config"),
    [
        ("qwen2", lambda: lora(["q_proj"], bias="all")),
        ("gpt2", lambda: lora(["c_attn"], bias="all", fan_in_fan_out=True)),
    ],
)
def test_biases_of_quantised_layers_are_read(architecture, config, tmp_path):
    theirs = peft.get_peft_model(tiny(architecture), config())
    disturb(p for p in theirs.parameters() if p.requires_grad)
    expected = peft_logits(theirs, IDS)
    theirs.save_pretrained(tmp_path / "theirs")
    base = tiny(architecture)
    quantise(base, "int8")
    model = halka.adapt(base)
    halka.load(model, tmp_path / "theirs", name="a")
    with torch.no_grad():
        bare = base(IDS).logits
        with model.use("a"):
            ours = base(IDS).logits
    assert (ours - expected).norm() < 0.1 * (ours - bare).norm()  # but for what int8 rounds


@pytest.mark.parametrize("what", WRITTEN)
def test_an_adapter_from_here_computes_the_same_in_peft(what, tmp_path):
    architecture, method = WRITTEN[what]
    base = tiny(architecture)
    bare = base(IDS).logits
    model = halka.adapt(base)
    model.add("a", method)
    disturb(model.parameters("a"))
    with torch.no_grad(), model.use("a"):
        ours = base(IDS).logits
    halka.save(model, "a", tmp_path / "a")
    theirs = peft.PeftModel.from_pretrained(tiny(architecture), tmp_path / "a")
    assert (ours - bare).abs().max() > 1e-3
    torch.testing.assert_close(peft_logits(theirs, IDS), ours, rtol=0, atol=1e-5)
    again = halka.adapt(tiny(architecture))
    halka.load(again, tmp_path / "a", name="a")
    with torch.no_grad(), again.use("a"):
        torch.testing.assert_close(again.base(IDS).logits, ours, rtol=0, atol=1e-5)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # peft's own patterns of ranks are not what it expects
def test_ranks_that_adalora_took_away_are_read(tmp_path):
    config = peft.AdaLoraConfig(init_r=4, target_modules=["q_proj", "v_proj"], total_step=9, task_type="CAUSAL_LM")
    theirs = peft.get_peft_model(tiny(), config)
    disturb(p for p in theirs.parameters() if p.requires_grad)
    kept = {"0.self_attn.q_proj": [1, 1, 0, 1], "0.self_attn.v_proj": [0, 0, 0, 0], "1.self_attn.q_proj": [0, 0, 0, 1]}
    config.rank_pattern = {
        f"model.layers.{name}.lora_E": [bool(each) for each in ranks] for name, ranks in kept.items()
    }
    theirs.save_pretrained(tmp_path / "a")
    expected = peft_logits(peft.PeftModel.from_pretrained(tiny(), tmp_path / "a"), IDS)
    model = halka.adapt(tiny())
    adapter = halka.load(model, tmp_path / "a")
    with torch.no_grad(), model.use("a"):
        torch.testing.assert_close(model.base(IDS).logits, expected, rtol=0, atol=1e-5)
    assert {part.lora_A.shape[0] for part in adapter.parts.values()} == {1, 3, 4}
    assert len(adapter.parts) == 3


def test_prompt_gradients_equal_peft(tmp_path):
    theirs = peft.get_peft_model(tiny("llama"), READ["prompt"][1]())
    theirs.save_pretrained(tmp_path / "a")
    labels = IDS.masked_fill(torch.arange(11) < 5, -100)
    theirs(input_ids=IDS, attention_mask=torch.ones_like(IDS), labels=labels).loss.backward()
    expected = theirs.prompt_encoder["default"].embedding.weight.grad
    base = tiny("llama")
    model = halka.adapt(base)
    halka.load(model, tmp_path / "a", name="a")
    with model.use("a"):
        base(IDS, labels=labels).loss.backward()
    (ours,) = model.parameters("a")
    torch.testing.assert_close(ours.grad, expected, rtol=0, atol=1e-6)
