"""Both ways to compute attention equal torch's own, whatever the mask, the grouping and the precision."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from transformers import AttentionInterface, DynamicCache

from contract import MIXTURES, ids, padded
from halka.models.attention.function import attend, grouped_products, use_attention, way_of
from halka.models.attention.layer_stack import LayerMemory, Recorded
from numbers_for_tests import close
from tiny import CONFIGS, UNEVEN, tiny
from torch_calls import torch_calls

B, H, T, W = 2, 2, 7, 8
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
MODULE = SimpleNamespace(layer_idx=0, is_causal=True)

dtypes = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
groups = pytest.mark.parametrize("group", [1, 3, 4])
ways = pytest.mark.parametrize("way", ["products", "fused"])


def inputs(group: int, keys: int = T, dtype: torch.dtype = torch.float32, tokens: int = T) -> list[torch.Tensor]:
    """Query (B, H·group, T, W), key and value (B, H, S, W)."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(B, H * group, tokens, W), (B, H, keys, W), (B, H, keys, W)]
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]


def bool_mask(keys: int = T, tokens: int = T) -> torch.Tensor:
    """(B, 1, T, S): causal, and the first two keys of row 1 are padding (its first tokens see themselves alone)."""
    mask = torch.ones(B, 1, tokens, keys, dtype=torch.bool).tril(keys - tokens)
    mask[1, :, :, :2] = False
    mask[1, :, 0, 0] = mask[1, :, 1, 1] = True
    return mask


def float_mask(keys: int = T) -> torch.Tensor:
    return torch.randn(B, 1, T, keys, generator=torch.Generator().manual_seed(5))


