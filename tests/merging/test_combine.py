"""Several adapters as one: each way beside a slow formula and beside peft, whose quirks are named where they are."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

import halka
from classifiers import LABELS, classifier
from classifiers import logits as classified
from contract import disturb, ids
from halka.merging.combining import COMBINATIONS, OF_PRODUCTS, WAYS, largest, nearest, nearest_of_factors, random_share
from kinds import logits, model_with
from tiny import tiny

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")  # peft's own

PRUNING = [name for name in COMBINATIONS if OF_PRODUCTS.get(name, name) not in ("cat", "linear")]
WEIGHTS = {"one": 0.7, "two": -0.4, "three": 1.1}
TARGETS = ("attn.q", "attn.v", "mlp.down")


def model_of(*methods: halka.LoRA, architecture: str = "llama"):
    model = halka.adapt(tiny(architecture))
    for seed, (name, method) in enumerate(zip(WEIGHTS, methods, strict=False)):
        model.add(name, method, seed=seed)
        disturb(model, name, seed=seed + 10, by=0.3)
    return model


def three(targets: Sequence[str] = TARGETS, **fields) -> list[halka.LoRA]:
    return [halka.LoRA(rank=4, alpha=alpha, targets=tuple(targets), **fields) for alpha in (4, 6, 2)]


def product(part) -> Tensor:
    return (part.scale * part.lora_B @ part.lora_A).detach()


def of_rank(product_OI: Tensor, rank: int) -> Tensor:
    """The nearest of that rank, by the sum of its singular parts one by one."""
    U, S, V = torch.linalg.svd(product_OI.double())
    return sum(S[i] * torch.outer(U[:, i], V[i]) for i in range(rank)).float()  # type: ignore[union-attr]


def by_hand(way: str, tensors: list[Tensor], weights: list[float], density: float) -> Tensor:
    """One tensor of several, value by value (without the random ways)."""
    kept = []
    for tensor in tensors:
        flat = tensor.flatten().tolist()
        if way != "linear":
            order = sorted(range(len(flat)), key=lambda i: -abs(flat[i]))
            keep = set(order[: int(density * len(flat))])
            flat = [value if i in keep else 0.0 for i, value in enumerate(flat)]
        kept.append(flat)
    result = []
    for values in zip(*kept, strict=True):
        if way == "ties":
            sign = 1 if sum(values) >= 0 else -1
            agreeing = [w * v for w, v in zip(weights, values, strict=True) if v * sign > 0]
            result.append(sum(agreeing) / len(agreeing) if agreeing else 0.0)
        else:
            result.append(sum(w * v for w, v in zip(weights, values, strict=True)))
    return torch.tensor(result).view_as(tensors[0])


@pytest.mark.parametrize("way", ["linear", "ties", "magnitude_prune"])
def test_factors_combine_as_the_formula_says(way):
    model = model_of(*three())
    made = halka.combine(model, WEIGHTS, way, density=None if way == "linear" else 0.4)
    for path, part in made.parts.items():
        sources = [model.adapters[name].parts[path] for name in WEIGHTS]
        scaled = [weight * each.scale for weight, each in zip(WEIGHTS.values(), sources, strict=True)]
        at_A = [math.copysign(math.sqrt(abs(each)), each) for each in scaled]
        A = by_hand(way, [each.lora_A.detach() for each in sources], at_A, 0.4)
        B = by_hand(way, [each.lora_B.detach() for each in sources], [abs(each) for each in at_A], 0.4)
        torch.testing.assert_close(product(part), B @ A, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("way", ["linear", "ties", "magnitude_prune"])
def test_products_combine_as_the_formula_says(way):
    model = model_of(*three())
    method = "svd" if way == "linear" else f"{way}_svd"
    made = halka.combine(model, WEIGHTS, method, rank=3, density=None if way == "linear" else 0.4)
    assert made.method == halka.LoRA(rank=3, alpha=3.0, targets=TARGETS)
    for path, part in made.parts.items():
        products = [product(model.adapters[name].parts[path]) for name in WEIGHTS]
        expected = of_rank(by_hand(way, products, [*WEIGHTS.values()], 0.4), 3)
        torch.testing.assert_close(product(part), expected, rtol=1e-4, atol=1e-5)


def test_cat_is_the_exact_sum_of_any_ranks_and_targets():
    methods = [halka.LoRA(rank=4), halka.LoRA(rank=7, targets=("attn.q", "head"), scaling="root"), halka.LoRA(rank=1)]
    model = model_of(*methods)
    made = halka.combine(model, WEIGHTS, "cat", name="sum")
    assert made.method == halka.LoRA(rank=12, alpha=12.0, targets=("linear", "attn.q", "head"))
    assert {*made.parts} == {path for name in WEIGHTS for path in model.adapters[name].parts}
    for path, part in made.parts.items():
        expected = sum(
            weight * product(model.adapters[name].parts[path])
            for name, weight in WEIGHTS.items()
            if path in model.adapters[name].parts
        )
        torch.testing.assert_close(product(part), expected, rtol=1e-5, atol=1e-6)


def test_ranks_by_module_and_loras_of_the_embedding_combine_too():
    model = halka.adapt(tiny())
    wide = halka.LoRA(rank=6, targets=("attn.q", "embedding"))
    model.add("one", halka.Joint((wide, halka.LoRA(rank=2, alpha=5.0, targets=("mlp.down",)))))
    model.add("two", halka.LoRA(rank=3, targets=("attn.q", "embedding")))
    for seed, name in enumerate(("one", "two")):
        disturb(model, name, seed=seed, by=0.2)
    halka.combine(model, {"one": 0.5, "two": 2.0}, "cat")
    one, two, made = (model.adapters[name] for name in ("one", "two", "combined"))
    assert made.method == halka.LoRA(rank=9, alpha=9.0, targets=("attn.q", "embedding", "mlp.down"))
    for path, part in made.parts.items():
        weight = torch.zeros_like(one.targets[path].module.weight)
        each = [weight if path not in of.parts else of.parts[path].merged(weight, None)[0] for of in (one, two)]
        torch.testing.assert_close(part.merged(weight, None)[0], 0.5 * each[0] + 2 * each[1], rtol=1e-5, atol=1e-6)


def test_the_sum_of_merged_adapters_is_the_merged_sum():
    model = model_of(halka.LoRA(rank=2), halka.LoRA(rank=5))
    halka.combine(model, {"one": 1.0, "two": 1.0}, "cat", name="sum")
    expected = logits(model, "sum")
    for name in ("one", "two"):
        model.merge(name)
        weights = {key: tensor.detach().clone() for key, tensor in model.base.state_dict().items()}
        model.unmerge()
        model.base.load_state_dict(weights)
    torch.testing.assert_close(logits(model), expected, rtol=0, atol=1e-5)


def test_svd_without_forming_the_product_is_that_of_the_product():
    generator = torch.Generator().manual_seed(0)
    for shape in ((3, 9, 11), (12, 9, 11), (5, 2, 11)):
        R, O, I = shape
        A, B = torch.randn(R, I, generator=generator), torch.randn(O, R, generator=generator)
        for rank in (1, 2):
            fast, slow = nearest_of_factors(A, B, rank), nearest(B @ A, rank)
            torch.testing.assert_close(fast[1] @ fast[0], slow[1] @ slow[0], rtol=1e-4, atol=1e-5)


def test_svd_of_the_full_rank_is_the_sum_and_a_higher_one_is_filled_up():
    model = model_of(halka.LoRA(rank=2), halka.LoRA(rank=3))
    for method, rank in (("cat", None), ("svd", 5), ("svd", 40)):
        halka.combine(model, {"one": 1.0, "two": 0.5}, method, name=f"{method}{rank}", rank=rank)
    exact = logits(model, "catNone")
    torch.testing.assert_close(logits(model, "svd5"), exact, rtol=0, atol=1e-5)
    torch.testing.assert_close(logits(model, "svd40"), exact, rtol=0, atol=1e-5)
    halka.combine(model, {"one": 1.0, "two": 0.5}, "svd")
    assert model.adapters["combined"].method.rank == 3


def test_dare_keeps_the_expectation_and_follows_its_seed():
    tensor = torch.randn(200, 100, generator=torch.Generator().manual_seed(0))
    draw = torch.Generator().manual_seed(1)
    kept = random_share(tensor, 0.25, draw)
    share = (kept != 0).float().mean().item()
    assert share == pytest.approx(0.25, abs=0.01)
    assert torch.equal(kept[kept != 0], tensor[kept != 0] / 0.25)
    model = model_of(*three())
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        halka.combine(model, WEIGHTS, "dare_linear", name=name, density=0.3, seed=seed)
    states = [model.adapters[name].state_dict() for name in "abc"]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert any(not torch.equal(states[0][key], states[2][key]) for key in states[0])
    halka.combine(model, WEIGHTS, "dare_linear", name="whole", density=1.0)
    halka.combine(model, WEIGHTS, "linear", name="linear")
    torch.testing.assert_close(logits(model, "whole"), logits(model, "linear"))


def test_the_largest_are_kept():
    kept = largest(torch.tensor([[0.1, -3.0], [2.0, 0.5]]), 0.5, torch.Generator())
    assert kept.tolist() == [[0.0, -3.0], [2.0, 0.0]]
    assert largest(torch.tensor([0.1, -3.0]), 0.1, torch.Generator()).tolist() == [0.0, -3.0]  # else nothing is left


def test_a_name_that_is_taken_is_refused_before_the_work(monkeypatch):
    model = model_of(*three())
    monkeypatch.setattr(torch.linalg, "svd", lambda *args, **options: pytest.fail("it is computed"))
    with pytest.raises(halka.HalkaError, match="there is an adapter 'one' already"):
        halka.combine(model, WEIGHTS, "svd", name="one")


# ── peft ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def in_peft(model, folder, method: str, rank: int | None, density: float | None, architecture: str = "llama") -> Tensor:
    """Logits of the adapter that peft's add_weighted_adapter makes of the same files."""
    for name in WEIGHTS:
        halka.save(model, name, folder / name)
    first, *others = WEIGHTS
    theirs = peft.PeftModel.from_pretrained(tiny(architecture), folder / first, adapter_name=first)
    for name in others:
        theirs.load_adapter(folder / name, adapter_name=name)
    inject = theirs.base_model.inject_adapter

    def injected(*given, **more):
        """The new adapter's own random start is behind us when the draws begin."""
        inject(*given, **more)
        torch.manual_seed(5)

    theirs.base_model.inject_adapter = injected
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs.add_weighted_adapter(
            [*WEIGHTS], [*WEIGHTS.values()], "made", combination_type=method, svd_rank=rank, density=density
        )
    theirs.set_adapter("made")
    with torch.no_grad():
        return theirs.eval()(ids()).logits


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("method", COMBINATIONS)
def test_it_computes_what_pefts_weighted_adapter_does(method, architecture, tmp_path):
    """dare's draws too: the same generator draws in the same order (of GPT-2's transposed products it does not)."""
    if architecture == "gpt2" and method.startswith("dare") and method.endswith("svd"):
        pytest.skip("peft draws for the product's transpose")
    targets = TARGETS if architecture == "llama" else ("attn.qkv", "mlp.down")
    model = model_of(*three(targets), architecture=architecture)
    bare = logits(model)
    rank = 5 if method in OF_PRODUCTS else None
    density = 0.4 if method in PRUNING else None
    expected = in_peft(model, tmp_path, method, rank, density, architecture)
    halka.combine(model, WEIGHTS, method, rank=rank, density=density, seed=5)
    ours = logits(model, "combined")
    assert (expected - bare).abs().max() > 1e-2
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-4)


