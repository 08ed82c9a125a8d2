"""GGUF files, read back by transformers' own reader and by hand, compute what the model does; others are refused."""

from __future__ import annotations

import copy
import json
import warnings

import gguf
import numpy as np
import pytest
import torch
from gguf import GGUFReader, TokenType
from tokenizers import Regex, Tokenizer, pre_tokenizers
from tokenizers import models as token_models
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

import halka
from contract import disturb, ids
from halka.data.tokens import Tokens
from halka.merging.error import difference
from halka.merging.precision import in_precision
from halka.models.fetching.smollm2 import rotary_halves
from halka.storage.formats.gguf.model import ARCHITECTURES, rotated
from halka.storage.formats.gguf.tokenizer import LLAMA3, QWEN2, split_of
from kinds import logits
from tiny import CONFIGS, tiny
from tokenizers_for_tests import CHATML, GPT2_SPLIT, LLAMA3_SPLIT, chatml_tokenizer, tokenizer

ROTARY = {"rope_theta": 5000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3_ROTARY = {"rope_type": "llama3", "original_max_position_embeddings": 32, **ROTARY}


def with_tokenizer(architecture: str = "llama", dtype=torch.float32, **changes):
    tokenizer = chatml_tokenizer()
    base = tiny(architecture, dtype, vocab_size=len(tokenizer) + 3, eos_token_id=tokenizer.eos_token_id, **changes)
    model = halka.adapt(base, tokenizer)
    model.add("a", halka.LoRA(rank=4, targets=("linear",)))
    disturb(model, "a", by=0.1)
    return model


def fields_of(path) -> dict:
    return {name: field.contents() for name, field in GGUFReader(path).fields.items() if not name.startswith("GGUF.")}


def read_by_transformers(path, **more):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        read = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32, **more)
    return read.eval()


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_merged_model_computes_the_same_when_transformers_reads_its_file(architecture, tied, tmp_path):
    model = with_tokenizer(architecture, tie_word_embeddings=tied)
    expected, bare = logits(model, "a"), logits(model)
    assert (expected - bare).abs().max() > 1e-2
    path = halka.export(model, "a", tmp_path / "merged.gguf", format="gguf")
    assert model.merged is None
    assert torch.equal(logits(model), bare)
    known = {"config": copy.deepcopy(model.base.config)} if architecture == "qwen3" else {}  # it takes 128 for head_dim
    again = read_by_transformers(path, **known)
    with torch.no_grad():
        torch.testing.assert_close(again(ids()).logits, expected, rtol=0, atol=2e-5)
    names = {tensor.name for tensor in GGUFReader(path).tensors}
    assert ("output.weight" in names) == (not tied)


def test_its_metadata_is_the_models(tmp_path):
    model = with_tokenizer("llama")
    found = fields_of(halka.export(model, "a", tmp_path / "tiny-thing.gguf", format="gguf"))
    sizes = {
        "block_count": 2,
        "context_length": 128,
        "embedding_length": 64,
        "feed_forward_length": 96,
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
        "attention.key_length": 16,
        "attention.value_length": 16,
        "rope.dimension_count": 16,
        "vocab_size": model.base.config.vocab_size,
    }
    assert {key: found[f"llama.{key}"] for key in sizes} == sizes
    assert found["llama.rope.freq_base"] == model.base.config.rope_parameters["rope_theta"]
    assert found["llama.attention.layer_norm_rms_epsilon"] == pytest.approx(model.base.config.rms_norm_eps)
    assert found["general.architecture"] == "llama"
    assert found["general.type"] == "model"
    assert "Tiny" in found["general.name"]
    assert found["general.file_type"] == gguf.LlamaFileType.ALL_F32
    assert found["tokenizer.chat_template"] == CHATML


def test_its_tokenizer_is_the_models(tmp_path):
    model = with_tokenizer("llama")
    tokenizer = model.tokenizer
    found = fields_of(halka.export(model, None, tmp_path / "base.gguf", format="gguf"))
    tokens = found["tokenizer.ggml.tokens"]
    assert tokens[: len(tokenizer)] == tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    assert tokens[len(tokenizer) :] == [f"[PAD{len(tokenizer) + i}]" for i in range(3)]
    kinds = found["tokenizer.ggml.token_type"]
    assert kinds[-3:] == [TokenType.UNUSED] * 3
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    assert {i for i, kind in enumerate(kinds) if kind == TokenType.CONTROL} == special
    merges = [" ".join(pair) for pair in json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]]
    assert found["tokenizer.ggml.merges"] == merges
    assert found["tokenizer.ggml.eos_token_id"] == tokenizer.eos_token_id
    assert found["tokenizer.ggml.pre"] == split_of(json.loads(tokenizer.backend_tokenizer.to_str()))


