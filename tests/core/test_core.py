"""Routing and merging: which adapter acts on which row, and a base that is what it was afterwards."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import halka
from contract import disturb, ids, padded, weights_of
from halka.core.routing import Route, resolve
from halka.util.rows import repeats
from kinds import KINDS, bare, logits, model_with
from tiny import tiny

PARALLEL = halka.Bottleneck(width=3, targets=("mlp",), reads="residual")


@pytest.mark.parametrize("kind", [*KINDS, None])
@pytest.mark.parametrize("mixed", [False, True])
def test_a_batch_that_is_no_multiple_of_the_rows_named_is_refused(kind, mixed):
    model = model_with(*([kind] if kind else []))
    rows = [kind, kind, kind, None if mixed else kind]
    with torch.no_grad(), model.use(rows):
        for batch in (1, 3, 6):
            with pytest.raises(ValueError, match=f"the batch has {batch} rows, but `use` named an adapter for each of"):
                model.base(ids()[:1].expand(batch, -1))
        for batch in (4, 8):
            assert model.base(ids()[:1].expand(batch, -1)).logits.shape[0] == batch
    with torch.no_grad(), model.use([kind]):
        model.base(ids())


# ── adding and removing ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["", None, 7])
def test_a_name_is_a_text_with_something_in_it(name):
    with pytest.raises(ValueError, match="an adapter's name is a non-empty string"):
        halka.adapt(tiny()).add(name, halka.LoRA())


def test_a_name_in_use_is_refused_and_its_adapter_stays():
    model = model_with("lora")
    adapter, expected = model.adapters["lora"], logits(model, "lora")
    with pytest.raises(ValueError, match="there is an adapter 'lora' already"):
        model.add("lora", halka.IA3())
    assert model.adapters == {"lora": adapter}
    assert torch.equal(logits(model, "lora"), expected)


def test_a_role_that_the_base_lacks_is_refused_with_those_it_has():
    model = halka.adapt(tiny("gpt2"))
    with pytest.raises(ValueError, match=r"lora wants 'attn\.q', which this base does not have.*attn\.qkv.*attn\.qv"):
        model.add("a", halka.LoRA(targets=("attn.q",)))
    with pytest.raises(ValueError, match=r"lora: targets are linear layers \(attn.q, .* not 'atn'"):
        model.add("a", halka.LoRA(targets=("linear", "atn")))
    assert not model.adapters


@pytest.mark.parametrize(
    "method",
    [halka.Modules(("head",)), halka.LoRA(rank=2, targets=("head",)), halka.Tokens((98,))],
    ids=str,
)
def test_an_adapter_at_a_module_that_was_replaced_is_refused(method):
    """It would act nowhere."""
    base = tiny()
    model = halka.adapt(base)
    base.resize_token_embeddings(base.config.vocab_size + 8)
    with pytest.raises(ValueError, match=r"has another lm_head than .*: call halka\.adapt on it again"):
        model.add("a", method)
    again = halka.adapt(base)
    again.add("a", method)
    disturb(again, "a")
    with torch.no_grad():
        assert (logits(again, "a") != logits(again, None)).any()


def test_full_fine_tuning_after_a_module_was_replaced_is_refused():
    """Its copy of the head would act nowhere."""
    base = tiny()
    model = halka.adapt(base)
    base.resize_token_embeddings(base.config.vocab_size + 8)
    with pytest.raises(ValueError, match=r"has another \S+ than .*: call halka\.adapt on it again"):
        model.add("a", halka.Full())
    halka.adapt(base).add("a", halka.Full())


def test_a_method_that_builds_nothing_is_refused():
    model = halka.adapt(tiny())
    with pytest.raises(ValueError, match="bottleneck built no part for this base"):
        model.add("a", halka.Bottleneck(targets=()))
    assert not model.adapters


def test_two_parts_at_one_module_have_names_of_their_own():
    model = halka.adapt(tiny())
    adapter = model.add("a", halka.Joint((halka.LoRA(rank=2, targets=("mlp.down",)), halka.Bottleneck(width=3))))
    path = "model.layers.0.mlp.down_proj"
    assert {path, f"{path}:mlp"} <= {*adapter.parts}
    assert adapter.state_dict().keys() >= {f"{path}.lora_A", f"{path}:mlp.down.weight"}


def test_adding_leaves_the_random_state_alone_and_depends_on_its_seed_only():
    model = halka.adapt(tiny())
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one = model.add("a", halka.Prefix(length=3, start="random"), seed=1)
    assert torch.equal(torch.rand(3), expected)
    two, other = (model.add(str(seed), halka.Prefix(length=3, start="random"), seed=seed) for seed in (1, 2))
    assert torch.equal(one.parameters()[0], two.parameters()[0])
    assert not torch.equal(one.parameters()[0], other.parameters()[0])


def test_parameters_are_those_of_that_adapter_and_no_others():
    model = model_with("lora", "prefix")
    found = {id(parameter) for name in ("lora", "prefix") for parameter in model.parameters(name)}
    assert len(found) == len(model.parameters("lora")) + len(model.parameters("prefix")) == 29
    assert not found & {id(parameter) for parameter in model.base.parameters()}
    with pytest.raises(ValueError, match=r"no adapter 'lura' here \(there are: 'lora', 'prefix'\)"):
        model.parameters("lura")


def test_state_that_does_not_fit_is_refused_whole():
    adapter = model_with("lora").adapters["lora"]
    before = {key: tensor.clone() for key, tensor in adapter.state_dict().items()}
    first, second, *_ = before
    state = {key: tensor + 1 for key, tensor in before.items()}
    state["strange"] = state.pop(first)
    state[second] = state[second][:1]
    message = rf"missing {first}; {second} is \(1, 4\), expected \(64, 4\); unknown strange \(3 problems in all\)"
    with pytest.raises(ValueError, match=message):
        adapter.load_state_dict(state)
    assert all(torch.equal(tensor, before[key]) for key, tensor in adapter.state_dict().items())


def test_an_adapter_in_use_cannot_be_removed():
    model = model_with("lora", "ia3")
    expected = logits(model, "lora")
    for names in ("lora", ["lora", None, "ia3"]):
        with model.use(names), pytest.raises(ValueError, match="adapter 'lora' is in use"):
            model.remove("lora")
    assert torch.equal(logits(model, "lora"), expected)
    with model.use("ia3"):
        model.remove("lora")
    assert set(model.adapters) == {"ia3"}


@pytest.mark.parametrize("inner", [None, "ia3"])
def test_an_adapter_in_use_further_out_cannot_be_removed(inner):
    model = model_with("lora", "ia3")
    with model.use("lora"), model.use(inner), pytest.raises(ValueError, match="adapter 'lora' is in use"):
        model.remove("lora")


def test_a_base_without_adapters_runs_without_hooks():
    model = model_with(*KINDS)
    for name in KINDS:
        assert any(module._forward_hooks or module._forward_pre_hooks for module in model.base.modules())
        model.remove(name)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.base.modules())
    with pytest.raises(ValueError, match=r"no adapter 'lora' here \(there are: none yet\)"):
        model.remove("lora")


# ── routing ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_blocks_nest_and_the_inner_one_counts():
    model = model_with("lora", "prefix", "full")
    alone = {name: logits(model, name) for name in (None, "lora", "prefix", "full")}
    found = []
    with torch.no_grad():
        for one in alone:
            for two in alone:
                with model.use(one):
                    with model.use(two):
                        assert model.active == (two,)
                        found.append((two, model.base(ids()).logits))
                    assert model.active == (one,)
                    found.append((one, model.base(ids()).logits))
    assert model.active == (None,)
    for name, output in [*found, (None, bare(model))]:
        assert torch.equal(output, alone[name])


@pytest.mark.parametrize("kind", ["lora", "parallel", "prefix", "prompt", "full"])
def test_an_exception_within_a_block_leaves_the_base_bare(kind):
    model = model_with(kind)
    expected = bare(model)
    with pytest.raises(KeyError), model.use(kind):
        raise KeyError
    assert torch.equal(bare(model), expected)
    assert model.active == (None,)

    def fails(module, args, output):
        raise KeyError

    handle = model.base.get_submodule("model.layers.1.mlp.act_fn").register_forward_hook(fails)
    with pytest.raises(KeyError), model.use(kind):
        model.base(ids())
    handle.remove()
    assert torch.equal(bare(model), expected)
    assert model.base.config._attn_implementation == "sdpa"
    assert logits(model, kind).isfinite().all()


def test_a_forward_pass_that_fails_midway_leaves_nothing_for_the_next():
    """What a sublayer received must not be taken for what the next pass's receives."""
    model = model_with("parallel")
    expected = logits(model, "parallel")

    def fails(module, args, output):
        raise KeyError

    with torch.no_grad(), model.use("parallel"):
        handle = model.base.get_submodule("model.layers.0.mlp.act_fn").register_forward_hook(fails)
        with pytest.raises(KeyError):
            model.base(ids() + 1)
        handle.remove()
        assert torch.equal(model.base(ids()).logits, expected)


