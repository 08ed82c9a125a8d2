"""Bases that read images, too: their language model is what methods act on and what answers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers

import halka
from contract import disturb, ids
from halka.models.layouts import layout_of
from tiny import tiny
from tokenizers_for_tests import chatml_tokenizer

EXAMPLES = [{"prompt": f"How many are {n} and 1?", "completion": f"It is {n + 1}."} for n in range(6)]


def saved(base: transformers.PreTrainedModel, folder: Path) -> Path:
    base.save_pretrained(folder)
    chatml_tokenizer().save_pretrained(folder)
    return folder


def gemma3() -> transformers.PreTrainedModel:
    tokenizer = chatml_tokenizer()
    return tiny("gemma3", vocab_size=len(tokenizer) + 3, eos_token_id=tokenizer.eos_token_id)


def test_gemma_3_is_loaded_whole_trained_and_merged(tmp_path):
    base, tokenizer = halka.load_base(saved(gemma3(), tmp_path / "base"), dtype="float32")
    assert type(base) is transformers.Gemma3ForConditionalGeneration
    model = halka.adapt(base, tokenizer)
    for name, method in {"lora": halka.LoRA(rank=4), "prefix": halka.Prefix(length=3)}.items():
        model.add(name, method)
        halka.fit(model, name, EXAMPLES, {"steps": 2, "batch_size": 3})
        disturb(model, name)
    answers = halka.generate(model, ["Who?"] * 3, ["lora", None, "prefix"], max_new_tokens=6)
    assert answers == [halka.generate(model, ["Who?"], name, max_new_tokens=6)[0] for name in ("lora", None, "prefix")]
    with torch.no_grad(), model.use("lora"):
        expected = model.base(ids()).logits
    halka.export(model, "lora", tmp_path / "merged", dtype="float32", force=True)
    merged, _ = halka.load_base(tmp_path / "merged", dtype="float32")
    with torch.no_grad():
        torch.testing.assert_close(merged(ids()).logits, expected, rtol=0, atol=1e-4)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_peft_computes_a_lora_of_its_language_model_alike(tmp_path):
    peft = pytest.importorskip("peft")
    model = halka.adapt(gemma3())
    model.add("a", halka.LoRA(rank=4, targets=("linear",)))
    disturb(model, "a")
    halka.save(model, "a", tmp_path / "a")
    theirs = peft.PeftModel.from_pretrained(gemma3(), tmp_path / "a")
    with torch.no_grad(), model.use("a"):
        torch.testing.assert_close(model.base(ids()).logits, theirs(ids()).logits, rtol=0, atol=1e-5)


def test_its_memory_is_estimated():
    rows = halka.estimate(gemma3().config, ["lora", "full"], batch_size=2, length=16).rows
    assert all(row.refused is None for row in rows)


def test_of_qwen_3_5_the_language_model_is_loaded_alone(tmp_path):
    text = tiny("qwen3_5_text").config
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 64}
    config = transformers.Qwen3_5Config(text_config=text.to_dict(), vision_config=vision)
    torch.manual_seed(0)
    whole = transformers.Qwen3_5ForConditionalGeneration(config).eval()
    base, _ = halka.load_base(saved(whole, tmp_path / "base"), dtype="float32")
    assert type(base) is transformers.Qwen3_5ForCausalLM
    assert layout_of(base).states
    with torch.no_grad():
        torch.testing.assert_close(base(ids()).logits, whole(ids()).logits, rtol=0, atol=1e-5)
