"""Every method on every kind of base: exact without it, right with it, alone and in company, in every mode of use.

`contract.BASES` and `contract.METHODS` are the tables; `contract.pairs` says which pairs there are, `contract.REFUSED`
and `contract.why_not_merged` what a pair cannot do.
"""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.utils import counters

import halka
from contract import (
    BASES,
    METHODS,
    MIXTURES,
    OWN_FORMS,
    REFUSED,
    STARTS_ROUNDED,
    adapted,
    disturb,
    has_weights,
    ids,
    named,
    pairs,
    starts_elsewhere,
    weights_of,
    why_not_merged,
)
from halka.models import hidden_states, logits
from halka.models.attention.function import use_attention
from numbers_for_tests import close
from tiny import CONFIGS, tiny


def _parametrised(found: list) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(("base", "method"), [pytest.param(*pair, id=name) for name, *pair in named(found)])


every_pair = _parametrised(pairs())
every_form = _parametrised(pairs("llama"))


# ── on every kind of base ───────────────────────────────────────────────────────────────────────────────────────────


@every_pair
def test_the_base_stays_as_it_is_and_the_adapter_learns(base, method):
    model = base.adapted(method, trained=False)
    inputs, before = base.inputs(), weights_of(base.build())
    with torch.no_grad():
        expected = base.build()(**inputs).logits
        assert torch.equal(model.base(**inputs).logits, expected)
        with model.use("a"):
            start = model.base(**inputs).logits
    assert start.shape == expected.shape
    if starts_elsewhere(method):
        assert not torch.equal(start, expected)
    elif method.name in STARTS_ROUNDED:
        close(start, expected)
    else:
        assert torch.equal(start, expected)
    disturb(model, "a")
    with model.use("a"):
        moved = model.base(**inputs)
        moved.loss.backward()
    assert (moved.logits - expected).abs().max() > 1e-3 * expected.std()
    gradients = [parameter.grad for parameter in model.parameters("a")]
    assert all(gradient is not None for gradient in gradients)
    assert not any(parameter.requires_grad for parameter in model.base.parameters())
    assert all(parameter.grad is None for parameter in model.base.parameters())
    length = sum(gradient.square().sum() for gradient in gradients).sqrt()
    with torch.no_grad():
        for parameter, gradient in zip(model.parameters("a"), gradients, strict=True):
            parameter.sub_(gradient * 1e-3 / length)
        with model.use("a"):
            lowered = moved.loss - model.base(**inputs).loss
    assert 0.3 < lowered / (1e-3 * length) < 2  # of what the gradient promises: a router may send a token elsewhere
    model.remove("a")
    assert torch.equal(model.base(**inputs).logits, expected)
    assert has_weights(model.base, before)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.base.modules())


@every_pair
def test_it_starts_as_the_base_in_bf16(base, method):
    if starts_elsewhere(method):
        pytest.skip("its virtual tokens change the output from the first step on")
    model, inputs = base.adapted(method, trained=False, dtype=torch.bfloat16), base.inputs()
    with torch.no_grad():
        bare = model.base(**inputs).logits
        with model.use("a"):
            used = model.base(**inputs).logits
    if method.name in STARTS_ROUNDED:
        close(used, bare)
    else:
        assert torch.equal(used, bare)


@_parametrised([pair for pair in pairs() if pair[0] != "llama"])  # of which storage/test_store.py compares every bit
def test_saved_and_loaded_computes_the_same(base, method, tmp_path):
    model, again = base.adapted(method), halka.adapt(base.build())
    halka.save(model, "a", tmp_path / "a")
    halka.load(again, tmp_path / "a", name="b")
    with torch.no_grad(), model.use("a"), again.use("b"):
        close(again.base(**base.inputs()).logits, model.base(**base.inputs()).logits, within=1e-5)


@every_pair
def test_rows_of_a_mixed_batch_equal_their_own_runs(base, method):
    model = base.adapted(method)
    if method.name == "full":
        with pytest.raises(ValueError, match="full copy"), model.use(["a", None]):
            pass
        return
    model.add("lora", halka.LoRA(rank=3))
    model.add("long", halka.Prefix(length=7))
    for name in ("lora", "long"):
        disturb(model, name)
    texts = [ids(1, length, seed=length)[0] for length in (4, 9, 6, 5, 8)]
    names, batch = ["a", None, "lora", "long", "a"], base.padded(texts)
    searches = base in (BASES["llama"], BASES["mixtral"], BASES["t5"])  # the others write as one of these does
    options = {"max_new_tokens": 5, "do_sample": False, "num_beams": 2}
    with torch.no_grad(), model.use(names):
        together = model.base(**batch).logits
        if searches:
            searched = model.base.generate(batch["input_ids"], attention_mask=batch["attention_mask"], **options)
    for row, (name, text) in enumerate(zip(names, texts, strict=True)):
        with torch.no_grad(), model.use(name):
            alone = model.base(**base.alone(text)).logits[0]
            close(base.of_text(together[row], batch["attention_mask"][row]), alone)
            if searches and row < 2:  # with the method, and without any
                prompt = (len(text), 9) if base.is_decoder else (0, 0)
                own = model.base.generate(text[None], **options)[0, prompt[0] :]
                assert torch.equal(searched[row, prompt[1] : prompt[1] + len(own)], own)