@pytest.mark.parametrize("names", ["strange", ["lora", "strange", None]])
def test_unknown_names_are_refused_with_the_known_ones(names):
    model = model_with("lora", "ia3")
    with model.use("ia3"):
        with (
            pytest.raises(ValueError, match=r"no adapter 'strange' here \(there are: 'lora', 'ia3'\)"),
            model.use(names),
        ):
            pass
        assert model.active == ("ia3",)


def test_no_rows_are_refused():
    with pytest.raises(ValueError, match="`use` names no rows"), model_with("lora").use([]):
        pass


@pytest.mark.parametrize("kind", ["lora", "ia3", "parallel", "prefix", "prompt"])
@pytest.mark.parametrize("named", [2, 4])
def test_a_batch_of_another_size_is_refused(kind, named):
    model = model_with(kind)
    names = [kind] * (named - 1) + [None]
    message = f"the batch has 3 rows, but `use` named an adapter for each of {named}"
    with model.use(names), pytest.raises(ValueError, match=message):
        model.base(ids(3))


def test_rows_that_a_search_repeats_are_counted_in_place():
    assert [repeats(6, 3), repeats(3, 3), repeats(5, 1)] == [2, 1, 5]
    for batch, named in ((2, 3), (4, 3), (0, 3)):
        with pytest.raises(ValueError, match="give one name a row, or a single name for all rows"):
            repeats(batch, named)


