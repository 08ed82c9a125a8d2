"""Classifiers, taggers, encoder-decoders: peft's folder is read, written again, and read by peft: the same logits."""

from __future__ import annotations

import pytest
import torch

import halka
from contract import ids
from tiny import tiny

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
SEQUENCES, TOKENS, TEXTS = "sequence-classification", "token-classification", "seq2seq-lm"
CASES = {
    "LoRA, BERT's classifier": (
        *("bert", SEQUENCES),
        lambda: peft.LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["query", "value"]),
    ),
    "LoRA, RoBERTa's classifier": (
        *("roberta", SEQUENCES),
        lambda: peft.LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["query", "output.dense"]),
    ),
    "(IA)³, ModernBERT's tagger": (
        *("modernbert", TOKENS),
        lambda: peft.IA3Config(
            task_type="TOKEN_CLS", target_modules=["Wqkv", "mlp.Wo"], feedforward_modules=["mlp.Wo"]
        ),
    ),
    "prompt, BERT's classifier": (
        *("bert", SEQUENCES),
        lambda: peft.PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=4),
    ),
    "LoRA, T5": (
        *("t5", TEXTS),
        lambda: peft.LoraConfig(task_type="SEQ_2_SEQ_LM", r=4, target_modules=r".*(Self|EncDec)Attention\.(q|v)"),
    ),
    "(IA)³, T5": (
        *("t5", TEXTS),
        lambda: peft.IA3Config(
            task_type="SEQ_2_SEQ_LM",
            target_modules=["k", "v", "wo"],
            feedforward_modules=["wo"],
            modules_to_save=["lm_head"],
        ),
    ),
    "prompt, T5's encoder": (
        *("t5", TEXTS),
        lambda: peft.PromptTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=4, num_transformer_submodules=1),
    ),
    "prompt, both halves of T5": (
        *("t5", TEXTS),
        lambda: peft.PromptTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=4),
    ),
}


def computed(model, kind: str) -> torch.Tensor:
    inputs = {"input_ids": ids(), "attention_mask": torch.ones_like(ids())}
    if kind == TEXTS:
        inputs["decoder_input_ids"] = ids(length=6, seed=5)
    with torch.no_grad():
        return model(**inputs).logits


@pytest.mark.parametrize("what", CASES)
def test_other_kinds_of_bases_compute_the_same_both_ways(what, tmp_path):
    architecture, kind, config = CASES[what]
    theirs = peft.get_peft_model(tiny(architecture, kind=kind), config()).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for each in (p for p in theirs.parameters() if p.requires_grad):
            each.add_(torch.randn(each.shape, generator=generator) * 0.1)
    expected = computed(theirs, kind)
    theirs.save_pretrained(tmp_path / "theirs")
    model = halka.adapt(tiny(architecture, kind=kind))
    halka.load(model, tmp_path / "theirs", name="a")
    assert (computed(model.base, kind) - expected).abs().max() > 1e-3
    with model.use("a"):
        torch.testing.assert_close(computed(model.base, kind), expected, rtol=0, atol=1e-5)
    halka.save(model, "a", tmp_path / "ours")
    again = peft.PeftModel.from_pretrained(tiny(architecture, kind=kind), tmp_path / "ours").eval()
    torch.testing.assert_close(computed(again, kind), expected, rtol=0, atol=1e-5)