@every_pair
def test_gradient_checkpointing_gives_the_same_gradients(base, method):
    model = base.adapted(method)
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.base.activation_checkpointing_enable({"use_reentrant": False})
        model.base.train()
        with model.use("a" if method.name == "full" else ["a", None, "a"]):
            model.base(**base.inputs(), **({"use_cache": False} if base.generates else {})).loss.backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters("a")])
        for parameter in model.parameters("a"):
            parameter.grad = None
    for plain, recomputed in zip(*gradients, strict=True):  # where nothing is to be learned they are rounding alone
        torch.testing.assert_close(recomputed, plain, rtol=0, atol=1e-6 + 1e-3 * plain.std(correction=0).item())


@every_pair
def test_merged_weights_compute_the_same_and_come_out_bit_for_bit(base, method):
    model, inputs = base.adapted(method), base.inputs()
    before = weights_of(model.base)
    with torch.no_grad(), model.use("a"):
        expected = model.base(**inputs).logits
    if reason := why_not_merged(base, method):
        with pytest.raises(ValueError, match=reason):
            model.merge("a")
    else:
        model.merge("a")
        with torch.no_grad():
            close(model.base(**inputs).logits, expected)
        model.unmerge()
    assert model.merged is None
    assert has_weights(model.base, before)


# What a mixture's router sends elsewhere for its last bits is no rounding: its products have tests of their own.
@_parametrised([pair for pair in pairs() if pair[0] not in MIXTURES and pair[2] not in OWN_FORMS[pair[0]]])
def test_bf16_follows_fp32(base, method):
    model, half = base.adapted(method), halka.adapt(base.build())
    half.base.to(torch.bfloat16)
    half.head = None
    half.add("a", method)
    for one, two in zip(half.parameters("a"), model.parameters("a"), strict=True):
        assert one.dtype == torch.float32
        one.data.copy_(two)
    with torch.no_grad(), model.use("a"), half.use("a"):
        close(half.base(**base.inputs()).logits, model.base(**base.inputs()).logits)


@pytest.mark.parametrize(("name", "method"), REFUSED)
def test_what_a_pair_cannot_do_is_refused_by_name(name, method):
    model = halka.adapt(BASES[name].build())
    model.head = None
    with pytest.raises(ValueError, match=REFUSED[name, method]):
        model.add("a", METHODS[method][0])
    assert not model.adapters


# ── where the base's kind changes nothing ───────────────────────────────────────────────────────────────────────────


@every_form
def test_same_seed_same_start(base, method):
    first, second = base.adapted(method, trained=False), base.adapted(method, trained=False)
    for one, two in zip(first.parameters("a"), second.parameters("a"), strict=True):
        assert torch.equal(one, two)


@every_form
def test_training_lowers_the_loss(base, method):
    model = base.adapted(method, trained=False)
    optimizer = torch.optim.AdamW(model.parameters("a"), lr=5e-3)
    losses = []
    for _ in range(15):
        with model.use("a"):
            loss = model.base(**base.inputs()).loss
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.002


@pytest.mark.parametrize("side", ["left", "right"])
@every_form
def test_padding_does_not_matter(base, method, side):
    model = base.adapted(method)
    texts = [ids(1, length, seed=length)[0] for length in (4, 9, 6)]
    batch = base.padded(texts, side)
    with torch.no_grad(), model.use("a"):
        together = model.base(**batch).logits
        for row, text in enumerate(texts):
            close(together[row][batch["attention_mask"][row] == 1], model.base(**base.alone(text)).logits[0])


@_parametrised(pairs("llama", "t5"))  # whose caches are two
def test_generation_with_the_cache_equals_generation_without(base, method):
    model = base.adapted(method)
    batch = base.padded([ids(1, length, seed=length)[0] for length in (4, 7)])
    for options in ({"num_beams": 3}, {"do_sample": True, "top_k": 20}):
        results = []
        for use_cache in (True, False):
            torch.manual_seed(0)
            with model.use("a"):
                results.append(
                    model.base.generate(
                        batch["input_ids"],
                        attention_mask=batch["attention_mask"],
                        max_new_tokens=6,
                        use_cache=use_cache,
                        **{"do_sample": False, **options},
                    )
                )
        assert torch.equal(*results), options


