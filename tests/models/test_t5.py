"""T5: every family in a base that reads one text and writes another, row by row, with the cache and beams."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import get_args

import pytest
import torch
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache, EncoderDecoderCache
from transformers.masking_utils import sdpa_mask

import halka
from contract import disturb, ids
from halka.core import AdaptedModel, Method
from halka.methods.prefix import AttentionRole
from halka.models.attention.function import use_attention
from tiny import SEQ2SEQ, tiny

TARGETS = get_args(AttentionRole)

P = 5
every_architecture = pytest.mark.parametrize("architecture", SEQ2SEQ)
LABELS = ids(length=7, seed=5)


def adapted(method: Method, architecture: str = "t5", *, trained: bool = True) -> AdaptedModel:
    model = halka.adapt(tiny(architecture))
    model.add("a", method)
    if trained:
        disturb(model, "a")
    return model


def mixed() -> tuple[AdaptedModel, list[str | None], list[torch.Tensor], torch.Tensor, torch.Tensor]:
    """Seven adapters' names, a text for each, and these as one batch filled up behind: ids and mask."""
    model = adapted(halka.Prompt(length=P))
    for name, method in {
        "lora": halka.LoRA(rank=3),
        "prefix": halka.Prefix(length=7),
        "short": halka.Prefix(length=2),
        "bottleneck": halka.Bottleneck(width=6),
        "everywhere": halka.Prefix(length=3, targets=TARGETS),
    }.items():
        model.add(name, method)
        disturb(model, name, by=0.2)
    texts = [ids(1, length, seed=length)[0] for length in (4, 9, 6, 5, 8, 7, 6)]
    batch, mask = torch.zeros(7, 9, dtype=torch.int64), torch.zeros(7, 9, dtype=torch.int64)
    for row, text in enumerate(texts):
        batch[row, : len(text)], mask[row, : len(text)] = text, 1
    return model, ["a", None, "lora", "prefix", "short", "bottleneck", "everywhere"], texts, batch, mask


# ── the contract ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_rows_of_a_mixed_batch_equal_their_own_runs():
    model, names, texts, batch, mask = mixed()
    labels = ids(7, 7, seed=5)
    with torch.no_grad(), model.use(names):
        together = model.base(batch, attention_mask=mask, labels=labels).logits
        searched = model.base.generate(batch, attention_mask=mask, max_new_tokens=5, do_sample=False, num_beams=2)
    outputs = set()
    for row, (name, text) in enumerate(zip(names, texts, strict=True)):
        with torch.no_grad(), model.use(name):
            alone = model.base(text[None], labels=labels[row : row + 1]).logits[0]
            torch.testing.assert_close(together[row], alone, rtol=0, atol=1e-4)
            own = model.base.generate(text[None], max_new_tokens=5, do_sample=False, num_beams=2)[0]
        assert torch.equal(searched[row, : len(own)], own)
        outputs.add(tuple(own.tolist()))
    assert len(outputs) > 1
    with torch.no_grad(), model.use(["a", None]):  # without a mask: all tokens are real
        pair = model.base(ids(2), labels=LABELS[:2]).logits
    for row, name in enumerate(["a", None]):
        with torch.no_grad(), model.use(name):
            own = model.base(ids(2), labels=LABELS[:2]).logits[row]
        torch.testing.assert_close(pair[row], own, rtol=0, atol=1e-4)


@every_architecture
def test_targets_of_both_stacks_and_of_the_attention_between_them(architecture):
    targets = halka.adapt(tiny(architecture)).targets
    gate = {"mlp.gate"} if architecture == "flan-t5" else set()
    rest = {"attn", "mlp", "attn.residual", "mlp.residual", "memory", "embed", "embedding", "head", "base"}
    linears = {"attn.q", "attn.k", "attn.v", "attn.o", "mlp.up", "mlp.down"}
    assert {each.role for each in targets} == linears | gate | rest | {"memory.encoder", "memory.cross", "memory.gated"}
    queries = [each.name.split(".layer.")[-1] for each in targets if each.role == "attn.q" and each.layer == 1]
    assert queries == ["0.SelfAttention.q", "0.SelfAttention.q", "1.EncDecAttention.q"]
    assert len({each.key for each in targets}) == len(targets)


