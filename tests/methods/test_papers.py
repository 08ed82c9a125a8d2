"""As many parameters as the papers count, on models of the papers' shapes that hold no weights."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM

import halka
from halka.core import AdaptedModel, Method
from halka.methods import all_methods
from tiny import tiny

QV = ("attn.qv",)

SHAPES: dict[str, tuple[str, dict[str, int]]] = {
    "RoBERTa base": ("roberta", {}),
    "BERT base": ("bert", {}),
    "BERT large": (
        "bert",
        {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096},
    ),
    "GPT-2 medium": ("gpt2", {"n_embd": 1024, "n_layer": 24, "n_head": 16}),
    "GPT-2 large": ("gpt2", {"n_embd": 1280, "n_layer": 36, "n_head": 20}),
    # OPT-175B has the shapes of GPT-3 175B
    "GPT-3": (
        "opt",
        {
            "hidden_size": 12288,
            "word_embed_proj_dim": 12288,
            "num_hidden_layers": 96,
            "num_attention_heads": 96,
            "ffn_dim": 49152,
            "vocab_size": 50272,
        },
    ),
    "LLaMA 7B": (
        "llama",
        {
            "hidden_size": 4096,
            "intermediate_size": 11008,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "vocab_size": 32000,
        },
    ),
}


def empty(model: str, **changes: int) -> AdaptedModel:
    """A model of that shape on torch's meta device: shapes, and no memory."""
    architecture, sizes = SHAPES[model]
    kind = AutoModelForMaskedLM if architecture in ("bert", "roberta") else AutoModelForCausalLM
    with torch.device("meta"):
        return halka.adapt(kind.from_config(AutoConfig.for_model(architecture, **{**sizes, **changes})))


def count(model: str, method: Method, **changes: int) -> int:
    return empty(model, **changes).add("a", method).count()


# ── LoRA: Hu et al. 2021, arXiv:2106.09685 ──────────────────────────────────────────────────────────────────────────


def test_lora_on_roberta_base():
    """Table 2: 0.3 M at rank 8 on queries and values."""
    assert count("RoBERTa base", halka.LoRA(rank=8, targets=QV)) == 294_912


@pytest.mark.parametrize(("rank", "expected"), [(1, 4_718_592), (8, 37_748_736)])
def test_lora_on_gpt_3(rank, expected):
    """Tables 4 and 15: 4.7 M at rank 1 and 37.7 M at rank 8 on queries and values, of 175 B."""
    model = empty("GPT-3")
    assert model.add("a", halka.LoRA(rank=rank, targets=QV)).count() == expected
    assert sum(parameter.numel() for parameter in model.base.parameters()) > 174e9


def test_lora_on_gpt_2_medium():
    """Rank 4 on queries and values: 2 · 24 · (4 · 1024 + 1024 · 4) by the paper's formula; its table 3 prints 0.35 M.

    GPT-2 computes queries, keys and values in one product, so one matrix A of rank 4 serves all three and B is three
    times as long: the same number, otherwise spent.
    """
    assert count("GPT-2 medium", halka.LoRA(rank=4, targets=QV)) == 2 * 24 * (4 * 1024 + 1024 * 4) == 393_216


# ── DoRA: Liu et al. 2024, arXiv:2402.09353 ─────────────────────────────────────────────────────────────────────────


def test_lora_and_dora_on_llama_7b():
    """Table 1: 0.83 % and 0.84 % of all, at rank 32 on queries, keys, values, up and down."""
    targets = ("attn.q", "attn.k", "attn.v", "mlp.up", "mlp.down")
    model = empty("LLaMA 7B")
    total = sum(parameter.numel() for parameter in model.base.parameters())
    assert total == 6_738_415_616
    lora = model.add("lora", halka.LoRA(rank=32, targets=targets)).count()
    dora = model.add("dora", halka.DoRA(rank=32, targets=targets)).count()
    assert lora == 32 * 32 * (3 * (4096 + 4096) + 2 * (4096 + 11008)) == 56_098_816
    assert dora == lora + 32 * (3 * 4096 + 11008 + 4096)
    assert [round(100 * each / (total + each), 2) for each in (lora, dora)] == [0.83, 0.84]