# Tracing meets each method's own code, and each base's attention with virtual tokens and experts: one layer shows it.
COMPILED = [
    *(("llama", forms[0]) for forms in METHODS.values()),
    ("mixtral", halka.LoRA(rank=3, targets=("experts",))),
    *((name, halka.Prompt(length=5)) for name in ("bert", "roberta", "modernbert")),
    ("bert", halka.Prefix(length=5)),
]


@_parametrised([(name, BASES[name], method) for name, method in COMPILED])
def test_torch_compile_agrees(base, method):
    model = base.adapted(method, num_hidden_layers=1)
    compiled = torch.compile(model.base, backend="eager")
    inputs = {"input_ids": ids(), **({"use_cache": False} if base.generates else {})}
    counters.clear()
    try:
        with torch.no_grad():
            for names in ("a",) if method.name != "lora" else ("a", None, ["a", None, "a"]):
                with model.use(names):
                    close(compiled(**inputs).logits, model.base(**inputs).logits)
    finally:
        torch.compiler.reset()
    ends = [reason for reason in counters["graph_break"] if "torch.compiler.disable" not in reason]
    assert not ends  # graphs end where they are asked to, and nowhere else


def test_torch_compile_agrees_in_bf16_with_rows_enough_for_products_in_float32():
    model = halka.adapt(tiny("llama", num_hidden_layers=1).bfloat16())
    model.add("a", halka.LoRA(rank=16))
    disturb(model, "a")
    compiled, many = torch.compile(model.base, backend="eager"), ids(rows=4, length=24)
    counters.clear()
    try:
        with torch.no_grad(), model.use("a"):
            close(compiled(many).logits, model.base(many).logits)
    finally:
        torch.compiler.reset()
    assert not [reason for reason in counters["graph_break"] if "torch.compiler.disable" not in reason]


# ── architectures of decoders ───────────────────────────────────────────────────────────────────────────────────────

# What differs between them is where the roles are and how attention reads virtual tokens: one method for each role and
# for each way into attention. The others act at the same modules.
REACHING = {
    "linear": halka.LoRA(rank=4, targets=("linear", "head", "embedding")),
    "biases": halka.BitFit(),
    "sublayers": halka.Bottleneck(width=6),
    "memory": halka.Prefix(length=5),
    "memory.gated": halka.LlamaAdapter(length=4),
    "embed": halka.Prompt(length=5),
    "base": halka.Full(),
}


@pytest.mark.parametrize("architecture", CONFIGS)
@pytest.mark.parametrize("method", REACHING.values(), ids=REACHING)
def test_every_architecture(method, architecture, tmp_path):
    model, again = adapted(method, architecture=architecture, trained=False), halka.adapt(tiny(architecture))
    bare = model.base(ids()).logits
    with model.use("a"):
        model.base(ids(), labels=ids()).loss.backward()
    without = [name for name, parameter in model.adapter("a").named_parameters() if parameter.grad is None]
    assert all("vision_tower" in name or "multi_modal_projector" in name for name in without)  # no images here
    disturb(model, "a")
    halka.save(model, "a", tmp_path / "a")
    halka.load(again, tmp_path / "a")
    texts = [ids(1, n, seed=n)[0] for n in (4, 9)]
    batch = BASES["llama"].padded(texts)
    with torch.no_grad(), model.use("a"), again.use("a"):
        used = model.base(ids()).logits
        assert (used - bare).abs().max() > 1e-3 * bare.std()
        assert torch.equal(again.base(ids()).logits, used)
        close(logits(model, hidden_states(model, input_ids=ids())), used)
        with use_attention(model.base):
            close(model.base(ids()).logits, used)
        together = model.base(**batch).logits
        close(together[0, 5:], model.base(texts[0][None]).logits[0])
    assert torch.equal(model.base(ids()).logits, bare)


def test_an_unknown_architecture_names_the_file_to_write():
    base = tiny()
    base.config.model_type = "marvel"
    with pytest.raises(ValueError, match=r"marvel.*layouts\.py"):
        halka.adapt(base)


# ── fields ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", [halka.LoRA, halka.DoRA, halka.IA3, halka.BitFit])
@pytest.mark.parametrize("role", ["attn", "mlp", "embed", "memory", "base", "attn.z"])
def test_a_method_of_weights_takes_no_other_role(kind, role):
    with pytest.raises(ValueError, match=f"{kind.name}: targets are linear layers .* not '{role}'"):
        kind(targets=("attn.q", role))
    with pytest.raises(ValueError, match=rf'{kind.name}: targets is a tuple of roles: \("linear",\)'):
        kind(targets="linear")
    with pytest.raises(ValueError, match=f"{kind.name}: targets is empty"):
        kind(targets=())