def test_attention_with_relative_positions_is_transformers_own():
    base = tiny("t5")
    mask = torch.ones(3, 9, dtype=torch.int64)
    mask[1, 6:] = 0
    decoder_mask = torch.ones(3, 7, dtype=torch.int64)
    decoder_mask[2, :3] = 0
    for given in ({}, {"attention_mask": mask}, {"attention_mask": mask, "decoder_attention_mask": decoder_mask}):
        with torch.no_grad():
            expected = base(ids(), labels=LABELS, **given).logits
            with use_attention(base):
                ours = base(ids(), labels=LABELS, **given).logits
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-4)


def test_another_threads_pass_of_either_stack_is_refused():
    model = adapted(halka.Prompt(length=P))
    base, mask = model.base, torch.ones(3, 9, dtype=torch.int64)
    states = base.encoder(ids(), attention_mask=mask)
    passes = [
        lambda: base.encoder(ids()),
        lambda: base(encoder_outputs=states, labels=LABELS),
        lambda: base.generate(ids(), max_new_tokens=2),
    ]
    with model.use("a"), ThreadPoolExecutor(1) as other:
        for each in passes:
            with pytest.raises(RuntimeError, match=r"called outside of `with model\.use"):
                other.submit(each).result()


def test_a_batch_of_other_rows_than_were_named_is_refused():
    model = adapted(halka.LoRA(rank=2))
    with model.use(["a", None]), pytest.raises(ValueError, match="3 rows"):
        model.base(ids(), labels=LABELS)


# ── virtual tokens ──────────────────────────────────────────────────────────────────────────────────────────────────


@every_architecture
def test_a_prefix_is_a_cache_of_the_decoder(architecture):
    model = adapted(halka.Prefix(length=P), architecture)
    (part,) = model.adapters["a"].parts.values()
    keys_values = part.virtual().detach().permute(1, 2, 0, 3)[:, None]  # 2L 1 H P W
    own = DynamicCache(config=model.base.decoder.config)
    for layer, (key, value) in enumerate(keys_values.split(2)):
        own.update(key.expand(3, -1, -1, -1), value.expand(3, -1, -1, -1), layer)
    cache = EncoderDecoderCache(own, DynamicCache(config=model.base.decoder.config))
    with torch.no_grad():
        expected, bare = (model.base(ids(), labels=LABELS, cache=each).logits for each in (cache, None))
        with model.use("a"):
            ours = model.base(ids(), labels=LABELS).logits
    assert (expected - bare).abs().max() > 1e-2
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-4)


@every_architecture
@pytest.mark.parametrize("target", TARGETS)
def test_a_prefix_joins_the_attention_it_is_for(target, architecture):
    """Every query against the text and against virtual keys right before it, by hand."""
    model = adapted(halka.Prefix(length=P, targets=(target,)), architecture)
    (part,) = model.adapters["a"].parts.values()
    keys_values = part.virtual().detach().permute(1, 2, 0, 3)  # 2L H P W
    stacks = {"memory": model.base.decoder, "memory.encoder": model.base.encoder, "memory.cross": model.base.decoder}
    path = "1.EncDecAttention" if target == "memory.cross" else "0.SelfAttention"
    places = [block.layer.get_submodule(path) for block in stacks[target].block]

    def by_hand(module, query, key, value, attention_mask, position_bias=None, **unused):
        queries, keys = query.shape[2], key.shape[2]
        causal = module.is_causal and attention_mask is None
        scores = query @ key.mT + position_bias
        if causal:
            scores = scores.masked_fill(~torch.ones(queries, keys, dtype=torch.bool).tril(), float("-inf"))
        if module in places:
            own, more = keys_values[2 * module.layer_idx : 2 * module.layer_idx + 2, None]
            before = query @ own.mT
            if target != "memory.cross":
                before = before + places[0].compute_bias(P + queries, P + queries)[:, :, P:, :P]
            scores, value = torch.cat([before, scores], -1), torch.cat([more.expand(len(query), -1, -1, -1), value], 2)
        return (scores.softmax(-1) @ value).transpose(1, 2), None

    with torch.no_grad():
        bare = model.base(ids(), labels=LABELS).logits
        with model.use("a"):
            ours = model.base(ids(), labels=LABELS).logits
        AttentionInterface.register("by hand", by_hand)
        AttentionMaskInterface.register("by hand", sdpa_mask)
        for stack in (model.base, model.base.encoder, model.base.decoder):
            stack.config._attn_implementation = "by hand"
        expected = model.base(ids(), labels=LABELS).logits
    assert (ours - bare).abs().max() > 1e-2
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("target", TARGETS[1:])
def test_a_prefix_from_tokens_holds_what_the_base_computes_for_them(target):
    tokens, model = (7, 8, 9, 10), halka.adapt(tiny("t5"))
    model.add("a", halka.Prefix(length=4, tokens=tokens, targets=(target,)))
    (part,) = model.adapters["a"].parts.values()
    base, seen = model.base, {}
    stack = base.encoder if target == "memory.encoder" else base.decoder
    path = "1.EncDecAttention" if target == "memory.cross" else "0.SelfAttention"
    for layer, block in enumerate(stack.block):
        for each in "kv":
            linear = block.layer.get_submodule(f"{path}.{each}")
            linear.register_forward_hook(lambda m, a, y, at=(layer, each): seen.update({at: y}))
    text = torch.tensor([tokens])
    with torch.no_grad():
        base(text, decoder_input_ids=text)
    expected = torch.stack([seen[layer, each][0] for layer in range(2) for each in "kv"], dim=1)
    torch.testing.assert_close(part.virtual().flatten(2), expected, rtol=0, atol=1e-4)


