"""BERT, RoBERTa and ModernBERT: every family does there what it says, for masked words, labels and labels of tokens."""

from __future__ import annotations

import pytest
import torch
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache
from transformers.masking_utils import sdpa_mask

import halka
from contract import disturb, ids
from halka.core import AdaptedModel, Method
from halka.models import context
from tiny import ENCODERS, tiny

peft = pytest.importorskip("peft")
P = 5
KINDS = ("masked-lm", "sequence-classification", "token-classification")
every_architecture = pytest.mark.parametrize("architecture", ENCODERS)
every_kind = pytest.mark.parametrize("kind", KINDS)
peft_warns = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")


def adapted(architecture: str, kind: str, method: Method, *, trained: bool = True) -> AdaptedModel:
    model = halka.adapt(tiny(architecture, kind=kind))
    model.head = None  # the base's own serves: what is tried is the method
    model.add("a", method)
    if trained:
        disturb(model, "a")
    return model


def virtual(model: AdaptedModel, name: str = "a") -> torch.Tensor:
    return next(part.virtual() for path, part in model.adapters[name].parts.items() if path != "classifier")


def rows_of_unlike_length(architecture: str) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
    """Five texts, and these as one batch filled up behind: ids and mask."""
    texts = [ids(1, length, seed=length)[0] for length in (4, 9, 6, 5, 8)]
    batch = torch.full((5, 9), ENCODERS[architecture]["pad_token_id"])
    mask = torch.zeros(5, 9, dtype=torch.int64)
    for row, text in enumerate(texts):
        batch[row, : len(text)], mask[row, : len(text)] = text, 1
    return texts, batch, mask


# ── rows and roles ────────────────────────────────────────────────────────────────────────────────────────────────────


@every_architecture
@every_kind
def test_rows_of_a_mixed_batch_equal_their_own_runs(kind, architecture):
    model = adapted(architecture, kind, halka.Prompt(length=P))
    for name, method in {
        "lora": halka.LoRA(rank=3),
        "prefix": halka.Prefix(length=7),
        "short": halka.Joint((halka.Prompt(length=2), halka.Modules())),
    }.items():
        model.add(name, method)
        disturb(model, name)
    texts, batch, mask = rows_of_unlike_length(architecture)
    names = ["a", None, "lora", "prefix", "short"]
    with torch.no_grad(), model.use(names):
        together = model.base(batch, attention_mask=mask).logits
    for row, (name, text) in enumerate(zip(names, texts, strict=True)):
        with torch.no_grad(), model.use(name):
            alone = model.base(text[None]).logits[0]
        own = together[row] if kind == "sequence-classification" else together[row, : len(text)]
        torch.testing.assert_close(own, alone, rtol=0, atol=1e-5)
    if kind != "sequence-classification":
        assert together.shape[1] == batch.shape[1]
    with torch.no_grad(), model.use(["prefix", "short"]):  # without a mask: all tokens are real
        pair = model.base(ids(2)).logits
    for row, name in enumerate(["prefix", "short"]):
        with torch.no_grad(), model.use(name):
            torch.testing.assert_close(pair[row], model.base(ids(2)).logits[row], rtol=0, atol=1e-5)


@pytest.mark.parametrize(("architecture", "room"), [("bert", 128), ("roberta", 128), ("modernbert", 128)])
def test_the_room_for_text_is_what_the_positions_leave(architecture, room):
    model = adapted(architecture, "masked-lm", halka.Prefix(length=P))
    assert (context(model), context(model, "a")) == (room, room - P)
    with torch.no_grad(), model.use("a"):
        model.base(ids(1, room - P))


@every_architecture
def test_roles_are_those_of_every_other_architecture(architecture):
    roles = {each.role for each in halka.adapt(tiny(architecture)).targets}
    fused = {"attn.qkv", "mlp.gate_up"} if architecture == "modernbert" else {"attn.q", "attn.k", "attn.v", "mlp.up"}
    rest = {"attn.residual", "mlp.residual", "memory", "memory.gated", "embed", "embedding", "head", "base"}
    assert roles == {"attn.o", "mlp.down", "attn", "mlp", *rest, *fused}