@pytest.mark.parametrize("adds_bos", [False, True])
def test_a_tokenizer_of_llama_3s_kind_says_whether_texts_begin_with_a_bos(adds_bos, tmp_path):
    """llama.cpp adds one where the file does not say."""
    own = tokenizer(CHATML, split=LLAMA3_SPLIT, bos="<|begin|>", adds_bos=adds_bos)
    assert (own("").input_ids == [own.bos_token_id]) == adds_bos
    model = halka.adapt(tiny(vocab_size=len(own)), own)
    found = fields_of(halka.export(model, None, tmp_path / "a.gguf", format="gguf"))
    assert found["tokenizer.ggml.pre"] == "llama-bpe"
    assert found["tokenizer.ggml.add_bos_token"] is adds_bos


@pytest.mark.parametrize(
    ("dtype", "kind"), [("float32", "F32"), ("float16", "F16"), ("bfloat16", "BF16"), ("q8_0", "Q8_0")]
)
def test_matrices_are_rounded_once_as_asked_and_vectors_are_not(dtype, kind, tmp_path):
    model = with_tokenizer("qwen2", torch.bfloat16)
    path = halka.export(model, "a", tmp_path / "merged.gguf", format="gguf", dtype=dtype)
    by_name = {tensor.name: tensor for tensor in GGUFReader(path).tensors}
    for name, tensor in by_name.items():
        assert tensor.tensor_type.name == ("F32" if "norm" in name or "bias" in name else kind), name
    part = model.adapters["a"].parts["model.layers.1.mlp.down_proj"]
    own = model.base.model.layers[1].mlp.down_proj.weight
    exact = (own.float() + part.delta()).detach()
    stored = by_name["blk.1.ffn_down.weight"]
    found = torch.from_numpy(np.array(gguf.dequantize(stored.data, stored.tensor_type)))
    if dtype == "q8_0":
        assert (found - exact).abs().max() <= exact.abs().max() / 127 * 0.51
    else:
        assert torch.equal(found, exact.to(getattr(torch, dtype)).float())
    default = halka.export(model, "a", tmp_path / "default.gguf", format="gguf")
    assert fields_of(default)["general.file_type"] == gguf.LlamaFileType.MOSTLY_BF16


@pytest.mark.parametrize("dtype", ["float16", "q8_0"])
@pytest.mark.parametrize("own", [torch.float32, torch.bfloat16])
def test_the_error_of_a_file_is_that_of_the_values_in_it(dtype, own, tmp_path):
    model = with_tokenizer("llama", own, intermediate_size=80)  # of which q8_0 has no blocks
    probes = [Tokens(row, [True] * len(row)) for row in ids(rows=2, length=30).tolist()]
    told = []
    path = halka.export(
        model, "a", tmp_path / "a.gguf", format="gguf", dtype=dtype, probes=probes, on_error=told.append, limit=1
    )
    (found,) = told
    read = read_by_transformers(path)
    with torch.no_grad():
        there = [read(torch.tensor([row.ids])).logits[0, :-1] for row in probes]
        with in_precision(model, torch.float64 if own == torch.float32 else torch.float32), model.use("a"):
            exact = [model.base(torch.tensor([row.ids])).logits[0, :-1] for row in probes]
    expected = difference(exact, there)
    assert found.dtype == dtype
    assert found.error.kl == pytest.approx(expected.kl, rel=1e-2)
    assert found.error.mean == pytest.approx(expected.mean, rel=1e-2)
    assert found.noise.kl > 0
    with pytest.raises(ValueError, match=rf"past the limit of .*rounding to {dtype}"):
        halka.export(
            model, "a", tmp_path / "b.gguf", format="gguf", dtype=dtype, probes=probes, limit=found.relative / 2
        )


def test_rows_that_cannot_be_cut_into_blocks_are_kept_in_fp16(tmp_path):
    model = with_tokenizer("llama", intermediate_size=80)
    path = halka.export(model, "a", tmp_path / "merged.gguf", format="gguf", dtype="q8_0")
    kinds = {tensor.name: tensor.tensor_type.name for tensor in GGUFReader(path).tensors}
    assert kinds["blk.0.ffn_down.weight"] == "F16"
    assert kinds["blk.0.ffn_up.weight"] == "Q8_0"