# ── bottleneck adapters: Houlsby et al. 2019, arXiv:1902.00751; Pfeiffer et al. 2021, arXiv:2005.00247 ──────────────


@pytest.mark.parametrize("width", [8, 64])
def test_houlsby_on_bert_large(width):
    """Section 2.1: 2md + d + m an adapter, and two a layer."""
    expected = 24 * 2 * (2 * width * 1024 + 1024 + width)
    assert count("BERT large", halka.Bottleneck(width=width)) == expected


@pytest.mark.parametrize("width", [8, 64])
def test_pfeiffer_on_bert_large(width):
    """One a layer: half of Houlsby's."""
    expected = 24 * (2 * width * 1024 + 1024 + width)
    assert count("BERT large", halka.Bottleneck(width=width, targets=("mlp",))) == expected


def test_bert_base_at_a_sixteenth_of_its_width():
    """What the AdapterHub library counts."""
    assert count("BERT base", halka.Bottleneck(targets=("mlp",))) == 894_528
    assert count("BERT base", halka.Bottleneck()) == 1_789_056


# ── prefixes: Li & Liang 2021, arXiv:2101.00190 ─────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("length", [1, 5, 10, 200])
@pytest.mark.parametrize(("model", "layers", "width"), [("GPT-2 medium", 24, 1024), ("GPT-2 large", 36, 1280)])
def test_a_prefix_on_gpt_2(model, layers, width, length):
    """A key and a value a layer and virtual token."""
    assert count(model, halka.Prefix(length=length, start="random")) == 2 * layers * length * width


def test_ten_virtual_tokens_are_a_thousandth():
    """The paper's 0.1 %: of GPT-2 medium and large, 10 and 5 virtual tokens."""
    for model, length in (("GPT-2 medium", 10), ("GPT-2 large", 10)):
        adapted = empty(model)
        total = sum(parameter.numel() for parameter in adapted.base.parameters())
        share = adapted.add("a", halka.Prefix(length=length, start="random")).count() / total
        assert round(100 * share, 1) == 0.1


# ── prompts: Lester et al. 2021, arXiv:2104.08691 ───────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("width", "expected"), [(512, 51_200), (768, 76_800), (1024, 102_400), (2048, 204_800), (4096, 409_600)]
)
def test_a_prompt_at_the_widths_of_t5(width, expected):
    """Table 4: 100 virtual tokens, from T5 small to XXL. It is the width that counts, not T5."""
    sizes = {"hidden_size": width, "num_hidden_layers": 1, "num_attention_heads": 8, "intermediate_size": 8}
    assert count("LLaMA 7B", halka.Prompt(length=100), **sizes) == expected


# ── (IA)³: Liu et al. 2022, arXiv:2205.05638 ────────────────────────────────────────────────────────────────────────


def test_ia3_on_llama_7b():
    """Section 3.3: d_k + d_v + d_ff a layer of a decoder."""
    assert count("LLaMA 7B", halka.IA3()) == 32 * (4096 + 4096 + 11008) == 614_400


# ── BitFit: Ben Zaken et al. 2022, arXiv:2106.10199 ─────────────────────────────────────────────────────────────────


def test_bitfit_on_bert_large():
    """Table 1 prints 0.08 %: the biases of queries, keys, values, both output projections and the inner layer."""
    model = empty("BERT large")
    total = sum(parameter.numel() for parameter in model.base.parameters())
    found = model.add("a", halka.BitFit()).count()
    assert found == 24 * (3 * 1024 + 1024 + 4096 + 1024)
    assert round(100 * found / total, 2) == 0.07  # the paper also counts the biases of norms


# ── without weights ─────────────────────────────────────────────────────────────────────────────────────────────────

OTHERWISE = {
    "positionless_prefix": halka.PositionlessPrefix(start="random"),
    "prefix": halka.Prefix(start="random"),
    "prompt": halka.Prompt(start="random"),
}


@pytest.mark.parametrize("name", all_methods())
def test_every_method_can_be_counted_without_weights(name):
    method = OTHERWISE.get(name) or all_methods()[name]()
    with torch.device("meta"):
        model = halka.adapt(tiny())
    adapter = model.add("a", method)
    assert adapter.count() == halka.adapt(tiny()).add("a", method).count()
    assert {parameter.device.type for parameter in adapter.parameters()} == {"meta"}