def plain(query, key, value, mask=None, scaling=None, softcap=None) -> torch.Tensor:
    """The formula, head by head."""
    group = query.shape[1] // key.shape[1]
    out = torch.empty_like(query)
    for head in range(query.shape[1]):
        scores = query[:, head] @ key[:, head // group].transpose(1, 2) * (scaling or query.shape[-1] ** -0.5)
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        if mask is not None:
            scores = scores.masked_fill(~mask[:, 0], -math.inf) if mask.dtype == torch.bool else scores + mask[:, 0]
        out[:, head] = scores.softmax(-1) @ value[:, head // group]
    return out


@dtypes
@groups
@pytest.mark.parametrize("mask", [None, bool_mask(), float_mask()], ids=["no mask", "bool", "float"])
def test_grouped_products_equal_torch(mask, group, dtype):
    if mask is not None and mask.dtype != torch.bool:
        mask = mask.to(dtype)
    gradients, outputs = [], []
    for ours in (False, True):
        query, key, value = inputs(group, dtype=dtype)
        if ours:
            output = grouped_products(query, key, value, mask, 0.3)
        else:
            output = F.scaled_dot_product_attention(query, key, value, mask, scale=0.3, enable_gqa=True)
        output.square().sum().backward()
        outputs.append(output)
        gradients.append([query.grad, key.grad, value.grad])
    close(outputs[1], outputs[0], within=TOLERANCE[dtype])
    for mine, theirs in zip(gradients[1], gradients[0], strict=True):
        close(mine, theirs, within=5 * TOLERANCE[dtype])


@pytest.mark.parametrize("additive", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_a_row_that_may_see_nothing_is_finite_and_changes_no_other(dtype, additive):
    """As left padding makes them; large negative scores go below what fp16 can say."""
    query, key, value = (each.detach().to(dtype) for each in inputs(2))
    query, key = query * 30, -key.abs() * 30
    seen = torch.ones(1, 1, T, T, dtype=torch.bool).tril()
    none = seen.clone()
    none[..., 0, :] = False
    masks = [seen, none]
    if additive:
        masks = [torch.zeros(each.shape, dtype=dtype).masked_fill(~each, torch.finfo(dtype).min) for each in masks]
    expected, output = (grouped_products(query, key, value, mask, 0.3) for mask in masks)
    assert output.isfinite().all()
    assert torch.equal(output[:, :, 1:], expected[:, :, 1:])


@pytest.mark.parametrize(
    ("device", "scores", "softcap", "way"),
    [
        ("cpu", 256 * 256, None, "products"),
        ("cpu", 257 * 256, None, "fused"),
        ("cpu", 257 * 256, 1.5, "products"),
        ("cuda", 1, None, "fused"),
        ("cuda", 1, 1.5, "products"),
    ],
)
def test_few_scores_on_a_cpu_and_softcap_take_the_products(device, scores, softcap, way):
    assert way_of(device, scores, softcap) == way


@pytest.mark.parametrize("memory", [0, 3])
@pytest.mark.parametrize(("tokens", "softcap"), [(253, None), (256, None), (257, None), (300, 1.5)])
def test_attend_takes_the_way_of_its_sizes(tokens, softcap, memory):
    query, key, value = inputs(1, tokens, tokens=tokens)
    keys, values = torch.randn(2, 1, H, memory, W)
    with torch_calls() as calls:
        attend(MODULE, query, key, value, None, softcap=softcap, memory=[LayerMemory(keys, values, None)])
    fused = calls.of(F.scaled_dot_product_attention)
    assert len(fused) == (way_of("cpu", tokens * (tokens + memory), softcap) == "fused")


@ways
def test_attend_takes_the_way_that_is_asked_for(way):
    with torch_calls() as calls:
        attend(MODULE, *inputs(1), None, way=way)
    assert len(calls.of(F.scaled_dot_product_attention)) == (way == "fused")


@ways
@dtypes
@groups
@pytest.mark.parametrize("mask", [None, bool_mask()], ids=["causal", "bool"])
def test_attend_equals_torch_both_ways(way, mask, group, dtype):
    query, key, value = inputs(group, dtype=dtype)
    expected = plain(
        *(each.float() for each in (query, key, value)),
        bool_mask() if mask is not None else torch.ones(T, T).bool().tril()[None, None],
    )
    output, weights = attend(MODULE, query, key, value, mask, way=way)
    assert weights is None
    assert output.shape == (B, T, H * group, W)
    close(output.transpose(1, 2), expected, within=TOLERANCE[dtype])


@ways
@pytest.mark.parametrize("why", ["module", "argument"])
def test_without_causality_every_token_sees_every_other(way, why):
    query, key, value = inputs(1)
    module = SimpleNamespace(layer_idx=0, is_causal=why == "argument")
    output, _ = attend(module, query, key, value, None, is_causal=False if why == "argument" else None, way=way)
    torch.testing.assert_close(output.transpose(1, 2), plain(query, key, value))


@ways
def test_one_token_sees_all_keys(way):
    query, key, value = inputs(3, keys=12, tokens=1)
    output, _ = attend(MODULE, query, key, value, None, way=way)
    torch.testing.assert_close(output.transpose(1, 2), plain(query, key, value))


@ways
def test_the_empty_rest_of_a_static_cache_is_not_read(way):
    query, key, value = inputs(3, keys=T + 5)
    output, _ = attend(MODULE, query, key, value, None, way=way)
    expected = plain(query, key[:, :, :T], value[:, :, :T], torch.ones(T, T).bool().tril()[None, None])
    torch.testing.assert_close(output.transpose(1, 2), expected)


@groups
@pytest.mark.parametrize("mask", [None, bool_mask()], ids=["causal", "bool"])
def test_softcap_is_the_formula(mask, group):
    query, key, value = inputs(group)
    output, _ = attend(MODULE, query, key, value, mask, softcap=1.5, scaling=0.7)
    seen = torch.ones(T, T).bool().tril()[None, None] if mask is None else mask
    expected = plain(query, key, value, seen, scaling=0.7, softcap=1.5)
    torch.testing.assert_close(output.transpose(1, 2), expected)
    assert not torch.allclose(expected, plain(query, key, value, seen, scaling=0.7), atol=1e-3)


def test_softcap_is_not_lost_where_scores_are_many():
    tokens = 300
    query, key, value = inputs(1, tokens, tokens=tokens)
    output, _ = attend(MODULE, query, key, value, bool_mask(tokens, tokens), softcap=1.5)
    expected = plain(query, key, value, bool_mask(tokens, tokens), softcap=1.5)
    torch.testing.assert_close(output.transpose(1, 2), expected)


@ways
def test_dropout_drops_and_rescales(way):
    query, key, value = inputs(1)
    ones = torch.ones_like(value)
    torch.manual_seed(0)
    many = torch.stack([attend(MODULE, query, key, ones, None, dropout=0.5, way=way)[0] for _ in range(200)])
    assert many.std(0)[:, 1:].min() > 0.1
    torch.testing.assert_close(many.mean(0), torch.ones(B, T, H, W), rtol=0, atol=0.35)
    kept, _ = attend(MODULE, query, key, ones, None, dropout=0.0, way=way)
    torch.testing.assert_close(kept, torch.ones(B, T, H, W))


@ways
@pytest.mark.parametrize("rows", [1, B], ids=["one for all", "one a row"])
@pytest.mark.parametrize("mask", [None, bool_mask(), "float"], ids=["causal", "bool", "float"])
def test_memory_stands_in_front_of_the_layers_own_keys(way, mask, rows):
    P = 3
    query, key, value = inputs(3)
    generator = torch.Generator().manual_seed(9)
    keys, values = (torch.randn(rows, H, P, W, generator=generator) for _ in range(2))
    valid = None if rows == 1 else torch.tensor([[True, True, True], [True, False, False]])
    seen = torch.ones(B, 1, T, T).bool().tril() if mask is None else bool_mask()
    given = torch.zeros(B, 1, T, T).masked_fill(~seen, -1e9) if mask == "float" else mask
    front = torch.ones(B, 1, T, P).bool() if valid is None else valid[:, None, None].expand(B, 1, T, P)
    expected = plain(
        query,
        torch.cat([keys.expand(B, -1, -1, -1), key], 2),
        torch.cat([values.expand(B, -1, -1, -1), value], 2),
        torch.cat([front, seen], -1),
    )
    other = LayerMemory(torch.zeros(1, H, 1, W), torch.zeros(1, H, 1, W), None)
    module = SimpleNamespace(layer_idx=1, is_causal=True)
    layers = [other, LayerMemory(keys, values, valid)]
    output, _ = attend(module, query, key, value, given, memory=layers, way=way)
    torch.testing.assert_close(output.transpose(1, 2), expected)


def test_record_receives_this_layers_own_keys_and_values():
    query, key, value = inputs(1)
    memory, recorded = [LayerMemory(torch.zeros(1, H, 1, W), torch.zeros(1, H, 1, W), None)], Recorded()
    attend(MODULE, query, key, value, None, memory=memory, record=recorded)
    assert recorded[0][0] is key
    assert recorded[0][1] is value


# ── in a base ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("own", ["sdpa", "eager"])
def test_use_attention_gives_the_base_its_own_choice_back(own):
    base = tiny(attn_implementation=own)
    with use_attention(base):
        assert base.config._attn_implementation == "halka"
        with use_attention(base):
            assert base.config._attn_implementation == "halka"
        assert base.config._attn_implementation == "halka"
    assert base.config._attn_implementation == own

    with pytest.raises(RuntimeError, match="stop"), use_attention(base):
        raise RuntimeError("stop")
    assert base.config._attn_implementation == own


def test_transformers_own_attentions_stay_registered():
    names = set(AttentionInterface()) - {"halka"}
    with use_attention(tiny()):
        pass
    assert set(AttentionInterface()) - {"halka"} == names


@pytest.mark.parametrize("architecture", [*CONFIGS, *UNEVEN])
@ways
def test_a_base_computes_the_same_with_it(architecture, way):
    """Unpadded, padded on either side, token by token with a cache, and several tokens onto a cache."""
    base = tiny(architecture)
    if way == "fused" and getattr(base.config, "attn_logit_softcapping", None):
        pytest.skip("softcap takes the products")
    rows = [ids(1, n, seed=n)[0] for n in (4, 9)]
    runs = {side: padded(rows, side) for side in ("left", "right")}

    def everything(**options: str) -> list[torch.Tensor]:
        logits = [base(ids(), **options).logits]
        for batch, mask, positions in runs.values():
            logits.append(base(batch, attention_mask=mask, position_ids=positions, **options).logits[mask == 1])
        cache = DynamicCache(config=base.config)
        for piece in ids().split([4, 1, 4], dim=1):
            logits.append(base(piece, cache=cache, **options).logits)
        return logits

    with torch.no_grad():
        expected = everything()
        with use_attention(base), torch_calls() as calls:
            ours = everything(way=way)
    for one, two in zip(ours, expected, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-4)
    assert bool(calls.of(F.scaled_dot_product_attention)) == (way == "fused")


@pytest.mark.parametrize("architecture", CONFIGS)
@pytest.mark.parametrize("window", [{}, {"sliding_window": 5}], ids=["", "window"])
def test_padding_on_the_right_needs_no_mask(architecture, window):
    """The same bits at the text's tokens, whatever the padding holds; of experts, whose products have other rows then,
    the same but for rounding.
    """
    if window and "sliding_window" not in CONFIGS[architecture]:
        pytest.skip("has no windows")
    base = tiny(architecture, **window)
    rounded = 1e-4 if architecture in MIXTURES else 0
    batch, mask, _ = padded([ids(1, n, seed=n)[0] for n in (4, 9, 12)], "right")
    with torch.no_grad(), use_attention(base):
        expected = base(batch, attention_mask=mask, use_cache=False).logits[mask == 1]
        for other in (batch, torch.where(mask == 1, batch, 7)):
            logits = base(other, use_cache=False).logits[mask == 1]
            torch.testing.assert_close(logits, expected, rtol=0, atol=rounded)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("mask", [None, bool_mask()], ids=["causal", "bool"])
def test_on_a_gpu_heads_are_grouped_for_flash_attention_alone(mask, dtype):
    """It has no mask and no fp32; other kernels there take no groups; `meta` stands for any device that is no CPU."""
    query, key, value = (tensor.to("meta", dtype) for tensor in inputs(3))
    with torch_calls() as calls:
        output, _ = attend(MODULE, query, key, value, None if mask is None else mask.to("meta"))
    assert output.shape == (B, T, H * 3, W)
    (((_, keys, _, used, *_), options),) = calls.of(F.scaled_dot_product_attention)
    grouped = used is None and dtype == torch.bfloat16
    assert options["enable_gqa"] == grouped
    assert keys.shape[1] == (H if grouped else H * 3)


@pytest.mark.parametrize("architecture", ["gemma2", "gemma3_text", "mistral"])
def test_a_sliding_window_is_kept(architecture):
    base = tiny(architecture, sliding_window=4, attn_implementation="eager")
    full = tiny(architecture, sliding_window=64, attn_implementation="eager")
    text = ids(2, 20)
    with torch.no_grad():
        expected = base(text).logits
        assert not torch.allclose(full(text).logits, expected, atol=1e-3)
        with use_attention(base):
            torch.testing.assert_close(base(text).logits, expected, rtol=0, atol=1e-4)
            cached = base.generate(text, max_new_tokens=8, do_sample=False, use_cache=True)
            assert torch.equal(base.generate(text, max_new_tokens=8, do_sample=False, use_cache=False), cached)


@pytest.mark.parametrize("implementation", ["dynamic", "static"])
def test_generation_is_the_same_with_it(implementation):
    base = tiny()
    batch, mask, _ = padded([ids(1, n, seed=n)[0] for n in (4, 9)], "left")
    options = {"attention_mask": mask, "max_new_tokens": 8, "do_sample": False}
    expected = base.generate(batch, **options)
    with use_attention(base):
        made = base.generate(
            batch, **options, **({"cache_implementation": "static"} if implementation == "static" else {})
        )
    assert torch.equal(made, expected)
