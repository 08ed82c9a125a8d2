"""The same weights give the same numbers in Hugging Face peft and here, both ways, to 1e-5 in fp32."""

from __future__ import annotations

import pytest
import torch

import halka
from tiny import tiny

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")  # peft's own

IDS = torch.randint(3, 97, (3, 11), generator=torch.Generator().manual_seed(1))
LLAMA = ["q_proj", "v_proj", "down_proj"]
CONFIGS = {
    "lora": lambda: peft.LoraConfig(r=4, lora_alpha=6, target_modules=LLAMA, task_type="CAUSAL_LM"),
    "rslora": lambda: peft.LoraConfig(r=4, lora_alpha=6, use_rslora=True, target_modules=LLAMA, task_type="CAUSAL_LM"),
    "dora": lambda: peft.LoraConfig(r=4, lora_alpha=6, use_dora=True, target_modules=LLAMA, task_type="CAUSAL_LM"),
    "ia3": lambda: peft.IA3Config(
        target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"], task_type="CAUSAL_LM"
    ),
    "prefix": lambda: peft.PrefixTuningConfig(num_virtual_tokens=5, task_type="CAUSAL_LM"),
    "prompt": lambda: peft.PromptTuningConfig(num_virtual_tokens=5, task_type="CAUSAL_LM"),
}
METHODS = {
    "lora": halka.LoRA(rank=4, alpha=6, targets=("attn.q", "attn.v", "mlp.down")),
    "rslora": halka.LoRA(rank=4, alpha=6, targets=("attn.q", "mlp.up"), scaling="root"),
    "dora": halka.DoRA(rank=4, alpha=6, targets=("attn.qv", "mlp.linear")),
    "ia3": halka.IA3(),
    "prefix": halka.Prefix(length=5),
    "prefix through an MLP": halka.Prefix(length=5, hidden=8),
    "prompt": halka.Prompt(length=5),
}


def disturb(parameters, seed=3):
    """Move adapters away from where they start, so that a mistake shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)


def peft_logits(model, ids):
    """peft's logits for the text alone: prompt tuning also returns those of its virtual tokens."""
    model.eval()
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[:, -ids.shape[1] :]


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_peft_adapter_computes_the_same_here(kind, tmp_path):
    theirs = peft.get_peft_model(tiny("llama"), CONFIGS[kind]())
    disturb(p for p in theirs.parameters() if p.requires_grad)
    expected = peft_logits(theirs, IDS)
    theirs.save_pretrained(tmp_path / "theirs")
    base = tiny("llama")
    bare = base(IDS).logits
    model = halka.adapt(base)
    halka.load(model, tmp_path / "theirs", name="a")
    with torch.no_grad(), model.use("a"):
        ours = base(IDS, attention_mask=torch.ones_like(IDS)).logits
    assert (expected - bare).abs().max() > 1e-2
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", METHODS)
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_an_adapter_from_here_computes_the_same_in_peft(kind, architecture, tmp_path):
    if architecture == "gpt2" and kind not in ("ia3", "prefix", "prompt"):
        method = halka.LoRA(rank=4, targets=("attn.qkv", "attn.o", "mlp.down"))
    else:
        method = METHODS[kind]
    base = tiny(architecture)
    bare = base(IDS).logits
    model = halka.adapt(base)
    model.add("a", method)
    disturb(model.parameters("a"))
    with torch.no_grad(), model.use("a"):
        ours = base(IDS).logits
    halka.save(model, "a", tmp_path / "a")
    theirs = peft.PeftModel.from_pretrained(tiny(architecture), tmp_path / "a")
    assert (ours - bare).abs().max() > 1e-2
    torch.testing.assert_close(peft_logits(theirs, IDS), ours, rtol=0, atol=1e-5)


def test_prompt_gradients_equal_peft(tmp_path):
    theirs = peft.get_peft_model(tiny("llama"), CONFIGS["prompt"]())
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