def test_the_order_of_rows_is_undone_by_the_reader_of_the_demo_base():
    base = tiny("llama")
    weight = base.model.layers[0].self_attn.k_proj.weight.detach()
    there = rotated(base, "model.layers.0.self_attn.k_proj.weight", weight)
    assert not torch.equal(there, weight)
    assert torch.equal(rotary_halves(there, 2), weight)
    assert rotated(base, "model.layers.0.self_attn.v_proj.weight", weight) is weight
    assert rotated(tiny("qwen2"), "model.layers.0.self_attn.k_proj.weight", weight) is weight


def test_llama_3s_rotary_frequencies_are_in_the_file(tmp_path):
    model = with_tokenizer("llama", rope_parameters=LLAMA3_ROTARY)
    path = halka.export(model, "a", tmp_path / "merged.gguf", format="gguf")
    (factors,) = (tensor.data for tensor in GGUFReader(path).tensors if tensor.name == "rope_freqs.weight")
    plain = 1 / 5000 ** (np.arange(0, 16, 2) / 16)
    for factor, frequency in zip(factors, plain, strict=True):
        length = 2 * np.pi / frequency
        smooth = (32 / length - 1) / 3
        expected = 1 if length < 8 else 8 if length > 32 else 1 / ((1 - smooth) / 8 + smooth)
        assert factor == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("architecture", sorted(set(CONFIGS) - set(ARCHITECTURES)))
def test_other_architectures_are_refused_by_name(architecture, tmp_path):
    model = halka.adapt(tiny(architecture), chatml_tokenizer())
    model.add("a", halka.LoRA(rank=2))
    for form in ("gguf", "lora-gguf"):
        with pytest.raises(ValueError, match=rf"\({architecture}\) cannot be written as GGUF here, which has llama"):
            halka.export(model, "a", tmp_path / "a.gguf", format=form)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        (
            {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
            "rotary embeddings .*dynamic",
        ),
        ({"hidden_act": "gelu"}, "llama.cpp uses silu in this architecture, the base gelu"),
        ({"architecture": "mistral", "sliding_window": 16}, "no sliding window .of 16 tokens"),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(changes, why, tmp_path):
    model = with_tokenizer(**changes)
    with pytest.raises(ValueError, match=why):
        halka.export(model, "a", tmp_path / "a.gguf", format="gguf")


# ── tokenizers ──────────────────────────────────────────────────────────────────────────────────────────────────────


def spec(*steps, **changes) -> dict:
    tokenizer = Tokenizer(token_models.BPE())
    tokenizer.pre_tokenizer = steps[0] if len(steps) == 1 else pre_tokenizers.Sequence(list(steps))
    found = json.loads(tokenizer.to_str())
    return {**found, **changes, "model": {**found["model"], **changes.get("model", {})}}


def split(pattern: str):
    return pre_tokenizers.Split(Regex(pattern), "isolated")


BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
WHOLE = pre_tokenizers.ByteLevel(add_prefix_space=False)


def test_ways_of_splitting_have_their_names():
    assert LLAMA3 == LLAMA3_SPLIT
    assert split_of(spec(WHOLE)) == split_of(spec(split(GPT2_SPLIT), BYTES)) == "gpt-2"
    assert split_of(spec(pre_tokenizers.Digits(individual_digits=True), WHOLE)) == "smollm"
    assert split_of(spec(split(LLAMA3), BYTES)) == "llama-bpe"
    assert split_of(spec(split(QWEN2), BYTES, normalizer={"type": "NFC"})) == "qwen2"


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (lambda: spec(split(r"\s+"), BYTES), r"cannot be written as GGUF here, which has byte-level BPE"),
        (lambda: spec(pre_tokenizers.Digits(individual_digits=False), WHOLE), "cannot be written"),
        (lambda: spec(pre_tokenizers.Metaspace()), "BPE with .*Metaspace.* cannot be written"),
        (lambda: spec(pre_tokenizers.ByteLevel(add_prefix_space=True)), "cannot be written"),
        (lambda: {**spec(WHOLE), "model": {"type": "Unigram"}}, "Unigram with as GPT-2 does splitting"),
        (lambda: spec(WHOLE, model={"byte_fallback": True}), "cannot be written"),
        (lambda: {**spec(WHOLE), "pre_tokenizer": None}, "BPE with no splitting"),
        (lambda: spec(WHOLE, normalizer={"type": "Lowercase"}), r"normalises text first \(Lowercase\)"),
    ],
)
def test_other_tokenizers_are_refused(given, why):
    with pytest.raises(ValueError, match=why):
        split_of(given())