def test_rows_without_any_adapter_are_the_base_exactly():
    model = model_with("lora")
    for names in (None, [None], [None] * 3):
        assert torch.equal(logits(model, names), bare(model))


def test_one_name_for_all_rows_is_the_same_name_for_each():
    model = model_with(*KINDS)
    for name in KINDS:
        assert torch.equal(logits(model, [name] * 3), logits(model, name))


ROWS = ["lora", "parallel", None, "head", "dora", "prefix", "serial", "lora", "ia3", "prompt", "bitfit", "parallel"]


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2"])
def test_rows_of_a_mixed_batch_equal_their_own_runs(architecture, monkeypatch):
    """All families in one batch; at mlp.down five of them meet, two of which read the sublayer's input."""
    if architecture == "gpt2":
        monkeypatch.setitem(KINDS, "dora", halka.DoRA(rank=3, targets=("attn.qkv", "mlp.down")))
    model = model_with(*KINDS, architecture=architecture)
    prompts = [ids(1, 4 + row % 5, seed=row)[0] for row in range(len(ROWS))]
    batch, mask, positions = padded(prompts, "left")
    gradients = {}
    total = 0.0
    for name, prompt in zip(ROWS, prompts, strict=True):
        with model.use(name):
            loss = cross_entropy(model.base(prompt[None]).logits[0, :-1], prompt[1:], reduction="sum")
            if name:
                loss.backward()
            total += float(loss.detach())
    for name in KINDS:
        gradients[name] = [parameter.grad.clone() for parameter in model.parameters(name)]
        for parameter in model.parameters(name):
            parameter.grad = None
    labels = batch.masked_fill(mask == 0, -100)
    labels[torch.arange(len(ROWS)), mask.argmax(1)] = -100
    with model.use(ROWS):
        output = model.base(batch, attention_mask=mask, position_ids=positions).logits
        loss = cross_entropy(output[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum")
        loss.backward()
    assert float(loss.detach()) == pytest.approx(total, rel=1e-5)
    for row, (name, prompt) in enumerate(zip(ROWS, prompts, strict=True)):
        with torch.no_grad(), model.use(name):
            alone = model.base(prompt[None]).logits[0]
        torch.testing.assert_close(output[row][mask[row] == 1], alone, rtol=0, atol=1e-4)
    for name, expected in gradients.items():
        for parameter, gradient in zip(model.parameters(name), expected, strict=True):
            torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=1e-4)


def test_beam_search_in_a_mixed_batch_equals_single_searches():
    model = model_with(*KINDS)
    prompts = [ids(1, 4 + row % 5, seed=row)[0] for row in range(len(ROWS))]
    batch, mask, _ = padded(prompts, "left")
    options = {"num_beams": 3, "max_new_tokens": 5, "do_sample": False, "num_return_sequences": 2}
    with model.use(ROWS):
        together = model.base.generate(batch, attention_mask=mask, **options)[:, batch.shape[1] :]
    for row, (name, prompt) in enumerate(zip(ROWS, prompts, strict=True)):
        with model.use(name):
            alone = model.base.generate(prompt[None], **options)[:, len(prompt) :]
        mine = together[2 * row : 2 * row + 2, : alone.shape[1]]
        assert torch.equal(mine, alone), name


def test_a_full_copy_shares_no_batch():
    model = model_with("lora", "full")
    for names in (["full", None], ["full", "lora"]):
        with pytest.raises(ValueError, match="'full' is a full copy of the weights"), model.use(names):
            pass
    assert torch.equal(logits(model, ["full"] * 3), logits(model, "full"))


def test_full_weights_that_changed_within_the_block_are_computed_with():
    """In the base's precision too, where they are cast."""
    for dtype in (torch.float32, torch.bfloat16):
        model = halka.adapt(tiny(dtype=dtype))
        model.add("full", halka.Full())
        with model.use("full"):
            model.base(ids(), labels=ids()).loss.backward()
            disturb(model, "full")
            model.base(ids(), labels=ids()).loss.backward()  # a forward pass with gradients casts them afresh
            with torch.no_grad():
                within = model.base(ids()).logits
        assert torch.equal(within, logits(model, "full"))


def test_full_weights_that_changed_are_computed_with_without_gradients_too():
    model = halka.adapt(tiny(dtype=torch.bfloat16))
    model.add("full", halka.Full())
    with model.use("full"), torch.no_grad():
        disturb(model, "full")
        within = model.base(ids()).logits
    assert torch.equal(within, logits(model, "full"))


# ── merging ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_merged_adapter_computes_without_a_block_and_lets_no_other_in():
    model = model_with("lora", "ia3")
    expected, untouched = logits(model, "lora"), bare(model)
    model.merge("lora")
    assert model.merged == "lora"
    torch.testing.assert_close(bare(model), expected, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="adapter 'lora' is merged into the base: `unmerge` before"), model.use("ia3"):
        pass
    with pytest.raises(ValueError, match="merging needs an idle base"):
        model.merge("ia3")
    torch.testing.assert_close(bare(model), expected, rtol=0, atol=1e-5)
    model.unmerge()
    assert model.merged is None
    assert torch.equal(bare(model), untouched)
    torch.testing.assert_close(logits(model, "lora"), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["parallel", "prefix", "prompt", "full", "bitfit"])
def test_what_is_no_weight_is_not_merged_and_leaves_the_base_as_it_was(kind):
    model = model_with(kind, "lora")
    expected = bare(model)
    with pytest.raises(ValueError, match=r"not mergeable|cannot be merged"):
        model.merge(kind)
    assert model.merged is None
    assert torch.equal(bare(model), expected)
    model.merge("lora")


@pytest.mark.parametrize("kind", ["lora", "dora", "ia3", "bitfit", "head"])
@pytest.mark.parametrize("architecture", ["gpt2", "gpt_neox", "phi3", "qwen2"])
def test_merged_weights_compute_the_same_in_other_architectures(architecture, kind, monkeypatch):
    """With biases, transposed weights, fused layers, and (GPT-2) a tied head."""
    if architecture == "gpt2" and kind == "head":
        pytest.skip("the tied head has a test of its own")
    if architecture in ("phi3", "qwen2") and kind == "bitfit":
        pytest.skip("no biases there")
    if architecture != "qwen2" and kind == "dora":
        monkeypatch.setitem(KINDS, "dora", halka.DoRA(rank=3, targets=("attn.qkv", "mlp.down")))
    model = model_with(kind, architecture=architecture)
    before = weights_of(model.base)
    expected = logits(model, kind)
    assert (expected - bare(model)).abs().max() > 1e-2
    model.merge(kind)
    torch.testing.assert_close(bare(model), expected, rtol=0, atol=1e-4)
    model.unmerge()
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.base.named_parameters())


