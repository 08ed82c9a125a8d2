"""Learning rates where none is set: of the methods, at the base's width."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import halka
from halka.methods import method_named
from halka.models.rates import NARROWEST, own_rate, rate_at
from tiny import tiny

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


def decoder(width: int):
    """A llama of that width, without memory for its weights."""
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 8, "intermediate_size": 8, "vocab_size": 8}
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", hidden_size=width, **sizes))


def test_wide_decoders_learn_at_lower_rates():
    rates = [rate_at(1e-3, decoder(width)) for width in (64, 576, 1408, 4096, 8192)]
    assert rates == pytest.approx([2e-3, 2e-3, 1e-3, 4.3e-4, 2.5e-4], rel=0.01)
    assert rate_at(1e-4, decoder(4096)) == pytest.approx(4.3e-5, rel=0.01)


def test_other_bases_learn_at_the_methods_own_rates():
    for model_type, kind in (("bert", "masked-lm"), ("t5", "seq2seq-lm"), ("llama", "sequence-classification")):
        model = halka.adapt(tiny(model_type, kind=kind))
        model.add("a", halka.LoRA(rank=2))
        assert own_rate(model, "a") == halka.LoRA.lr, model_type


@pytest.mark.parametrize("study", ["snips", "e2e"])
@pytest.mark.parametrize("label", ["full", "LoRA r16", "DoRA r16", "bottleneck 72", "IA3", "BitFit"])
def test_the_rate_is_the_one_that_the_search_of_the_evidence_chose(study, label):
    """Of SmolLM2-135M. Prefixes' best is higher, three times as much as which they learn nothing; prompts' differs."""
    runs = [json.loads(path.read_text(encoding="utf-8")) for path in (RESULTS / study / "runs").glob("*.json")]
    finals = [run for run in runs if run["purpose"] == "final" and run["method"]["label"] == label]
    own = {method_named(run["method"]["name"]).lr for run in finals}
    assert {run["lr"] for run in finals} == {rate_at(lr, decoder(NARROWEST)) for lr in own} != set()
