"""What merging costs: measured beside the adapter's effect, and refused past a limit; every bit comes back."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from transformers.initialization import no_init_weights

import halka
from contract import disturb, has_weights, ids, weights_of
from halka.core.weights import merged_weights
from halka.data.examples import Example, Message
from halka.data.texts import shipped_text
from halka.data.tokens import Tokens
from halka.estimating.allocator import AllocatorModel
from halka.estimating.dry_runs import Setup, model_of
from halka.estimating.fake_tensors import DryRunMode
from halka.merging.error import PARTS, Difference, difference
from halka.merging.precision import in_precision
from halka.merging.probes import probe_rows
from halka.models.quantised import quantise
from kinds import bare, logits, model_with
from tiny import tiny
from tokenizers_for_tests import chatml_tokenizer, llama3_tokenizer

PROBES = [Tokens(row, [True] * len(row)) for row in ids(rows=4, length=40).tolist()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["lora", "dora", "ia3"])
def test_the_error_is_that_of_the_two_models_and_all_is_as_it_was(kind, dtype):
    model = model_with(kind, dtype=dtype)
    before, untouched = weights_of(model.base), bare(model)
    found = halka.merge_error(model, kind, PROBES)
    assert model.merged is None
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.base.named_parameters())
    assert torch.equal(bare(model), untouched)

    batch = torch.tensor([row.ids for row in PROBES])
    with torch.no_grad(), model.use(kind):
        unmerged = torch.cat([model.base(row[None]).logits[0, :-1] for row in batch])
    model.merge(kind)
    with torch.no_grad():
        merged = torch.cat([model.base(row[None]).logits[0, :-1] for row in batch])
    assert found.tokens == len(merged)
    gap = (unmerged.double() - merged.double()).abs()
    assert found.error.max == gap.max().item()
    assert found.error.mean == pytest.approx(gap.mean().item())
    slow = torch.nn.functional.kl_div(
        merged.double().log_softmax(-1), unmerged.double().log_softmax(-1), log_target=True, reduction="batchmean"
    )
    assert found.error.kl == pytest.approx(slow.item(), rel=1e-9, abs=1e-15)
    assert found.relative == found.error.kl / found.effect.kl
    assert f"merging '{kind}'" in str(found)


@pytest.mark.parametrize("rows", [1, 3])
def test_many_probes_are_compared_in_chunks(rows):
    model = model_with("lora", dtype=torch.bfloat16)
    before = weights_of(model.base)
    whole = halka.merge_error(model, "lora", PROBES)
    passes: list[int] = []
    model.base.register_forward_hook(lambda *_: passes.append(1))
    in_chunks = halka.merge_error(model, "lora", PROBES, at_once=rows * 39 * model.base.config.vocab_size)
    assert len(passes) == 5 * len(PROBES)
    assert in_chunks.tokens == whole.tokens
    for part in PARTS:
        one, other = (dataclasses.asdict(getattr(error, part)) for error in (whole, in_chunks))
        assert one == pytest.approx(other, rel=1e-6), part
    assert has_weights(model.base, before)


def test_rounding_is_what_sets_the_precisions_apart():
    found = {
        dtype: halka.merge_error(model_with("lora", dtype=dtype), "lora", PROBES)
        for dtype in (torch.float32, torch.float16, torch.bfloat16)
    }
    exact, half, brain = (found[dtype] for dtype in (torch.float32, torch.float16, torch.bfloat16))
    assert exact.dtype == "float32"
    for part in ("error", "noise", "merged", "rounding"):
        sizes = [getattr(each, part).max for each in (exact, half, brain)]
        assert sizes[0] < 1e-5 < sizes[1] < sizes[2], part
    assert brain.effect.max == pytest.approx(exact.effect.max, rel=0.1)
    assert brain.rounding.max < brain.effect.max


def test_a_base_in_the_widest_precision_is_measured_too():
    model = model_with("lora", dtype=torch.float64)
    found = halka.merge_error(model, "lora", PROBES)
    assert found.relative < 1e-8
    assert found.noise.max == 0


def test_the_exact_pass_is_that_of_a_base_of_that_precision():
    model, wide = (model_with("lora", "dora", dtype=dtype) for dtype in (torch.bfloat16, torch.float32))
    with torch.no_grad():
        for own, parameter in zip(wide.base.parameters(), model.base.parameters(), strict=True):
            own.copy_(parameter)
    wide.adapters["dora"].load_state_dict(model.adapters["dora"].state_dict())
    for kind in ("lora", "dora", None):
        with in_precision(model, torch.float32):
            assert torch.equal(logits(model, kind), logits(wide, kind))
    assert model.base.lm_head.weight.dtype == torch.bfloat16


def test_what_is_tied_stays_so_in_another_precision():
    model = model_with("lora", dtype=torch.bfloat16, tie_word_embeddings=True)
    with in_precision(model, torch.float32):
        assert model.base.lm_head.weight is model.base.model.embed_tokens.weight
        assert model.base.lm_head.weight.dtype == torch.float32
    assert model.base.lm_head.weight is model.base.model.embed_tokens.weight
    with model.use("lora"), pytest.raises(ValueError, match="needs an idle base"), in_precision(model, torch.float32):
        pass


def test_an_error_past_the_limit_is_refused():
    model = model_with("lora", dtype=torch.bfloat16)
    found = halka.merge_error(model, "lora", PROBES)
    assert model.merged is None
    assert 0 < found.relative < 0.05
    found.check()
    with pytest.raises(halka.HalkaError, match=r"of its effect .* past the limit .* force it"):
        found.check(found.relative / 2)


def test_logits_that_are_not_finite_are_no_small_error():
    model = halka.adapt(tiny(dtype=torch.float16))
    model.add("a", halka.LoRA(rank=4))
    disturb(model, "a", by=3000)
    with pytest.raises(ValueError, match="the logits of 'a' on a base in float16 are not finite"):
        halka.merge_error(model, "a", PROBES)
    assert model.merged is None
    with pytest.raises(ValueError, match="these logits are not finite"):
        difference([torch.zeros(2, 3)], [torch.full((2, 3), torch.nan)])
    found = halka.merge_error(model_with("lora"), "lora", PROBES)
    for limit, relative in ((torch.nan, found.error.kl), (0.05, torch.nan)):
        odd = dataclasses.replace(found, error=dataclasses.replace(found.error, kl=relative))
        with pytest.raises(ValueError, match="past the limit"):
            odd.check(limit)


def test_an_adapter_without_effect_is_merged_where_nothing_changes():
    model = halka.adapt(tiny())
    model.add("start", halka.LoRA(rank=2))
    found = halka.merge_error(model, "start", PROBES)
    assert found.effect.kl == found.error.kl == found.relative == 0
    assert dataclasses.replace(found, error=Difference(1, 1, 1, 0)).relative == float("inf")


@pytest.mark.parametrize("kind", ["parallel", "prefix", "full"])
def test_what_cannot_be_merged_is_said(kind):
    model = model_with(kind)
    with pytest.raises(ValueError, match=r"not mergeable|cannot be merged"):
        halka.merge_error(model, kind, PROBES)


def test_a_base_in_use_is_not_measured():
    model = model_with("lora", "ia3")
    with model.use("ia3"), pytest.raises(ValueError, match="needs an idle base"):
        halka.merge_error(model, "lora", PROBES)
    model.merge("lora")
    with pytest.raises(ValueError, match="needs an idle base"):
        halka.merge_error(model, "ia3", PROBES)
    assert model.merged == "lora"


def test_a_packed_weight_is_refused_by_name_with_the_way_out():
    base = tiny()
    quantise(base, "int8")
    model = halka.adapt(base)
    model.add("lora", halka.LoRA(rank=4))
    with pytest.raises(ValueError, match=r"layers\.0\..*q_proj is quantised to int8: .*load the base without"):
        model.merge("lora")
    assert model.merged is None


def test_merged_weights_come_in_the_precision_that_is_asked_for():
    model = model_with("lora", dtype=torch.bfloat16)
    own, wide = (dict(merged_weights(model.adapters["lora"], dtype)) for dtype in (None, torch.float32))
    assert own.keys() == wide.keys()
    for name, weight in wide.items():
        assert weight.dtype == torch.float32
        assert torch.equal(weight.bfloat16(), own[name])


def test_two_parts_at_one_weight_are_rounded_once():
    """A Joint of an output scale and its offset at one module is built by hand: both are inside, fp32 in between."""
    model = model_with("ia3", "bitfit", architecture="qwen2", dtype=torch.bfloat16)
    path = "model.layers.0.self_attn.v_proj"
    adapter = model.adapters["ia3"]
    assert adapter.parts[path].ia3_l.dtype == torch.float32
    weight, bias = (model.base.get_submodule(path).get_parameter(key) for key in ("weight", "bias"))
    found = dict(merged_weights(adapter))
    factors = adapter.parts[path].ia3_l
    assert torch.equal(found[f"{path}.weight"], (weight.float() * factors[:, None]).bfloat16())
    assert torch.equal(found[f"{path}.bias"], (bias.float() * factors).bfloat16())


def test_probes_are_texts_examples_or_tokens():
    tokenizer = chatml_tokenizer()
    model = halka.adapt(tiny(vocab_size=len(tokenizer), max_position_embeddings=64), tokenizer)
    text = "What is the capital of France? " * 30
    rows = probe_rows(model, text)
    assert [i for row in rows for i in row.ids] == tokenizer.encode(text)[: sum(len(row.ids) for row in rows)]
    assert {len(row.ids) for row in rows[:-1]} == {64}
    example = Example((Message("user", "Yes?"), Message("assistant", "No.")))
    (row,) = probe_rows(model, [example])
    assert 0 < sum(row.loss) < len(row.loss)
    assert probe_rows(model, [text, example, PROBES[0]]) == [*rows, row, PROBES[0]]
    assert len(shipped_text("merging").split()) > 300
    assert probe_rows(model, None)
    with pytest.raises(ValueError, match="no probes"):
        probe_rows(model, [])
    with pytest.raises(ValueError, match="nothing to compare"):
        probe_rows(model, [Tokens([5], [True])])
    with pytest.raises(ValueError, match="need the model's tokenizer"):
        probe_rows(halka.adapt(tiny()), None)


def test_a_text_begins_as_the_base_reads_texts():
    tokenizer = llama3_tokenizer()
    model = halka.adapt(tiny(vocab_size=len(tokenizer), max_position_embeddings=64), tokenizer)
    rows = probe_rows(model, "What is the capital of France? " * 30)
    assert {row.ids[0] for row in rows} == {tokenizer.bos_token_id}
    assert {len(row.ids) for row in rows[:-1]} == {64}


def test_only_places_that_count_are_compared():
    model = model_with("lora")
    whole = halka.merge_error(model, "lora", PROBES)
    some = halka.merge_error(model, "lora", [Tokens(row.ids, [True, *[False] * 38, True]) for row in PROBES])
    assert (whole.tokens, some.tokens) == (4 * 39, 4)
    assert some.effect != whole.effect


@pytest.mark.parametrize(
    ("architecture", "kind"),
    [("bert", "sequence-classification"), ("bert", "token-classification"), ("flan-t5", "seq2seq-lm")],
)
def test_bases_of_other_kinds_are_compared_by_what_they_give(architecture, kind):
    model = halka.adapt(tiny(architecture, kind=kind))
    model.add("a", halka.LoRA(rank=2, alpha=4))
    disturb(model, "a", by=0.2)
    found = halka.merge_error(model, "a", PROBES)
    assert found.tokens == (4 if kind == "sequence-classification" else 4 * 39)
    assert found.error.max < 1e-4 < 1e-3 < found.effect.max


def test_a_difference_of_distributions_is_no_difference_of_logits_that_are_shifted():
    a = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    found = difference([a], [a + 1])
    assert (found.max, found.mean) == (pytest.approx(1), pytest.approx(1))
    assert found.kl == pytest.approx(0, abs=1e-12)
    assert found.same_token == 1


def test_one_weight_is_merged_before_the_next_begins():
    """Beside the merged weights, in bf16, some copies of one in fp32: not all weights in fp32."""
    config = tiny("llama", hidden_size=256, intermediate_size=512, num_hidden_layers=8, vocab_size=64).config
    with DryRunMode(AllocatorModel(), gpu=True) as mode:
        with no_init_weights():
            model = model_of(config, Setup())
        model.add("a", halka.LoRA(rank=4))
        before = mode.live
        mode.reset()
        model.merge("a")
        merged, largest = mode.live - before, 256 * 512
        assert merged == sum(target.d_in * target.d_out for target in model.adapters["a"].targets.values()) * 2
        assert mode.peak - before <= merged + 4 * largest * 4


@pytest.mark.parametrize("path", ["transformer.h.0.attn.c_proj", "transformer.h.0.mlp.c_fc"])
def test_a_transposed_weight_that_is_trained_whole_is_merged_as_it_stands(path):
    model = halka.adapt(tiny("gpt2"))
    model.add("a", halka.Modules((path,)))
    disturb(model, "a")
    with torch.no_grad(), model.use("a"):
        expected = model.base(ids()).logits
    model.merge("a")
    with torch.no_grad():
        torch.testing.assert_close(model.base(ids()).logits, expected, rtol=0, atol=1e-5)