def test_a_merged_head_that_is_tied_computes_the_same_or_is_refused():
    model = model_with("head", tie_word_embeddings=True)
    expected = logits(model, "head")
    try:
        model.merge("head")
    except ValueError:
        return
    torch.testing.assert_close(bare(model), expected, rtol=0, atol=1e-5)
    model.unmerge()


def test_in_bf16_a_merged_weight_is_rounded_once():
    model = model_with("lora", dtype=torch.bfloat16)
    part = model.adapters["lora"].parts["model.layers.0.self_attn.q_proj"]
    own = model.base.model.layers[0].self_attn.q_proj.weight
    model.merge("lora")
    merged = model.base.model.layers[0].self_attn.q_proj.weight
    assert torch.equal(merged, (own.float() + part.scale * part.lora_B @ part.lora_A).bfloat16())


def test_a_merged_adapter_is_the_only_one_that_can_be_used():
    model = model_with("lora", "ia3")
    model.merge("lora")
    for rows in ("lora", ["lora"] * len(ids())):
        assert torch.equal(logits(model, rows), bare(model))
    for rows in (None, "ia3", ["lora", None, None]):
        with pytest.raises(ValueError, match="`unmerge` before using others or the bare base"), model.use(rows):
            pass
    with model.use("lora"):
        with pytest.raises(ValueError, match="in use: leave `use` first"):
            model.unmerge()
        with pytest.raises(ValueError, match="is in use"):
            model.remove("lora")
    assert model.merged == "lora"