# ── virtual tokens ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("architecture", ["bert", "roberta"])
@every_kind
def test_a_prefix_is_a_cache_with_those_keys_and_values(kind, architecture):
    """What peft hands to these bases; it does so for masked words alone."""
    model = adapted(architecture, kind, halka.Prefix(length=P))
    keys_values = virtual(model).detach().permute(1, 2, 0, 3)[:, None]  # 2L 1 H P W
    cache = DynamicCache(config=model.base.config)
    for layer, (key, value) in enumerate(keys_values.split(2)):
        cache.update(key.expand(3, -1, -1, -1), value.expand(3, -1, -1, -1), layer)
    encoder = model.base.get_submodule(architecture)
    handle = encoder.register_forward_pre_hook(lambda m, a, k: (a, {**k, "cache": cache}), with_kwargs=True)
    with torch.no_grad():
        expected = model.base(ids()).logits
        handle.remove()
        bare = model.base(ids()).logits
        with model.use("a"):
            ours = model.base(ids()).logits
    assert (expected - bare).abs().max() > 1e-3
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)


def test_in_sliding_windows_every_token_sees_the_prefix():
    """Every query against virtual keys and those within its window, by hand."""
    model = adapted("modernbert", "masked-lm", halka.Prefix(length=P))
    keys_values = virtual(model).detach().permute(1, 2, 0, 3)  # 2L H P W
    text, seen = ids(length=14), []

    def by_hand(module, query, key, value, attention_mask, scaling=None, **unused):
        window = module.sliding_window - 1 if module.sliding_window else len(text[0])
        places = torch.arange(key.shape[2])
        near = (places[:, None] - places).abs() <= window
        seen.append(bool(near.all()))
        mask = torch.cat([torch.ones(len(places), P, dtype=torch.bool), near], dim=1)
        own = keys_values[2 * module.layer_idx : 2 * module.layer_idx + 2, None]
        key = torch.cat([own[0].expand(len(query), -1, -1, -1), key], dim=2)
        value = torch.cat([own[1].expand(len(query), -1, -1, -1), value], dim=2)
        scores = (query @ key.mT * scaling).masked_fill(~mask, float("-inf"))
        return (scores.softmax(-1) @ value).transpose(1, 2), None

    AttentionInterface.register("by hand", by_hand)
    AttentionMaskInterface.register("by hand", sdpa_mask)
    with torch.no_grad(), model.use("a"):
        ours = model.base(text).logits
    model.base.set_attn_implementation("by hand")
    with torch.no_grad():
        expected = model.base(text, position_ids=torch.arange(P, P + 14)[None]).logits
    assert seen == [True, False]  # a layer with a window, and one without
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)


