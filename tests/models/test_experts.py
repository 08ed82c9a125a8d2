"""Adapters on mixtures of experts: the contract on their bases, and the fast way against the slow one."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM
from transformers.integrations.moe import ExpertsInterface

import halka
from contract import adapted, disturb, ids
from halka.merging.combining import combine
from halka.merging.exporting import export
from halka.methods._checks import linear_layer
from halka.models import experts
from halka.training import Job, TrainConfig, train, train_many
from kinds import bare, logits
from tiny import tiny
from training_for_tests import items

EXPERTS = ("experts.gate_up", "experts.down")
METHODS = {
    "lora": halka.LoRA(rank=3, targets=("experts",)),
    "lora everywhere": halka.LoRA(rank=20, targets=("linear", "experts"), scaling="root"),
    "ia3": halka.IA3(targets=("attn.kv", "experts.down")),
    "ia3 of outputs": halka.IA3(targets=("experts.gate_up",)),
    "bitfit": halka.BitFit(targets=("experts",)),
    "joint": halka.Joint((halka.LoRA(rank=4, targets=("experts.down",)), halka.Bottleneck(width=6, reads="input"))),
}
BASES = ("mixtral", "qwen3_moe", "qwen2_moe")
every_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())
every_base = pytest.mark.parametrize("architecture", BASES)


@every_base
@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("model.layers.1.mlp.gate", "model.layers.1.mlp.gate is a router, .* tokens go where the base sends them"),
        (
            "model.layers.1.mlp.experts",
            r"a \w+Experts, takes several inputs \(hidden_states, .* name modules with one input",
        ),
    ],
)
def test_routers_and_experts_are_not_trained_whole_and_routers_not_at_all(path, reason, architecture):
    model = halka.adapt(tiny(architecture))
    with pytest.raises(ValueError, match=reason):
        model.add("a", halka.Modules((path,)))
    if path.endswith("gate"):
        for method in (halka.LoRA, halka.IA3, halka.BitFit):
            with pytest.raises(ValueError, match=reason):
                model.add("a", method(targets=(f"module:{path}",)))
    assert not model.adapters


@pytest.mark.parametrize("implementation", ["eager", "batched_mm", "grouped_mm"])
def test_the_bases_own_implementation_computes_wherever_no_part_acts(implementation):
    base = tiny("mixtral")
    base.set_experts_implementation(implementation)
    expected = base(ids()).logits.detach()
    model = halka.adapt(base)
    model.add("second layer", halka.LoRA(rank=4, targets=("model.layers.1.mlp.experts.down_proj",)))
    disturb(model, "second layer")
    model.add("attention", halka.LoRA(rank=4))
    assert torch.equal(bare(model), expected)
    assert torch.equal(logits(model, "attention"), expected)  # it has not been trained
    with torch.no_grad(), model.use("second layer"):
        used = model.base(ids(), output_hidden_states=True)
    first = base(ids(), output_hidden_states=True).hidden_states[1]
    assert torch.equal(used.hidden_states[1], first)
    assert (used.logits - expected).abs().max() > 1e-3
    assert base.config._experts_implementation == implementation


def test_a_block_within_own_weights_leaves_the_outer_ones_experts():
    model = adapted(METHODS["lora"], architecture="qwen3_moe")
    model.add("b", METHODS["ia3"])
    expected = logits(model, "a")
    with torch.no_grad(), model.use("a"):
        with model.own_weights():
            logits(model, "b")
        assert torch.equal(model.base(ids()).logits, expected)


@every_base
@every_method
def test_grouped_products_agree_with_one_expert_and_one_row_at_a_time(method, architecture):
    model = adapted(method, architecture=architecture)
    model.add("b", halka.LoRA(rank=5, alpha=3, targets=("experts",)))
    disturb(model, "b", seed=9)
    results = []
    for product in (experts.product, experts.one_by_one):
        for names in ("a", ["a", None, "b"], ["b", "a", "a"]):
            for each in ("a", "b"):
                for parameter in model.parameters(each):
                    parameter.grad = None
            with model.use(names):
                way = partial(experts.compute, product=product)
                ExpertsInterface.register(model.base.config.get_text_config()._experts_implementation, way)
                output = model.base(ids(), labels=ids())
                output.loss.backward()
            gradients = [p.grad for each in ("a", "b") for p in model.parameters(each) if p.grad is not None]
            results.append([output.logits.detach(), *(gradient.clone() for gradient in gradients)])
    for fast, slow in zip(results[:3], results[3:], strict=True):
        for one, other in zip(fast, slow, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_the_numbers_are_those_of_the_dense_formula():
    """One mixture layer, written out token by token, and its gradients."""
    model = adapted(METHODS["lora"], architecture="mixtral")
    block = model.base.model.layers[0].mlp
    path = "model.layers.0.mlp.experts"
    parts = [model.adapters["a"].parts[f"{path}.{key}"] for key in ("gate_up_proj", "down_proj")]
    x = torch.randn(1, 7, 64, generator=torch.Generator().manual_seed(5))
    probe = torch.randn(7, 64, generator=torch.Generator().manual_seed(6))

    def dense() -> torch.Tensor:
        _, weights, chosen = block.gate(x[0])
        own = (block.experts.gate_up_proj, block.experts.down_proj)
        inner, outer = (w + p.scale * p.lora_B @ p.lora_A for w, p in zip(own, parts, strict=True))
        rows = []
        for token in range(7):
            row = 0
            for weight, expert in zip(weights[token], chosen[token], strict=True):
                gate, up = (inner[expert] @ x[0, token]).chunk(2)
                row = row + weight * (outer[expert] @ (F.silu(gate) * up))
            rows.append(row)
        return torch.stack(rows)

    results = []
    for made in (lambda: block(x)[0], dense):
        with model.use("a"):
            y = made()
            gradients = torch.autograd.grad((y * probe).sum(), [p for part in parts for p in part.parameters()])
        results.append([y, *gradients])
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-6)


def test_gradients_equal_finite_differences():
    model = adapted(METHODS["lora"], architecture="mixtral")
    block = model.base.model.layers[0].mlp.double()
    parts = [part.double() for path, part in model.adapters["a"].parts.items() if ".layers.0." in path]
    x = torch.randn(3, 2, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    parameters = tuple(parameter for part in parts for parameter in part.parameters())
    with model.use(["a", None, "a"]):
        assert torch.autograd.gradcheck(lambda *perturbed: block(x), parameters, fast_mode=True)


def test_dropout_falls_on_what_the_experts_read_while_training_alone():
    model = adapted(halka.LoRA(rank=4, dropout=0.5, targets=("experts",)), architecture="mixtral")
    adapter = model.adapters["a"]
    assert torch.equal(logits(model, "a"), logits(model, "a"))
    adapter.train()
    assert not torch.equal(logits(model, "a"), logits(model, "a"))


def test_layers_with_and_without_experts_have_their_own_roles():
    by_layer = [
        {target.role for target in halka.adapt(tiny("qwen3_moe")).targets if target.layer == layer} for layer in (0, 1)
    ]
    attention = {"attn", "attn.residual", "attn.q", "attn.k", "attn.v", "attn.o", "mlp", "mlp.residual"}
    assert by_layer == [attention | {"mlp.gate", "mlp.up", "mlp.down"}, attention | set(EXPERTS)]
    shared = {t.name: t.role for t in halka.adapt(tiny("qwen2_moe")).targets if "shared" in t.name and t.layer == 0}
    assert sorted(shared.values()) == ["mlp.down", "mlp.gate", "mlp.up"]


def test_methods_that_do_not_fit_say_so():
    model = halka.adapt(tiny("mixtral"))
    with pytest.raises(ValueError, match=r"ia3 wants 'mlp.down', which this base does not have: .*experts.down"):
        model.add("a", halka.IA3())
    with pytest.raises(ValueError, match="dora: it cannot act on experts"):
        model.add("a", halka.DoRA(targets=("experts",)))
    with pytest.raises(ValueError, match="own: it cannot act on experts"):  # unless a method says that it can
        linear_layer("own", next(target for target in model.targets if target.experts))
    with pytest.raises(ValueError, match="lora wants 'experts', which this base does not have"):
        halka.adapt(tiny()).add("a", halka.LoRA(targets=("experts",)))
    attention = {path.rpartition(".")[2] for path in model.add("a", halka.LoRA()).parts}
    assert attention == {"q_proj", "k_proj", "v_proj", "o_proj"}  # the default leaves experts alone


def test_a_part_without_tensors_is_refused_at_experts():
    class Own(halka.core.ModulePart):
        def __init__(self):
            super().__init__()
            self.bias = torch.nn.Parameter(torch.zeros(64))

        def edit_output(self, x, y):
            return y + self.bias

        def stack_key(self):
            return None

    class Method(halka.BitFit):
        def build(self, target):
            return Own()

    model = halka.adapt(tiny("mixtral"))
    model.add("a", Method(targets=("experts.down",)))
    with pytest.raises(ValueError, match=r"Own cannot act on experts.*`tensors`"), model.use("a"):
        model.base(ids())


@every_base
def test_trained_together_each_learns_what_it_learns_alone(architecture):
    methods = {"lora": METHODS["lora"], "ia3": METHODS["ia3"], "bottleneck": halka.Bottleneck(width=5)}
    config = TrainConfig(steps=3, batch_size=3, lr=1e-2)

    def model_with(*names: str) -> halka.core.AdaptedModel:
        model = halka.adapt(tiny(architecture))
        for name in names:
            model.add(name, methods[name])
            disturb(model, name)
        return model

    together = model_with(*methods)
    told = list(train_many(together, [Job(name, items(6, seed=1), config) for name in methods]))
    for name in methods:
        alone = model_with(name)
        steps = list(train(alone, name, items(6, seed=1), config))
        assert [each[name].loss for each in told] == pytest.approx([step.loss for step in steps], rel=1e-4)
        for key, tensor in alone.adapters[name].state_dict().items():
            torch.testing.assert_close(together.adapters[name].state_dict()[key], tensor, rtol=1e-3, atol=2e-5)


def test_adapters_of_experts_combine_and_are_exported_merged(tmp_path):
    model = adapted(METHODS["lora"], architecture="qwen3_moe")
    model.add("b", halka.LoRA(rank=5, targets=("experts", "attn.q")))
    disturb(model, "b", seed=9)
    both = combine(model, {"a": 0.5, "b": 2.0}, "cat", name="both")
    for path, part in both.parts.items():
        owners = ((model.adapters["a"], 0.5), (model.adapters["b"], 2.0))
        expected = sum(weight * each.parts[path].delta() for each, weight in owners if path in each.parts)
        torch.testing.assert_close(part.delta(), expected)
    export(model, "both", tmp_path / "merged", force=True)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(again(ids()).logits, logits(model, "both"), rtol=0, atol=1e-5)