def test_a_route_acts_for_the_adapters_it_was_resolved_for_alone():
    model = model_with("lora", "ia3")
    rows = ("lora", "ia3", None)
    route, both = resolve(rows, model.adapters), logits(model, rows)
    assert torch.equal(logits(model, route), both)
    model.merge("lora")
    with pytest.raises(ValueError, match="`unmerge` before using others"), model.use(route):
        pass
    one = Route(("lora",))
    assert torch.equal(logits(model, one), bare(model))  # which has it
    model.unmerge()
    method = model.adapter("lora").method
    model.remove("lora")
    model.add("lora", method)
    for stale in (route, one):
        with pytest.raises(AssertionError, match="was resolved for others"), model.use(stale):
            pass


def test_own_weights_are_the_bare_base_whatever_is_in_use():
    model = model_with("lora", "prefix", "prompt", "full")
    untouched = bare(model)
    for rows in ("lora", "prefix", "prompt", "full", ["prefix", "lora", None]):
        with torch.no_grad(), model.use(rows):
            expected = model.base(ids()).logits
            with model.own_weights():  # a prefix in use has its attention in use, which rounds otherwise
                torch.testing.assert_close(model.base(ids()).logits, untouched, rtol=0, atol=1e-5)
            assert torch.equal(model.base(ids()).logits, expected)
            assert (expected - untouched).abs().max() > 1e-2


def test_a_block_that_cannot_be_entered_leaves_nothing_behind():
    model = model_with("full", "lora")
    untouched, expected = bare(model), logits(model, "lora")

    def no_memory():
        raise RuntimeError("not enough memory")

    model.adapter("full").parts["base"].weights = no_memory
    with torch.no_grad(), model.use("lora"):
        with pytest.raises(RuntimeError, match="not enough memory"), model.use("full"):
            pass
        assert torch.equal(model.base(ids()).logits, expected)
    assert model.active == (None,)
    assert torch.equal(bare(model), untouched)
    model.remove("full")
    model.merge("lora")


def test_adding_an_adapter_leaves_the_random_states_alone(monkeypatch):
    model, seeded = halka.adapt(tiny()), []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    before = torch.random.get_rng_state()
    model.add("a", halka.LoRA(), seed=5)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not seeded


def test_a_base_in_training_mode_is_put_into_eval_mode():
    base = tiny("gpt2").train()
    assert not halka.adapt(base).base.training


def test_merging_within_a_block_is_refused():
    model = model_with("lora")
    with model.use("lora"), pytest.raises(ValueError, match="merging needs an idle base"):
        model.merge("lora")
    assert model.merged is None


