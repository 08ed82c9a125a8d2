"""Virtual tokens are what a cache, or embeddings in front of the text, would be: for each row its own."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import DynamicCache

import halka
from contract import adapted, disturb, ids, padded
from halka.core import AdaptedModel
from halka.models import context
from halka.models.attention.forest import ForestPlan
from halka.util.forest import Forest
from numbers_for_tests import close
from tiny import CONFIGS, tiny

P = 5
every_architecture = pytest.mark.parametrize("architecture", CONFIGS)


def virtual(model: AdaptedModel, name: str = "a") -> torch.Tensor:
    (part,) = model.adapters[name].parts.values()
    return part.virtual()


def through_a_cache(model: AdaptedModel, text: torch.Tensor) -> torch.Tensor:
    """The logits of a base that was handed the prefix's keys and values as its cache, for text (B, T)."""
    keys_values = virtual(model).detach().permute(1, 2, 0, 3)[:, None]  # 2L 1 H P W
    cache = DynamicCache(config=model.base.config)
    for layer, (key, value) in enumerate(keys_values.split(2)):
        cache.update(key.expand(len(text), -1, -1, -1), value.expand(len(text), -1, -1, -1), layer)
    return model.base(
        text,
        cache=cache,
        position_ids=torch.arange(P, P + text.shape[1])[None],
        attention_mask=torch.ones(len(text), P + text.shape[1], dtype=torch.int64),
    ).logits


def behind_embeddings(model: AdaptedModel, embeddings: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    """The logits of text (B, T) that follows embeddings (P, D) in the input itself."""
    words = model.base.get_input_embeddings()(text)
    joined = torch.cat([embeddings.expand(len(text), -1, -1), words], dim=1)
    return model.base(inputs_embeds=joined).logits[:, len(embeddings) :]


@contextmanager
def counted_readings(model: AdaptedModel):
    """How often the decoder was run over virtual tokens, and over text."""
    decoder, counts = model.base.get_decoder(), {"virtual": 0, "text": 0}

    def count(module, args, kwargs):
        counts["virtual" if kwargs.get("record") is not None else "text"] += 1

    handle = decoder.register_forward_pre_hook(count, with_kwargs=True, prepend=True)
    yield counts
    handle.remove()


# ── they are what they stand for ────────────────────────────────────────────────────────────────────────────────────


@every_architecture
def test_a_prefix_is_a_cache_with_those_keys_and_values(architecture):
    model = adapted(halka.Prefix(length=P), architecture=architecture)
    with torch.no_grad():
        expected, bare = through_a_cache(model, ids()), model.base(ids()).logits
        with model.use("a"):
            ours = model.base(ids()).logits
    assert (expected - bare).abs().max() > 1e-2
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-4)


@every_architecture
def test_a_prompt_is_embeddings_in_front_of_the_text(architecture):
    model = adapted(halka.Prompt(length=P), architecture=architecture)
    labels = ids().masked_fill(torch.arange(9) < 3, -100)
    (embeddings,) = model.parameters("a")
    expected = behind_embeddings(model, embeddings, ids())
    cross_entropy(expected[:, :-1].flatten(0, 1), labels[:, 1:].flatten()).backward()
    gradient, embeddings.grad = embeddings.grad, None
    with model.use("a"):
        ours = model.base(ids()).logits
        cross_entropy(ours[:, :-1].flatten(0, 1), labels[:, 1:].flatten()).backward()
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-4)
    assert gradient.abs().max() > 1e-4
    torch.testing.assert_close(embeddings.grad, gradient, rtol=1e-3, atol=1e-5)


@every_architecture
@pytest.mark.parametrize("method", [halka.Prefix, halka.Prompt])
def test_from_tokens_it_is_the_base_reading_those_tokens_first(method, architecture):
    """The start of a prefix or prompt from tokens is those tokens as context, exactly as the base reads them."""
    tokens = (7, 8, 9, 10)
    model = halka.adapt(tiny(architecture))
    model.add("a", method(length=4, tokens=tokens))
    text = ids()
    with torch.no_grad():
        context = torch.tensor(tokens).expand(len(text), -1)
        expected = model.base(torch.cat([context, text], dim=1)).logits[:, 4:]
        with model.use("a"):
            ours = model.base(text).logits
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-4)


# ── in batches ──────────────────────────────────────────────────────────────────────────────────────────────────────


def company(architecture: str = "llama", **changes) -> AdaptedModel:
    """Prompts and prefixes of unlike length on one base, and a LoRA, which has none."""
    model = halka.adapt(tiny(architecture, **changes))
    methods = {
        "a": halka.Prompt(length=P),
        "b": halka.Prompt(length=8),
        "c": halka.Prefix(length=3),
        "d": halka.Prefix(length=P),
        "e": halka.LoRA(rank=4),
    }
    for seed, (name, method) in enumerate(methods.items()):
        model.add(name, method, seed=seed)
        disturb(model, name, seed=seed, by=0.1 if name == "e" else 0.5)
    return model


