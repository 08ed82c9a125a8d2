"""Every method against the contract: exact without it, right with it, alone and in company, in every mode of use."""

from __future__ import annotations

import pytest
import torch

import contract
import halka
from contract import INSTEAD, JOINT, VARIANTS, adapted, ids, of, padded
from halka.methods import all_methods
from halka.models import hidden_states, logits
from halka.models.attention.function import use_attention
from tiny import CONFIGS, tiny

METHODS = [method for name, kind in all_methods().items() for method in VARIANTS.get(name, [kind()])] + JOINT
every_method = pytest.mark.parametrize("method", METHODS, ids=lambda method: repr(method)[:60])
every_kind = pytest.mark.parametrize("method", [kind() for kind in all_methods().values()], ids=lambda m: m.name)


@every_method
def test_base_is_untouched_and_ungraded(method):
    untouched = tiny()
    expected, before = untouched(ids()).logits, contract.weights_of(untouched)
    model = adapted(method)
    assert torch.equal(model.base(ids()).logits, expected)
    with model.use("a"):
        model.base(ids(), labels=ids()).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters("a"))
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in model.base.parameters())
    assert all(torch.equal(p, before[name]) for name, p in model.base.named_parameters())
    with model.use(None):
        assert torch.equal(model.base(ids()).logits, expected)
    model.remove("a")
    assert torch.equal(model.base(ids()).logits, expected)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.base.modules())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@every_method
def test_additive_methods_start_as_the_base(method, dtype):
    model = adapted(method, dtype, trained=False)
    bare = model.base(ids()).logits
    with model.use("a"):
        used = model.base(ids()).logits
    assert contract.starts_right(method, used, bare)


@every_method
def test_same_seed_same_start(method):
    first, second = adapted(method, trained=False), adapted(method, trained=False)
    for one, two in zip(first.parameters("a"), second.parameters("a"), strict=True):
        assert torch.equal(one, two)


@every_method
def test_training_lowers_the_loss(method):
    model = adapted(method, trained=False)
    optimizer = torch.optim.AdamW(model.parameters("a"), lr=5e-3)
    losses = []
    for _ in range(15):
        with model.use("a"):
            loss = model.base(ids(), labels=ids()).loss
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.002


@pytest.mark.parametrize("side", ["left", "right"])
@every_method
def test_padding_does_not_matter(method, side):
    model = adapted(method)
    prompts = [ids(1, length, seed=length)[0] for length in (4, 9, 6)]
    batch, mask, positions = padded(prompts, side)
    with torch.no_grad(), model.use("a"):
        together = model.base(batch, attention_mask=mask, position_ids=positions).logits
        for row, prompt in enumerate(prompts):
            alone = model.base(prompt[None]).logits[0]
            torch.testing.assert_close(together[row][mask[row] == 1], alone, rtol=0, atol=1e-5)


@every_method
def test_generation_with_the_cache_equals_generation_without(method):
    model = adapted(method)
    prompts = [ids(1, length, seed=length)[0] for length in (4, 7)]
    batch, mask, _ = padded(prompts, "left")
    for options in ({}, {"num_beams": 3}, {"do_sample": True, "top_k": 20}):
        results = []
        for use_cache in (True, False):
            torch.manual_seed(0)
            with model.use("a"):
                results.append(
                    model.base.generate(
                        batch,
                        attention_mask=mask,
                        max_new_tokens=6,
                        use_cache=use_cache,
                        **{"do_sample": False, **options},
                    )
                )
        assert torch.equal(*results), options


@every_method
def test_gradient_checkpointing_gives_the_same_gradients(method):
    model = adapted(method)
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.base.activation_checkpointing_enable({"use_reentrant": False})
        model.base.train()
        with model.use("a"):
            model.base(ids(), labels=ids(), use_cache=False).loss.backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters("a")])
        for parameter in model.parameters("a"):
            parameter.grad = None
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(recomputed, plain, rtol=1e-5, atol=1e-6)


@every_kind
def test_bf16_follows_fp32(method):
    model, half = adapted(method), adapted(method, torch.bfloat16)
    half.base.load_state_dict(model.base.state_dict())
    for one, two in zip(half.parameters("a"), model.parameters("a"), strict=True):
        assert one.dtype == torch.float32
        one.data.copy_(two)
    with torch.no_grad(), model.use("a"), half.use("a"):
        torch.testing.assert_close(half.base(ids()).logits.float(), model.base(ids()).logits, rtol=0.1, atol=0.1)


@every_kind
def test_torch_compile_agrees(method):
    model = adapted(method)
    compiled = torch.compile(model.base, backend="aot_eager")
    with torch.no_grad(), model.use("a"):
        expected = model.base(ids(), use_cache=False).logits
        torch.testing.assert_close(compiled(ids(), use_cache=False).logits, expected, rtol=0, atol=1e-5)
    with torch.no_grad():
        bare = compiled(ids(), use_cache=False).logits
    torch.testing.assert_close(bare, model.base(ids(), use_cache=False).logits, rtol=0, atol=1e-5)
    torch.compiler.reset()