def test_a_model_without_a_tokenizer_or_with_too_few_embeddings_is_refused(tmp_path):
    model = halka.adapt(tiny())
    with pytest.raises(ValueError, match="holds the tokenizer too"):
        halka.export(model, None, tmp_path / "a.gguf", format="gguf")
    model = halka.adapt(tiny(vocab_size=20), chatml_tokenizer())
    with pytest.raises(ValueError, match="where the model has 20 embeddings"):
        halka.export(model, None, tmp_path / "a.gguf", format="gguf")
    assert not any(tmp_path.iterdir())


# ── a LoRA alone ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("scaling", ["rank", "root"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_lora_alone_adds_in_llama_cpps_names_and_order_what_it_adds_here(architecture, scaling, tmp_path):
    """llama.cpp adds alpha / rank · B·A to each weight of the base's file; so the sum is the merged model's file."""
    model = halka.adapt(tiny(architecture), chatml_tokenizer())
    model.add("a", halka.LoRA(rank=5, alpha=3.0, scaling=scaling))
    disturb(model, "a", by=0.1)
    path = halka.export(model, "a", tmp_path / "a.gguf", format="lora-gguf")
    found = fields_of(path)
    assert found["general.type"] == "adapter"
    assert found["adapter.type"] == "lora"
    assert found["general.architecture"] == ARCHITECTURES[architecture]
    factors = {tensor.name: torch.from_numpy(np.array(tensor.data)) for tensor in GGUFReader(path).tensors}
    assert len(factors) == 2 * 2 * 7
    assert factors["blk.1.ffn_up.weight.lora_a"].shape == (5, 64)
    inner = {"attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_output": "self_attn.o_proj"}
    for theirs, ours in {**inner, "ffn_down": "mlp.down_proj"}.items():
        A, B = (factors[f"blk.1.{theirs}.weight.lora_{each}"] for each in "ab")
        added = found["adapter.lora.alpha"] / 5 * B @ A
        name = f"model.layers.1.{ours}"
        expected = rotated(model.base, f"{name}.weight", model.adapters["a"].parts[name].delta().detach())
        torch.testing.assert_close(added, expected, rtol=1e-5, atol=1e-7)


def test_ranks_and_scales_that_differ_by_module_are_added_rightly(tmp_path):
    """The file has one alpha: where a module's is another, B makes up for it."""
    model = halka.adapt(tiny(), chatml_tokenizer())
    methods = halka.LoRA(rank=3, alpha=2.0, targets=("mlp.up",)), halka.LoRA(rank=4, alpha=8.0, targets=("mlp.down",))
    model.add("a", halka.Joint(methods))
    disturb(model, "a", by=0.1)
    path = halka.export(model, "a", tmp_path / "a.gguf", format="lora-gguf")
    factors = {tensor.name: torch.from_numpy(np.array(tensor.data)) for tensor in GGUFReader(path).tensors}
    for theirs, ours in {"ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}.items():
        A, B = (factors[f"blk.0.{theirs}.weight.lora_{each}"] for each in "ab")
        expected = model.adapters["a"].parts[f"model.layers.0.{ours}"].delta().detach()
        torch.testing.assert_close(fields_of(path)["adapter.lora.alpha"] / len(A) * B @ A, expected)


def test_what_is_no_lora_and_a_tied_head_are_refused(tmp_path):
    model = halka.adapt(tiny(tie_word_embeddings=True), chatml_tokenizer())
    model.add("dora", halka.DoRA(rank=2))
    model.add("head", halka.LoRA(rank=2, targets=("head",)))
    with pytest.raises(
        ValueError, match=r"only has LoRA adapters of linear layers, and this is dora at model.layers.0.*: merge it"
    ):
        halka.export(model, "dora", tmp_path / "a.gguf", format="lora-gguf")
    with pytest.raises(ValueError, match="lm_head is tied to the embeddings"):
        halka.export(model, "head", tmp_path / "a.gguf", format="lora-gguf")
    assert not any(tmp_path.iterdir())


def test_a_tokenizer_of_two_kinds_of_added_tokens(tmp_path):
    """What is not special is the user's, unless it looks like a control token."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=copy.deepcopy(chatml_tokenizer().backend_tokenizer))
    tokenizer.add_tokens(["<tool_call>", "<|fim_prefix|>"])
    model = halka.adapt(tiny(vocab_size=len(tokenizer)), tokenizer)
    found = fields_of(halka.export(model, None, tmp_path / "a.gguf", format="gguf"))
    kinds = dict(zip(found["tokenizer.ggml.tokens"], found["tokenizer.ggml.token_type"], strict=True))
    assert kinds["<tool_call>"] == TokenType.USER_DEFINED
    assert kinds["<|fim_prefix|>"] == TokenType.CONTROL