NAMES = ["b", None, "c", "a", "d", "a", "e"]
LENGTHS = [4, 9, 6, 5, 8, 7, 3]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "opt", "gemma2"])
def test_rows_of_a_mixed_padded_batch_are_their_own(architecture, side):
    model = company(architecture)
    prompts = [ids(1, n, seed=n)[0] for n in LENGTHS]
    batch, mask, positions = padded(prompts, side)
    given = {} if architecture == "opt" or side == "right" else {"position_ids": positions}
    with torch.no_grad(), model.use(NAMES):
        together = model.base(batch, attention_mask=mask, **given).logits
    for row, (name, prompt) in enumerate(zip(NAMES, prompts, strict=True)):
        with torch.no_grad():
            if name in ("a", "b"):
                alone = behind_embeddings(model, virtual(model, name), prompt[None])[0]
            else:
                with model.use(name):
                    alone = model.base(prompt[None]).logits[0]
        torch.testing.assert_close(together[row][mask[row] == 1], alone, rtol=0, atol=1e-4)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("side", ["left", "right"])
def test_gradients_of_a_mixed_padded_batch_are_those_of_its_rows(side, checkpointing):
    model = company()
    prompts = [ids(1, n, seed=n)[0] for n in LENGTHS]
    batch, mask, positions = padded(prompts, side)
    expected = {name: [torch.zeros_like(p) for p in model.parameters(name)] for name in model.adapters}
    total = 0.0
    for name, prompt in zip(NAMES, prompts, strict=True):
        with model.use(name):
            loss = model.base(prompt[None], use_cache=False).logits.square().sum()
        total += float(loss.detach())
        if name is not None:
            parameters = model.parameters(name)
            for kept, gradient in zip(expected[name], torch.autograd.grad(loss, parameters), strict=True):
                kept += gradient
    model.base.train()
    if checkpointing:
        model.base.activation_checkpointing_enable({"use_reentrant": False})
    with model.use(NAMES):
        logits = model.base(batch, attention_mask=mask, position_ids=positions, use_cache=False).logits
        loss = logits[mask == 1].square().sum()
        loss.backward()
    assert float(loss.detach()) == pytest.approx(total, rel=1e-4)
    for name, gradients in expected.items():
        for parameter, gradient in zip(model.parameters(name), gradients, strict=True):
            assert gradient.abs().max() > 1e-3
            close(parameter.grad, gradient)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "opt", "mistral", "gemma3_text"])
@pytest.mark.parametrize("way", ["static cache", "sliding window", "piece by piece"])
def test_with_other_caches_a_mixed_batch_generates_as_without_a_cache(architecture, way):
    changes = {}
    if way == "sliding window":
        if architecture not in ("mistral", "gemma3_text"):
            pytest.skip("this architecture has none")
        changes = {"sliding_window": 16}  # wider than the text: see the next test
    model = company(architecture, **changes)
    kind = {"static cache": {"cache_implementation": "static"}, "piece by piece": {"prefill_chunk_size": 4}}.get(
        way, {}
    )
    with model.use(NAMES):
        expected = generated(model, use_cache=False)
        torch.testing.assert_close(generated(model, **kind), expected, rtol=0, atol=1e-4)
    with model.use(None):
        bare = generated(model)
    rows = torch.tensor([name is None for name in NAMES])
    torch.testing.assert_close(expected[0, rows], bare[0, rows], rtol=0, atol=1e-4)
    assert (expected[0, ~rows] - bare[0, ~rows]).abs().amax(-1).min() > 1e-2


def generated(model: AdaptedModel, **options) -> torch.Tensor:
    """The logits (N, B, V) of each of six greedy steps."""
    batch, mask, _ = padded([ids(1, n, seed=n)[0] for n in LENGTHS], "left")
    made = model.base.generate(
        batch,
        attention_mask=mask,
        max_new_tokens=6,
        min_new_tokens=6,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
        **options,
    )
    return torch.stack(made.logits)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "opt"])