def test_merging_within_a_bare_block_of_another_is_refused():
    model = model_with("lora", "ia3")
    with model.use("lora"), model.use(None), pytest.raises(ValueError, match="merging needs an idle base"):
        model.merge("ia3")


def test_unmerging_nothing_does_nothing():
    model = model_with("full")
    model.unmerge()
    expected = logits(model, "full")
    with torch.no_grad(), model.use("full"):
        model.unmerge()
        assert torch.equal(model.base(ids()).logits, expected)


def test_a_merged_adapter_that_is_removed_leaves_the_base_as_it_was():
    model = model_with("lora")
    expected = bare(model)
    model.merge("lora")
    model.remove("lora")
    assert model.merged is None
    assert torch.equal(bare(model), expected)


@pytest.mark.parametrize("state", ["merged", "full in use"])
@pytest.mark.parametrize("kind", ["lora", "ia3", "dora", "prefix", "prompt", "full"])
def test_an_adapter_starts_from_the_bases_own_weights_whatever_stands_in(kind, state, request):
    expected = model_with().add("new", KINDS.get(kind) or halka.Full())
    model = model_with("head", "full")
    if state == "merged":
        model.merge("head")
        added = model.add("new", KINDS.get(kind) or halka.Full())
    else:
        with model.use("full"):
            added = model.add("new", KINDS.get(kind) or halka.Full())
    for mine, theirs in zip(added.parameters(), expected.parameters(), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize(
    ("architecture", "first", "second"),
    [
        ("llama", halka.LoRA(rank=4, targets=("mlp.down",)), halka.Bottleneck(targets=("mlp",))),
        ("llama", halka.Bottleneck(width=4, targets=("mlp",)), PARALLEL),
        ("llama", halka.Bottleneck(targets=("mlp",), reads="input"), halka.IA3(("mlp.up",), feedforward=("mlp.up",))),
        (
            "bert",
            halka.IA3(("attn.q",), feedforward=("attn.q",)),
            halka.Bottleneck(targets=("attn",), reads="residual"),
        ),
        ("mixtral", halka.Modules(("model.layers.1.mlp",)), halka.Bottleneck(width=4, targets=("mlp",))),
        ("mixtral", halka.Bottleneck(width=4, targets=("mlp",)), PARALLEL),
    ],
)
def test_an_adapter_computes_the_same_whichever_others_came_before(architecture, first, second):
    """At one module the first edits, or remembers, what comes before the second, whoever added which hook first."""
    logits = []
    for before in (None, first, second):
        model = halka.adapt(tiny(architecture))
        if before is not None:
            model.add("before", before)
        model.add("joint", halka.Joint((first, second)))
        disturb(model, "joint", by=0.3)
        with torch.inference_mode(), model.use("joint"):
            logits.append(model.base(torch.tensor([[5, 6, 7, 8]])).logits)
    assert torch.equal(logits[0], logits[1])
    assert torch.equal(logits[0], logits[2])


def test_positions_that_all_rows_share_are_edited_for_each():
    """GPT-2 calls its embedding of positions with a single row for the whole batch."""
    methods = {
        "lora": halka.LoRA(rank=2, targets=("module:transformer.wpe",)),
        "whole": halka.Modules(("transformer.wpe",)),
    }
    model = halka.adapt(tiny("gpt2"))
    for name, method in methods.items():
        model.add(name, method)
        disturb(model, name, by=0.3)
    rows = ["lora", None, "whole", "lora"]
    with torch.inference_mode(), model.use(rows):
        mixed = model.base(ids(rows=4)).logits
    for row, name in enumerate(rows):
        with torch.inference_mode(), model.use(name):
            alone = model.base(ids(rows=4)[row : row + 1]).logits[0]
        torch.testing.assert_close(mixed[row], alone, rtol=0, atol=1e-5)


def test_a_module_that_returns_several_tensors_is_named():
    class Pair(nn.Linear):
        def forward(self, x):
            return super().forward(x), x

    base = tiny("llama")
    base.model.norm = Pair(64, 64)
    model = halka.adapt(base)
    model.add("a", halka.Modules(("model.norm",)))
    several = "model.norm returns several tensors"
    with model.use("a"), pytest.raises(halka.HalkaError, match=several):
        model.base(torch.tensor([[3, 4, 5]]))