@every_kind
def test_rows_of_a_mixed_batch_equal_their_own_runs(method):
    model = adapted(method)
    if method.name == "full":
        with pytest.raises(ValueError, match="full copy"), model.use(["a", None]):
            pass
        return
    model.add("lora", halka.LoRA(rank=3))
    model.add("long", halka.Prefix(length=7))
    for name in ("lora", "long"):
        contract.disturb(model, name)
    prompts = [ids(1, length, seed=length)[0] for length in (4, 9, 6, 5, 8)]
    batch, mask, positions = padded(prompts, "left")
    names = ["a", None, "lora", "long", "a"]
    with torch.no_grad(), model.use(names):
        together = model.base(batch, attention_mask=mask, position_ids=positions).logits
        searched = model.base.generate(batch, attention_mask=mask, max_new_tokens=5, do_sample=False, num_beams=2)
    for row, (name, prompt) in enumerate(zip(names, prompts, strict=True)):
        with torch.no_grad(), model.use(name):
            alone = model.base(prompt[None]).logits[0]
            torch.testing.assert_close(together[row][mask[row] == 1], alone, rtol=0, atol=1e-5)
            own = model.base.generate(prompt[None], max_new_tokens=5, do_sample=False, num_beams=2)[0, len(prompt) :]
            assert torch.equal(searched[row, 9 : 9 + len(own)], own)


@every_method
def test_saved_and_loaded_computes_the_same(method, tmp_path):
    model = adapted(method)
    halka.save(model, "a", tmp_path / "a")
    again = halka.adapt(tiny())
    halka.load(again, tmp_path / "a", name="b")
    with torch.no_grad(), model.use("a"), again.use("b"):
        torch.testing.assert_close(again.base(ids()).logits, model.base(ids()).logits, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", [halka.LoRA, halka.DoRA, halka.IA3, halka.BitFit])
@pytest.mark.parametrize("role", ["attn", "mlp", "embed", "memory", "base", "attn.z"])
def test_a_method_of_weights_takes_no_other_role(kind, role):
    with pytest.raises(ValueError, match=f"{kind.name}: targets are linear layers .* not '{role}'"):
        kind(targets=("attn.q", role))
    with pytest.raises(ValueError, match=rf'{kind.name}: targets is a tuple of roles: \("linear",\)'):
        kind(targets="linear")
    with pytest.raises(ValueError, match=f"{kind.name}: targets is empty"):
        kind(targets=())


@every_method
def test_merged_weights_compute_the_same_and_come_out_bit_for_bit(method):
    model = adapted(method)
    before = contract.weights_of(model.base)
    with torch.no_grad(), model.use("a"):
        expected = model.base(ids()).logits
    try:
        model.merge("a")
    except ValueError as refused:
        assert "not mergeable" in str(refused) or "cannot be merged" in str(refused)  # noqa: PT017
        unmergeable = ("bottleneck", "normed_bottleneck", "prefix", "positionless_prefix", "prompt")
        assert any(
            each.name in (*unmergeable, "full", "bitfit", "llama_adapter", "lora_bias", "modules")
            for each in of(method)
        )
    else:
        with torch.no_grad():
            torch.testing.assert_close(model.base(ids()).logits, expected, rtol=0, atol=1e-5)
        model.unmerge()
    assert all(torch.equal(p, before[name]) for name, p in model.base.named_parameters())


@pytest.mark.parametrize("architecture", CONFIGS)
@every_kind
def test_every_architecture(method, architecture):
    method = INSTEAD.get((method.name, architecture), method)
    model = adapted(method, architecture=architecture, trained=False)
    bare = model.base(ids()).logits
    with model.use("a"):
        model.base(ids(), labels=ids()).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters("a"))
    contract.disturb(model, "a")
    batch, mask, positions = padded([ids(1, n, seed=n)[0] for n in (4, 9)], "left")
    with torch.no_grad(), model.use("a"):
        used = model.base(ids()).logits
        assert (used - bare).abs().max() > 1e-4
        torch.testing.assert_close(logits(model, hidden_states(model, input_ids=ids())), used, rtol=0, atol=1e-5)
        with use_attention(model.base):
            torch.testing.assert_close(model.base(ids()).logits, used, rtol=0, atol=1e-4)
        together = model.base(batch, attention_mask=mask, position_ids=positions).logits
        alone = model.base(batch[:1, 5:]).logits
        torch.testing.assert_close(together[:1, 5:], alone, rtol=0, atol=1e-5)
    assert torch.equal(model.base(ids()).logits, bare)


def test_an_unknown_architecture_names_the_file_to_write():
    base = tiny()
    base.config.model_type = "marvel"
    with pytest.raises(ValueError, match=r"marvel.*layouts\.py"):
        halka.adapt(base)