def test_without_position_ids_a_cached_batch_goes_on_where_it_was(architecture):
    """Piece by piece, with a padded row and a mask alone to tell."""
    model = company(architecture)
    batch, mask = ids(7), torch.ones(7, 9, dtype=torch.int64)
    if architecture == "opt":  # it counts the mask's ones; the others count from the padding on
        mask[0, :3] = mask[3, :2] = 0
    cache = DynamicCache(config=model.base.config)
    with torch.no_grad(), model.use(NAMES):
        expected = model.base(batch, attention_mask=mask).logits
        pieces = [
            model.base(batch[:, start:end], attention_mask=mask[:, :end], cache=cache).logits
            for start, end in ((0, 4), (4, 5), (5, 9))
        ]
    torch.testing.assert_close(torch.cat(pieces, 1)[mask == 1], expected[mask == 1], rtol=0, atol=1e-4)


def test_past_a_sliding_window_the_text_slides_and_the_virtual_tokens_stay():
    """With and without the cache, whose keys are dropped behind the window, each token sees the same."""
    model, wide = company("mistral", sliding_window=4), company("mistral")
    with model.use(NAMES), wide.use(NAMES):
        expected = generated(model, use_cache=False)
        torch.testing.assert_close(generated(model), expected, rtol=0, atol=1e-4)
        assert (generated(wide) - expected).abs().max() > 1e-2


# ── positions have an end ───────────────────────────────────────────────────────────────────────────────────────────


def line(model: AdaptedModel, longest: int) -> None:
    """A pass over a line of two texts that begin alike."""
    plan = ForestPlan(Forest((100, 3, longest - 100), (-1, 0, 0), (longest + 3,)))
    model.base(ids(1, longest + 3), position_ids=plan.positions[None], use_cache=False, **plan.inputs)


@pytest.mark.parametrize("method", [halka.Prefix(length=P), halka.Prompt(length=P)], ids=lambda m: m.name)
def test_text_and_virtual_tokens_share_the_bases_positions(method):
    model = adapted(method)
    with torch.no_grad(), model.use("a"):
        model.base(ids(1, 128 - P))
        with pytest.raises(ValueError, match=r"5 virtual tokens and 124 of text exceed the base's 128 positions"):
            model.base(ids(1, 128 - P + 1))
        line(model, 128 - P)
        with pytest.raises(ValueError, match=r"5 virtual tokens and 124 of text exceed the base's 128 positions"):
            line(model, 128 - P + 1)
    with torch.no_grad():
        assert model.base(ids(1, 128)).logits.isfinite().all()


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_more_virtual_tokens_than_positions_are_refused_as_they_are_made_or_before_texts_are_read(architecture):
    model = halka.adapt(tiny(architecture))
    with pytest.raises(ValueError, match="200 virtual tokens exceed the base's 128 positions: shorten the prefix"):
        model.add("a", halka.Prefix(length=200))
    model.add("a", halka.Prompt(length=128))
    with pytest.raises(ValueError, match="'a' has 128 virtual tokens, and this base 128 positions"):
        context(model, "a")


@pytest.mark.parametrize("form", ["a line", "rows"])
def test_a_text_without_virtual_tokens_may_take_all_positions_beside_one_with_some(form):
    model = adapted(halka.Prefix(length=P), architecture="gpt2")

    def logits(names: list[str | None], length: int) -> torch.Tensor:
        """Of the first text's last token; the others are of 128 tokens."""
        texts = ids(2, 128)[: len(names)]
        with torch.no_grad(), model.use(names):
            if form == "rows":
                mask = (torch.arange(128) < torch.tensor([length, *[128] * (len(names) - 1)])[:, None]).long()
                return model.base(texts, attention_mask=mask).logits[0, length - 1]
            lengths = (length, *[128] * (len(names) - 1))
            plan = ForestPlan(Forest(lengths, (-1,) * len(names), lengths))
            tokens = torch.cat([texts[0, :length], texts[1:].flatten()])[None]
            line = model.base(tokens, position_ids=plan.positions[None], use_cache=False, **plan.inputs)
            return line.logits[0, length - 1]

    close(logits(["a", None], 128 - P), logits(["a"], 128 - P))
    with pytest.raises(ValueError, match=r"5 virtual tokens and 124 of text exceed the base's 128 positions"):
        logits(["a", None], 128 - P + 1)


STATIC = pytest.param("static")


@pytest.mark.parametrize("cache", ["dynamic", STATIC])
def test_generation_past_the_last_position_is_an_error(cache):
    model = adapted(halka.Prefix(length=P), architecture="gpt2")
    options = {"cache_implementation": "static"} if cache == "static" else {}
    with model.use("a"), pytest.raises(ValueError, match="exceed the base's 128 positions"):
        model.base.generate(ids(1, 118), max_new_tokens=10, min_new_tokens=10, do_sample=False, **options)


def test_a_batch_of_another_size_than_was_named_is_an_error():
    model = company()
    with (
        model.use(["a", "b", None]),
        pytest.raises(ValueError, match="the batch has 4 rows, but `use` named an adapter for each of 3"),
    ):
        model.base(ids(4))