def test_peft_forgets_that_the_scale_of_a_rank_stabilised_lora_is_another(tmp_path):
    """It copies the first adapter's configuration, use_rslora with it, and scales its sum by √r once more."""
    model = model_of(*three(scaling="root"))
    theirs = in_peft(model, tmp_path, "cat", None, None)
    halka.combine(model, WEIGHTS, "cat")
    weights = {name: weight * math.sqrt(12) for name, weight in WEIGHTS.items()}
    halka.combine(model, weights, "cat", name="as peft")
    torch.testing.assert_close(logits(model, "as peft"), theirs, rtol=0, atol=1e-4)
    assert (logits(model, "combined") - theirs).abs().max() > 1e-2


def test_what_is_combined_is_saved_and_loaded_as_any_adapter(tmp_path):
    model = model_of(*three())
    halka.combine(model, WEIGHTS, "ties")
    halka.save(model, "combined", tmp_path / "combined")
    halka.load(model, tmp_path / "combined", name="again")
    assert torch.equal(logits(model, "again"), logits(model, "combined"))


# ── other families ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", ["ia3", "bitfit", "full", "modules", "tokens"])
def test_what_starts_at_a_point_is_combined_by_its_distance_from_there(kind, tied):
    methods = {"ia3": halka.IA3(), "bitfit": halka.BitFit(), "full": halka.Full(), "modules": halka.Modules()}
    method = (methods | {"tokens": halka.Tokens((5, 8))})[kind]
    model = halka.adapt(tiny(tie_word_embeddings=tied))
    start = model.add("start", method).state_dict()
    for seed, name in enumerate(("one", "two")):
        model.add(name, method)
        disturb(model, name, seed=seed, by=0.02)
    one, two = (model.adapters[name].state_dict() for name in ("one", "two"))
    made = halka.combine(model, {"one": 0.5, "two": 0.25}).state_dict()
    for key, tensor in made.items():
        expected = start[key] + 0.5 * (one[key] - start[key]) + 0.25 * (two[key] - start[key])
        torch.testing.assert_close(tensor, expected, rtol=1e-5, atol=1e-6)
    ties = halka.combine(model, {"one": 1.0, "two": 1.0}, "ties", name="ties", density=0.5).state_dict()
    for key, tensor in ties.items():
        moved = [(state[key] - start[key]) for state in (one, two)]
        torch.testing.assert_close(tensor - start[key], by_hand("ties", moved, [1.0, 1.0], 0.5), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", [halka.IA3(), halka.LlamaAdapter(length=3)], ids=lambda method: method.name)
def test_an_adapter_from_memory_combines_with_one_from_its_files(method, tmp_path):
    """Whose places are named one by one."""
    model = halka.adapt(tiny())
    for name in ("a", "b"):
        model.add(name, method)
        disturb(model, name, by=0.2)
    halka.load(model, halka.save(model, "b", tmp_path / "b"), name="read")
    expected = halka.combine(model, {"a": 0.5, "b": 0.5}, name="both").state_dict()
    combined = halka.combine(model, {"a": 0.5, "read": 0.5}).state_dict()
    assert all(torch.equal(tensor, expected[key]) for key, tensor in combined.items())
    if method.name == "ia3":
        for name, feedforward in (("in", ("attn.o",)), ("out", ())):  # of square layers: equal shapes
            model.add(name, halka.IA3(targets=("attn.o",), feedforward=feedforward))
        with pytest.raises(ValueError, match="differ in their hyper-parameters"):
            halka.combine(model, {"in": 0.5, "out": 0.5}, name="mixed")
    model.add("fewer", halka.IA3(targets=("attn.kv",)) if method.name == "ia3" else halka.LlamaAdapter(length=4))
    with pytest.raises(ValueError, match="differ in their hyper-parameters"):
        halka.combine(model, {"a": 0.5, "fewer": 0.5}, name="other")


@pytest.mark.parametrize("kind", ["parallel", "serial", "prefix", "prompt"])
def test_tensors_of_equal_shape_are_summed(kind):
    model = model_with(kind)
    method = model.adapters[kind].method
    for seed, name in enumerate(("one", "two")):
        model.add(name, method)
        disturb(model, name, seed=seed, by=0.2)
    one, two = (model.adapters[name].state_dict() for name in ("one", "two"))
    made = halka.combine(model, {"one": 0.7, "two": 0.3})
    for key, tensor in made.state_dict().items():
        torch.testing.assert_close(tensor, 0.7 * one[key] + 0.3 * two[key])
    with pytest.raises(ValueError, match=r"ties is not defined for .*: choose linear"):
        halka.combine(model, {"one": 0.7, "two": 0.3}, "ties", name="other")


def test_ia3_equals_peft_where_weights_sum_to_one(tmp_path):
    """peft sums the factors themselves: with weights of one half in all, its sum halves keys and values."""
    model = halka.adapt(tiny())
    weights = {"one": 0.7, "two": 0.3}
    for seed, name in enumerate(weights):
        model.add(name, halka.IA3())
        disturb(model, name, seed=seed, by=0.2)
        halka.save(model, name, tmp_path / name)
    theirs = peft.PeftModel.from_pretrained(tiny(), tmp_path / "one", adapter_name="one")
    theirs.load_adapter(tmp_path / "two", adapter_name="two")
    theirs.add_weighted_adapter([*weights], [*weights.values()], "made")
    theirs.set_adapter("made")
    halka.combine(model, weights)
    with torch.no_grad():
        torch.testing.assert_close(logits(model, "combined"), theirs.eval()(ids()).logits, rtol=0, atol=1e-5)


# ── adapters of several methods ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("way", COMBINATIONS)
def test_classifiers_combine_by_their_products_and_their_heads(way):
    model = classifier()
    for seed, name in enumerate(("one", "two")):
        model.add(name, halka.LoRA(rank=4), labels=LABELS[:2])
        disturb(model, name, seed=seed, by=0.2)
    weights, density = {"one": 0.7, "two": 0.6}, {} if way in ("linear", "cat", "svd") else {"density": 1.0}
    made = halka.combine(model, weights, way, **density)
    assert [each.name for each in made.method.methods] == ["lora", "modules"]
    assert model.labels_of("combined") == LABELS[:2]
    assert {*made.parts} == {*model.adapters["one"].parts}
    one, two = (model.adapters[name].parts["classifier"].weight for name in weights)
    base = model.base.classifier.weight
    if "ties" not in way:
        torch.testing.assert_close(
            made.parts["classifier"].weight, base + 0.7 * (one - base) + 0.6 * (two - base), rtol=1e-4, atol=1e-6
        )
    if way == "cat":
        path = "bert.encoder.layer.0.attention.self.query"
        expected = sum(weight * product(model.adapters[name].parts[path]) for name, weight in weights.items())
        torch.testing.assert_close(product(made.parts[path]), expected, rtol=1e-5, atol=1e-6)


def test_each_method_of_a_joint_combines_by_its_own_start():
    """Fresh (IA)³ and heads change nothing, however they are weighted."""
    model = classifier()
    for name in ("one", "two"):
        model.add(name, halka.IA3())
    before = classified(model, None)
    halka.combine(model, {"one": 1.0, "two": 1.0})
    torch.testing.assert_close(classified(model, "combined"), before, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="cat is not defined for ia3"):
        halka.combine(model, {"one": 1.0, "two": 1.0}, "cat", name="other")


@pytest.mark.parametrize("kind", [halka.Prompt, halka.Prefix])
def test_virtual_tokens_combine_whatever_they_started_as(kind):
    model = halka.adapt(tiny())
    one, two = model.add("one", kind(2, tokens=(5, 6))), model.add("two", kind(2))
    made = halka.combine(model, {"one": 0.25, "two": 0.5})
    for key, tensor in made.state_dict().items():
        torch.testing.assert_close(tensor, 0.25 * one.state_dict()[key] + 0.5 * two.state_dict()[key])
    model.add("three", kind(3))
    with pytest.raises(ValueError, match="differ in their hyper-parameters"):
        halka.combine(model, {"one": 1.0, "three": 1.0}, name="other")


def test_a_joint_of_three_stays_one():
    model = halka.adapt(tiny())
    method = halka.Joint((halka.Bottleneck(width=4), halka.Prefix(length=2), halka.IA3(targets=("attn.k",))))
    for seed, name in enumerate(("one", "two")):
        model.add(name, method)
        disturb(model, name, seed=seed, by=0.2)
    made = halka.combine(model, {"one": 0.5, "two": 0.5})
    assert made.method == method
    one, two = (model.adapters[name].state_dict() for name in ("one", "two"))
    for key, tensor in made.state_dict().items():
        torch.testing.assert_close(tensor, (one[key] + two[key]) / 2)


@pytest.mark.parametrize("method", ["linear", "cat", "svd", "ties"])
def test_values_that_are_not_finite_are_refused_by_name(method):
    model = model_of(*three())
    name, *_, last = WEIGHTS
    model.parameters(last)[0].data[0, 0] = math.nan
    before = [*model.adapters]
    with pytest.raises(ValueError, match=f"adapter '{last}' holds values that are not finite, in .*lora_A"):
        halka.combine(model, {name: 1.0, last: 0.5}, method)
    assert [*model.adapters] == before


def test_classifiers_of_other_labels_or_methods_are_refused_by_name():
    model = classifier()
    model.add("one", halka.LoRA(rank=4))
    model.add("two", halka.LoRA(rank=4), labels=("bad", "good", "meh"))
    model.add("ia3", halka.IA3())
    with pytest.raises(ValueError, match="'one' has the labels good, bad, meh and 'two' bad, good, meh, so"):
        halka.combine(model, {"one": 1.0, "two": 1.0})
    with pytest.raises(ValueError, match="lora with modules and ia3 with modules do not combine"):
        halka.combine(model, {"one": 1.0, "ia3": 1.0})
    assert [*model.adapters] == ["one", "two", "ia3"]


# ── refusals ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"method": "mean"}, r"no combination 'mean': choose one of linear, ties"),
        ({"adapters": {"one": 1.0}}, "two or more adapters"),
        ({"adapters": {"one": 1.0, "nobody": 1.0}}, "no adapter 'nobody'"),
        ({"adapters": {"one": 1.0, "two": math.nan}}, "the weight of 'two' is nan: give each adapter a finite number"),
        ({"adapters": {"one": -math.inf, "two": 1.0}}, "the weight of 'one' is -inf"),
        ({"density": 0.5}, "linear keeps all values"),
        ({"method": "svd", "density": 0.5}, "svd keeps all values"),
        ({"method": "ties", "density": 0.0}, "above 0 and at most 1"),
        ({"method": "cat", "rank": 4}, "the rank of cat follows from its sources"),
        ({"method": "svd", "rank": 0}, "give one, above 0"),
        ({"adapters": {"one": 1.0, "wide": 1.0}}, r"need equal ranks; at .* they are 4, 6: use cat"),
        ({"adapters": {"one": 1.0, "ia3": 1.0}}, "lora and ia3 do not combine"),
        ({"adapters": {"dora": 1.0, "dora2": 1.0}}, "dora is no sum of products"),
        ({"adapters": {"prompt": 1.0, "prompt2": 1.0}}, "differ in their hyper-parameters"),
        ({"adapters": {"hidden": 1.0, "hidden2": 1.0}}, "prefixes behind a network"),
        ({"adapters": {"ia3": 1.0, "ia32": 1.0}, "method": "cat"}, "cat is not defined for ia3: choose linear, ties"),
        ({"name": "one"}, "there is an adapter 'one' already"),
    ],
)
def test_what_does_not_combine_is_said(given, why):
    model = model_of(*three())
    model.add("wide", halka.LoRA(rank=6, targets=TARGETS))
    for name in ("ia3", "ia32"):
        model.add(name, halka.IA3())
    for name in ("dora", "dora2"):
        model.add(name, halka.DoRA(rank=2))
    for name in ("hidden", "hidden2"):
        model.add(name, halka.Prefix(length=3, hidden=4))
    model.add("prompt", halka.Prompt(length=3))
    model.add("prompt2", halka.Prompt(length=4))
    before = [*model.adapters]
    with pytest.raises(ValueError, match=why):
        halka.combine(model, **{"adapters": {"one": 1.0, "two": 1.0}, **given})
    assert [*model.adapters] == before


def test_every_way_has_its_name():
    assert {*WAYS} < {*COMBINATIONS}
    assert {*OF_PRODUCTS.values()} == {*WAYS}
