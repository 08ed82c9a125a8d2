"""Decoders that differ from another in how they compute alone: peft, which knows nothing of that, computes alike."""

from __future__ import annotations

import pytest
import torch

import halka
from contract import disturb, ids
from tiny import LIKE_OTHERS, tiny


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("architecture", LIKE_OTHERS)
def test_peft_computes_learns_and_answers_alike(architecture, tmp_path):
    peft = pytest.importorskip("peft")
    model = halka.adapt(tiny(architecture))
    mixture = any(target.experts for target in model.targets)
    model.add("a", halka.LoRA(rank=3, targets=("attn.linear", "experts") if mixture else ("linear",)))
    disturb(model, "a")
    halka.save(model, "a", tmp_path / "a")
    theirs = peft.PeftModel.from_pretrained(tiny(architecture), tmp_path / "a", is_trainable=True).eval()
    expected = theirs(ids(), labels=ids())
    expected.loss.backward()
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    with model.use("a"):
        ours = model.base(ids(), labels=ids())
        ours.loss.backward()
        answers = model.base.generate(ids(), **options)
    torch.testing.assert_close(ours.logits, expected.logits, rtol=0, atol=1e-5)
    assert torch.equal(answers, theirs.generate(ids(), **options))
    gradients = {name: tensor.grad for name, tensor in theirs.named_parameters()}
    for path, part in model.adapter("a").parts.items():
        for name, parameter in part.named_parameters():
            if parameter.dim() == 2:  # tests/storage/test_peft_experts.py compares those of experts
                gradient = gradients[f"base_model.model.{path}.{name}.default.weight"]
                torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=1e-6)