# ── no more work than needed ────────────────────────────────────────────────────────────────────────────────────────


def test_a_prompt_is_read_once_a_generation_and_again_after_it_changes():
    model = company()
    batch = ids(7)
    with counted_readings(model) as counts, model.use(NAMES):
        model.base.generate(batch, max_new_tokens=6, min_new_tokens=6, do_sample=False)
        assert counts == {"virtual": 1, "text": 6}
        before = model.base.generate(batch, max_new_tokens=6, min_new_tokens=6, do_sample=False)
        assert counts == {"virtual": 1, "text": 12}
        disturb(model, "a", seed=8, by=1.0)
        after = model.base.generate(batch, max_new_tokens=6, min_new_tokens=6, do_sample=False)
        assert counts == {"virtual": 2, "text": 18}
    of_a = torch.tensor([name == "a" for name in NAMES])
    assert not torch.equal(after[of_a], before[of_a])
    assert torch.equal(after[~of_a], before[~of_a])


@pytest.mark.parametrize("method", [halka.Prompt(length=P), halka.Prefix(length=P), halka.Full()], ids=lambda m: m.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_an_optimiser_step_within_a_block_is_seen_at_once(method, dtype):
    """A fused one does not count versions up; nothing is differentiated between the two passes."""
    model = adapted(method, dtype)
    optimizer = torch.optim.AdamW(model.parameters("a"), lr=0.1, fused=True)
    with model.use("a"):
        model.base(ids(), labels=ids()).loss.backward()
        with torch.no_grad():
            before = model.base(ids()).logits
            optimizer.step()
            within = model.base(ids()).logits
    assert not torch.equal(before, within)
    with model.use("a"), torch.no_grad():
        assert torch.equal(model.base(ids()).logits, within)


def test_a_prompt_is_read_once_a_training_step_for_all_rows():
    model = company()
    with counted_readings(model) as counts, model.use(NAMES):
        model.base(ids(7), labels=ids(7)).loss.backward()
        assert counts == {"virtual": 1, "text": 1}


def test_a_prefix_and_the_bare_base_are_never_read():
    model = company()
    with counted_readings(model) as counts:
        with model.use("c"):
            model.base(ids())
        with model.use(None):
            model.base(ids())
    assert counts == {"virtual": 0, "text": 2}


def test_what_was_read_for_one_block_is_not_kept_for_another():
    model = company()
    with torch.no_grad():
        with model.use("a"):
            one = model.base(ids()).logits
        with model.use("b"):
            two = model.base(ids()).logits
        with model.use("b"), model.use("a"):
            assert torch.equal(model.base(ids()).logits, one)
        with model.use("a"), model.use("b"):
            assert torch.equal(model.base(ids()).logits, two)
        with model.use("a"):
            with model.use("b"):
                pass
            assert torch.equal(model.base(ids()).logits, one)


def test_reading_leaves_training_mode_and_attention_as_they_were():
    model = company()
    model.base.train()
    with model.use("a"):
        model.base(ids(), labels=ids()).loss.backward()
        assert all(module.training for module in model.base.modules())
    assert model.base.config._attn_implementation == "sdpa"


def test_the_last_adapter_takes_the_decoders_hooks_along():
    model = company()
    decoder = model.base.get_decoder()
    for name in list(model.adapters):
        assert decoder._forward_pre_hooks
        assert decoder._forward_hooks
        model.remove(name)
    assert not decoder._forward_pre_hooks
    assert not decoder._forward_hooks


def test_an_adapter_made_in_inference_mode_can_be_used():
    model = halka.adapt(tiny())
    with torch.inference_mode():
        model.add("a", halka.Prefix(length=P))
    with torch.no_grad(), model.use("a"):
        assert model.base(ids()).logits.isfinite().all()


def test_a_prefix_and_a_prompt_in_one_adapter_are_refused_where_neither_would_see_the_other():
    model = adapted(halka.Joint((halka.Prefix(length=3), halka.Prompt(length=3))))
    with pytest.raises(ValueError, match="a prefix and a prompt works in encoders alone"), model.use("a"):
        pass
    with pytest.raises(ValueError, match="a prefix and a prompt works in encoders alone"):
        context(model, "a")  # which is asked for before texts are read
    with model.use(None):
        assert model.base(ids()).logits.isfinite().all()


def test_a_prefix_acts_on_an_attention_that_there_is():
    with pytest.raises(ValueError, match=r"prefix wants 'memory\.cross', which this base does not have"):
        adapted(halka.Prefix(length=3, targets=("memory", "memory.cross")))
    with pytest.raises(ValueError, match="prefix: targets takes memory, memory"):
        halka.Prefix(targets=("attn",))