@every_architecture
def test_a_prompt_is_embeddings_in_front_of_the_encoders_text(architecture):
    model = adapted(halka.Prompt(length=P), architecture)
    (embeddings,) = model.parameters("a")
    words = model.base.get_input_embeddings()(ids())
    mask = torch.ones(3, 9, dtype=torch.int64)
    mask[1, 6:] = 0
    joined = torch.cat([embeddings.expand(3, -1, -1), words], dim=1)
    expected = model.base(inputs_embeds=joined, attention_mask=torch.cat([mask.new_ones(3, P), mask], 1), labels=LABELS)
    expected.loss.backward()
    gradient, embeddings.grad = embeddings.grad, None
    with model.use("a"):
        ours = model.base(ids(), attention_mask=mask, labels=LABELS)
        ours.loss.backward()
    torch.testing.assert_close(ours.logits, expected.logits, rtol=0, atol=1e-4)
    assert gradient.abs().max() > 1e-4
    torch.testing.assert_close(embeddings.grad, gradient, rtol=1e-3, atol=1e-6)


def test_a_prefix_from_tokens_is_what_the_decoder_wrote_before():
    """Without an encoder: the start of a prefix is the decoder's own reading of the tokens."""
    tokens = (7, 8, 9, 10)
    model = halka.adapt(tiny("t5"))
    model.add("a", halka.Prefix(length=4, tokens=tokens))
    decoder, text = model.base.decoder, ids()
    with torch.no_grad():
        whole = torch.cat([torch.tensor(tokens).expand(3, -1), text], dim=1)
        expected = decoder(input_ids=whole).last_hidden_state[:, 4:]
        with model.use("a"):
            ours = decoder(input_ids=text).last_hidden_state
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-4)


def test_what_an_encoder_returned_before_is_taken_as_it_is():
    model = adapted(halka.Prompt(length=P))
    mask = torch.ones(3, 9, dtype=torch.int64)
    with torch.no_grad():
        states = model.base.encoder(ids(), attention_mask=mask)
        expected = model.base(encoder_outputs=states, attention_mask=mask, labels=LABELS).logits
        with model.use("a"):
            ours = model.base(encoder_outputs=states, attention_mask=mask, labels=LABELS).logits
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-4)


BIAS = "module:encoder.block.0.layer.0.SelfAttention.relative_attention_bias"


@pytest.mark.parametrize("method", [halka.Modules((BIAS,)), halka.LoRA(targets=(BIAS,))], ids=lambda it: it.name)
def test_positions_that_all_rows_share_are_not_trained(method):
    with pytest.raises(ValueError, match="relative_attention_bias is called once for all rows of a batch"):
        adapted(method)