@every_architecture
@every_kind
def test_a_prompt_is_embeddings_in_front_of_the_text(kind, architecture):
    model = adapted(architecture, kind, halka.Prompt(length=P))
    (embeddings,) = model.parameters("a")
    words = model.base.get_input_embeddings()(ids())

    def joined():
        return model.base(inputs_embeds=torch.cat([embeddings.expand(3, -1, -1), words], dim=1)).logits

    expected = joined() if kind == "sequence-classification" else joined()[:, P:]
    expected.square().mean().backward()
    gradient, embeddings.grad = embeddings.grad, None
    with model.use("a"):
        ours = model.base(ids()).logits
        ours.square().mean().backward()
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)
    assert gradient.abs().max() > 1e-7
    torch.testing.assert_close(embeddings.grad, gradient, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_modernbert_pools_the_first_token_or_the_mean_with_the_prompt(pooling):
    model = halka.adapt(tiny("modernbert", kind="sequence-classification", classifier_pooling=pooling))
    model.head = None
    model.add("a", halka.Prompt(length=P))
    words = model.base.get_input_embeddings()(ids())
    mask = torch.ones(3, 9, dtype=torch.int64)
    mask[1, 6:] = 0
    (embeddings,) = model.parameters("a")
    whole = torch.cat([embeddings.expand(3, -1, -1), words], dim=1)
    with torch.no_grad():
        expected = model.base(inputs_embeds=whole, attention_mask=torch.cat([mask.new_ones(3, P), mask], 1)).logits
        with model.use("a"):
            ours = model.base(ids(), attention_mask=mask).logits
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", [halka.Prefix(length=P), halka.Prompt(length=P)], ids=lambda m: m.name)
def test_sentence_pairs_keep_their_types_and_given_positions_move(method):
    model = adapted("bert", "masked-lm", method)
    types = (torch.arange(9) > 4).long().expand(3, -1)
    with torch.no_grad(), model.use("a"):
        typed = model.base(ids(), token_type_ids=types).logits
        given = model.base(ids(), token_type_ids=types, position_ids=torch.arange(9)[None]).logits
        plain = model.base(ids()).logits
    assert (typed - plain).abs().max() > 1e-4
    torch.testing.assert_close(given, typed, rtol=0, atol=1e-6)


def test_too_long_a_text_and_a_mask_that_is_not_of_tokens_are_refused():
    model = adapted("roberta", "masked-lm", halka.Prompt(length=P))
    with torch.no_grad(), model.use("a"):
        model.base(ids(1, 123))
        with pytest.raises(ValueError, match="5 virtual tokens and 124 of text exceed the base's 128 positions"):
            model.base(ids(1, 124))
        with pytest.raises(ValueError, match=r"attention_mask as \(rows, tokens\), not \(3, 1, 9, 9\)"):
            model.base(ids(), attention_mask=torch.ones(3, 1, 9, 9))


# ── heads ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("architecture", "kind", "head"),
    [
        ("bert", "masked-lm", "cls.predictions.decoder"),
        ("bert", "sequence-classification", "classifier"),
        ("roberta", "sequence-classification", "classifier"),
        ("roberta", "token-classification", "classifier"),
        ("modernbert", "token-classification", "classifier"),
        ("llama", "sequence-classification", "score"),
    ],
)
def test_the_head_is_that_of_the_class(architecture, kind, head):
    model = halka.adapt(tiny(architecture, kind=kind))
    (target,) = (each for each in model.targets if each.role == "head")
    assert target.name == head
    if architecture == "modernbert":
        assert set(model.add("b", halka.Modules(("head", "head.dense"))).parts) == {head, "head.dense"}
    adapter = model.add("a", halka.Modules())
    assert set(adapter.parts) == {head}
    assert len(adapter.parameters()) == len(list(model.base.get_submodule(head).parameters()))


def test_a_head_of_several_layers_takes_no_lora():
    model = halka.adapt(tiny("roberta", kind="sequence-classification"))
    model.head = None
    for method in (halka.LoRA(targets=("head",)), halka.BitFit(targets=("head",)), halka.IA3(targets=("head",))):
        with pytest.raises(ValueError, match=r"classifier is a .*, not a linear layer: .* train it whole"):
            model.add("a", method)


def test_an_embedding_takes_what_is_for_linear_layers_by_no_name():
    for method in (halka.DoRA, halka.IA3, halka.BitFit):
        with pytest.raises(ValueError, match=r"embed_tokens is a Embedding, not a linear layer"):
            halka.adapt(tiny()).add("a", method(targets=("module:model.embed_tokens",)))


def test_a_class_built_in_another_way_is_refused():
    import transformers

    config = transformers.AutoConfig.for_model("t5", d_model=16, d_kv=8, num_heads=2, d_ff=16, num_layers=1)
    with pytest.raises(ValueError, match=r"T5ForTokenClassification has no .*t5 models for token-classification"):
        halka.adapt(transformers.AutoModelForTokenClassification.from_config(config))
    decoder = transformers.AutoConfig.for_model("bert", is_decoder=True, **ENCODERS["bert"])
    with pytest.raises(ValueError, match="BertLMHeadModel has no causal decoder: of bert models for causal-lm"):
        halka.adapt(transformers.AutoModelForCausalLM.from_config(decoder))
    bert = transformers.AutoConfig.for_model("bert", **ENCODERS["bert"])
    with pytest.raises(ValueError, match="BertForQuestionAnswering is none of"):
        halka.adapt(transformers.AutoModelForQuestionAnswering.from_config(bert))
