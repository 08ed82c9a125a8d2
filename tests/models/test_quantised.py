"""Bases in fewer bits: what they compute, to the number; every method on them, in every use; folders and commands."""

from __future__ import annotations

import copy
import json
import sys

import bitsandbytes.functional as reference
import pytest
import torch
import yaml
from torch import nn

import halka
from commands import halka as command
from contract import disturb, has_weights, ids, weights_of
from halka.core import AdaptedModel, Method, parameter_count, quantization_of
from halka.evaluation.evaluating import evaluate, perplexity
from halka.evaluation.generation import iter_answers
from halka.models.fingerprint import fingerprint
from halka.models.quantised import LAYERS, QuantizedLinear, bytes_of, quantise
from halka.models.quantised.int8 import Int8Linear
from halka.models.quantised.nf4 import NF4Linear
from halka.training import Job, train_many
from numbers_for_tests import close
from runs_for_tests import a_run
from tiny import CONFIGS, ENCODERS, SEQ2SEQ, UNEVEN, tiny
from tokenizers_for_tests import chatml_tokenizer

every_form = pytest.mark.parametrize("form", LAYERS)


def packed(form: str, architecture: str = "llama", dtype: torch.dtype = torch.float32, **changes):
    base = tiny(architecture, dtype, **changes)
    quantise(base, form)
    return base


def adapted(form: str, method: Method, trained: bool = True) -> AdaptedModel:
    model = halka.adapt(packed(form))
    model.add("a", method)
    if trained:
        disturb(model, "a")
    return model


def twin(base: nn.Module) -> nn.Module:
    """The same base with packed layers as ordinary ones, whose weights bitsandbytes packed and unpacked."""
    slow = copy.deepcopy(base)
    for path, layer in base.named_modules():
        if isinstance(layer, QuantizedLinear):
            plain = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
            plain.weight = nn.Parameter(by_bitsandbytes(layer), requires_grad=False)
            plain.bias = layer.bias
            slow.set_submodule(path, plain.eval())
    return slow


def by_bitsandbytes(layer: QuantizedLinear) -> torch.Tensor:
    """The weight (O, I), fp32, as bitsandbytes reads what the layer keeps."""
    if isinstance(layer, Int8Linear):
        return reference.int8_vectorwise_dequant(layer.values, layer.scale * 127)
    assert isinstance(layer, NF4Linear)
    levels = reference.get_4bit_type("nf4", device="cpu")
    nested = reference.QuantState(layer.scales_of_scales, code=layer.levels, blocksize=256, dtype=torch.float32)
    scales = reference.dequantize_blockwise(layer.scales, nested) + layer.mean_scale
    nibbles = torch.stack([layer.values >> 4, layer.values & 15], dim=1).flatten()
    size = layer.out_features * layer.in_features
    values = levels[nibbles.long()] * scales.repeat_interleave(64)[: len(nibbles)]
    return values[:size].view(layer.out_features, layer.in_features)


# ── the layers ──────────────────────────────────────────────────────────────────────────────────────────────────────


def layer_of(form: str, weight: torch.Tensor, bias: torch.Tensor | None = None) -> QuantizedLinear:
    bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
    return LAYERS[form](weight, bias, False, torch.zeros(16, dtype=torch.int16))


@pytest.mark.parametrize("shape", [(64, 128), (64, 96), (33, 48), (5, 7), (1, 1), (192, 64)])
@every_form
def test_a_layer_is_the_product_with_the_unpacked_weight(form, shape):
    """Whatever the width: rows that are no multiple of a block of 64, and an odd number of weights."""
    torch.manual_seed(0)
    weight, bias = torch.randn(shape), torch.randn(shape[0])
    layer = layer_of(form, weight, bias)
    expected = by_bitsandbytes(layer)
    assert torch.equal(layer.dequantize(), expected) or form == "int8"
    torch.testing.assert_close(layer.dequantize(), expected, rtol=1e-6, atol=1e-7)
    assert (layer.dequantize() - weight).norm() / weight.norm() < {"nf4": 0.12, "int8": 0.01}[form]
    x = torch.randn(2, 3, shape[1], requires_grad=True)
    y = layer(x)
    torch.testing.assert_close(y, x @ expected.T + bias, rtol=1e-5, atol=1e-5)
    given = torch.randn_like(y)
    y.backward(given)
    torch.testing.assert_close(x.grad, given @ expected, rtol=1e-5, atol=1e-5)


def test_int8_packs_as_bitsandbytes_does():
    weight = torch.randn(40, 96).half()
    values, largest, _ = reference.int8_vectorwise_quant(weight)
    layer = layer_of("int8", weight)
    torch.testing.assert_close(layer.scale * 127, largest)
    assert (layer.values.int() - values.int()).abs().max() <= 1  # halves may be rounded either way
    assert (layer.values != values).float().mean() < 0.01


def test_nf4_packs_as_bitsandbytes_does():
    weight = torch.randn(40, 128)
    expected = reference.dequantize_4bit(*reference.quantize_4bit(weight, quant_type="nf4", compress_statistics=True))
    assert torch.equal(layer_of("nf4", weight).dequantize(), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [1, 5])
def test_the_product_by_bitsandbytes_is_that_of_the_unpacked_weight(dtype, tokens):
    """On a GPU it computes without W; elsewhere it unpacks W, too."""
    layer, x = layer_of("nf4", torch.randn(40, 128).to(dtype)), torch.randn(2, tokens, 128).to(dtype)
    torch.testing.assert_close(layer.packed_product(x), layer.product(x))


@every_form
def test_a_base_in_double_precision_is_packed_as_in_single(form):
    weight = torch.randn(40, 128)
    double = layer_of(form, weight.double())
    assert double.dequantize().dtype == torch.float64
    torch.testing.assert_close(double.dequantize().float(), layer_of(form, weight).dequantize())


def test_few_rows_need_not_be_contiguous():
    layer, x = layer_of("int8", torch.randn(64, 96).bfloat16()), torch.randn(96, 3).bfloat16()
    torch.testing.assert_close(layer(x.T), layer(x.T.contiguous()))


def test_a_linear_layer_of_bitsandbytes_is_refused_also_before_its_weight_is_packed():
    from bitsandbytes.nn import Linear4bit

    base = tiny("llama")
    base.model.layers[0].self_attn.q_proj = Linear4bit(64, 64, bias=False)
    with pytest.raises(halka.HalkaError, match="the base holds a Linear4bit of another library"):
        halka.adapt(base)


@every_form
def test_large_activations_and_small_gradients_have_room_in_fp16(form):
    """Whole numbers of up to 127 would overflow 65504 before the scale, and a gradient times it be nothing."""
    torch.manual_seed(0)
    layer = layer_of(form, 0.02 * torch.randn(48, 128).half())
    x = (200 * torch.randn(2, 128)).half().requires_grad_()
    given = (1e-5 * torch.randn(2, 48)).half()
    y = layer(x)
    y.backward(given)
    weight = by_bitsandbytes(layer)
    close(y, x.float() @ weight.T)
    expected = given.float() @ weight
    assert (x.grad.float() - expected).norm() < 0.1 * expected.norm()


@every_form
def test_a_base_with_large_activations_in_fp16(form):
    plain = tiny("llama", torch.float16)
    for layer in plain.model.layers:
        layer.post_attention_layernorm.weight.data.fill_(300)
    base = copy.deepcopy(plain)
    quantise(base, form)
    with torch.no_grad():
        found, expected = base(ids()).logits.float(), plain(ids()).logits.float()
    assert expected.isfinite().all()
    assert (found - expected).norm() < {"nf4": 0.5, "int8": 0.1}[form] * expected.norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@every_form
def test_a_cast_changes_what_a_packed_base_computes_in_and_not_what_it_keeps(form, dtype):
    base = packed(form)
    layer = next(each for each in base.modules() if isinstance(each, QuantizedLinear))
    kept, x = copy.deepcopy(dict(layer.named_buffers())), torch.randn(3, layer.in_features)
    with torch.no_grad():
        expected, y = base(ids()).logits, layer(x)
        found = base.to(dtype)(ids()).logits
    assert (layer.dtype, layer.dequantize().dtype, found.dtype) == (dtype, dtype, dtype)
    assert (found.float() - expected).norm() < 0.05 * expected.norm()
    assert all(each.dtype == kept[name].dtype for name, each in layer.named_buffers())
    assert all(torch.equal(each, kept[name]) for name, each in layer.named_buffers())
    with torch.no_grad():
        assert torch.equal(base.float().get_submodule("model.layers.0.self_attn.q_proj")(x), y)
    assert {each.device.type for each in base.to("meta").buffers()} == {"meta"}


@pytest.mark.parametrize("rows", [1, 3, 8, 9])
@pytest.mark.parametrize("shape", [(64, 96), (96, 64), (33, 47)])
def test_few_rows_by_torchs_own_product_equal_many(shape, rows):
    torch.manual_seed(0)
    layer = layer_of("int8", torch.randn(shape, dtype=torch.bfloat16))
    x = torch.randn(1, rows, shape[1]).bfloat16()
    slow = x.float() @ by_bitsandbytes(layer).T
    close(layer(x), slow, within=0.03)
    assert layer(x).dtype == torch.bfloat16
    assert layer(x[:, :0]).shape == (1, 0, shape[0])


@every_form
def test_rows_of_nothing_stay_nothing(form):
    weight = torch.randn(4, 64)
    weight[2] = 0
    found = layer_of(form, weight).dequantize()
    assert found.isfinite().all()
    assert found[2].abs().max() < 0.05  # a scale of a scale is not exact


# ── whole bases ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("architecture", [*CONFIGS, *ENCODERS, *SEQ2SEQ, *UNEVEN])
@every_form
def test_a_base_computes_as_its_slow_twin(form, architecture):
    base = packed(form, architecture)
    model, slow = halka.adapt(base), halka.adapt(twin(base))
    for each in (model, slow):
        each.add("a", halka.LoRA(rank=4))
        disturb(each, "a")
        with each.use("a"):
            each.base(ids(), labels=ids()).loss.backward()
    with torch.no_grad(), model.use("a"), slow.use("a"):
        found, expected = (each.base(ids(), labels=ids()).logits for each in (model, slow))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    for one, two in zip(model.parameters("a"), slow.parameters("a"), strict=True):
        torch.testing.assert_close(one.grad, two.grad, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "phi3"])
@every_form
def test_it_is_the_same_base_in_fewer_bytes(form, architecture):
    plain, base = tiny(architecture, torch.bfloat16), tiny(architecture, torch.bfloat16)
    quantise(base, form)
    assert (quantization_of(plain), quantization_of(base)) == (None, form)
    assert fingerprint(base) == fingerprint(plain)
    assert parameter_count(base) == parameter_count(plain) == sum(parameter.numel() for parameter in plain.parameters())
    layers = [layer for layer in base.modules() if isinstance(layer, QuantizedLinear)]
    before = sum(2 * layer.in_features * layer.out_features for layer in layers)
    saved = bytes_of(plain) - bytes_of(base)
    assert saved > 0.3 * before
    head, embedding = base.get_output_embeddings(), base.get_input_embeddings()
    tied = plain.get_output_embeddings().weight is plain.get_input_embeddings().weight
    assert (head.weight is embedding.weight) == tied
    with pytest.raises(ValueError, match=f"quantised to {form} already"):
        quantise(base, "int8")


@pytest.mark.parametrize(("form", "most"), [("nf4", 0.27), ("int8", 0.51)])
def test_bytes_of_a_layer_as_large_as_real_ones(form, most):
    layer = layer_of(form, torch.randn(576, 576).bfloat16())
    kept = sum(tensor.numel() * tensor.element_size() for tensor in layer.buffers())
    assert kept / (2 * 576 * 576) < most


def test_what_cannot_be_packed_is_refused_by_name(monkeypatch):
    with pytest.raises(ValueError, match=r"quantize 'int4' is none of nf4, int8"):
        quantise(tiny(), "int4")
    monkeypatch.setitem(sys.modules, "bitsandbytes.functional", None)
    with pytest.raises(ValueError, match=r"nf4 needs bitsandbytes .*pip install 'halka\[quantised\]'"):
        quantise(tiny(), "nf4")
    quantise(tiny(), "int8")
    foreign = tiny()
    foreign.model.layers[0].mlp.up_proj.weight = nn.Parameter(torch.zeros(8, 1, dtype=torch.uint8), False)
    foreign_fp8, gptq = tiny(), tiny()
    foreign_fp8.model.layers[0].mlp.up_proj.weight.data = torch.zeros(96, 64).to(torch.float8_e4m3fn)
    del gptq.model.layers[0].mlp.up_proj.weight
    for base in (foreign, foreign_fp8, gptq):
        with pytest.raises(ValueError, match=r"of another library, .*: give the one in full precision"):
            halka.adapt(base)


# ── every method ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.filterwarnings("ignore:<class 'torch.autograd.function.Function'> should not be instantiated")  # its own
@every_form
def test_torch_compile_agrees(form):
    layer = layer_of(form, torch.randn(64, 96), torch.randn(64))
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    found = []
    for each in (layer, compiled):
        x = torch.randn(2, 3, 96, generator=torch.Generator().manual_seed(0), requires_grad=True)
        y = each(x)
        y.square().sum().backward()
        found.append((y.detach(), x.grad))
    torch.testing.assert_close(found[1], found[0])
    torch.compiler.reset()


@every_form
def test_what_would_train_or_merge_packed_weights_is_refused(form):
    model = adapted(form, halka.LoRA(rank=4))
    before = weights_of(model.base)
    with pytest.raises(ValueError, match=f"full: the base is quantised to {form} and cannot be trained"):
        model.add("full", halka.Full())
    whole = halka.Modules(("model.layers.0.mlp",))
    with pytest.raises(ValueError, match=f"modules: model.layers.0.mlp is quantised to {form} and cannot be trained"):
        model.add("whole", whole)
    with pytest.raises(
        ValueError, match=f"q_proj is quantised to {form}: .*not mergeable. Use the adapter beside the base"
    ):
        model.merge("a")
    assert (model.merged, list(model.adapters)) == (None, ["a"])
    assert has_weights(model.base, before)


@every_form
def test_dora_has_the_norms_of_the_weights_that_count(form):
    model = halka.adapt(packed(form))
    adapter = model.add("a", halka.DoRA(rank=4))
    for path, part in adapter.parts.items():
        norms = model.base.get_submodule(path).dequantize().norm(dim=1)
        torch.testing.assert_close(part.state_dict()["magnitude"], norms)


# ── folders, training, evaluation ───────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A base's folder, and a task's."""
    folder = tmp_path_factory.mktemp("made")
    tokenizer = chatml_tokenizer()
    tiny(vocab_size=len(tokenizer), max_position_embeddings=512, eos_token_id=tokenizer.eos_token_id).save_pretrained(
        folder / "base"
    )
    tokenizer.save_pretrained(folder / "base")
    rows = [{"prompt": f"What is {i} + 1?", "completion": f"It is {i + 1}."} for i in range(8)]
    for split in ("train", "validation", "test"):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {split: f"{split}.jsonl" for split in ("train", "validation", "test")}
    (folder / "task.yaml").write_text(yaml.safe_dump({**task, "metrics": "exact_match", "max_new_tokens": 3}))
    return folder


def loaded(made, form: str | None, dtype: str = "float32") -> AdaptedModel:
    return halka.adapt(*halka.load_base(made / "base", dtype=dtype, quantize=form))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@every_form
def test_a_folder_loads_packed(made, form, dtype):
    base, _ = halka.load_base(made / "base", dtype=dtype, quantize=form)
    plain, _ = halka.load_base(made / "base", dtype=dtype)
    assert (quantization_of(base), fingerprint(base)) == (form, fingerprint(plain))
    assert base.dtype == getattr(torch, dtype)
    assert not base.training
    with torch.no_grad():
        found, expected = base(ids()).logits, plain(ids()).logits.float()
    assert found.dtype == base.dtype
    assert (found.float() - expected).norm() / expected.norm() < {"nf4": 0.2, "int8": 0.05}[form]
    with pytest.raises(ValueError, match="quantize 'int3' is none of nf4, int8"):
        halka.load_base(made / "base", quantize="int3")


@every_form
def test_an_adapter_goes_from_form_to_form_with_a_word(made, form, tmp_path, recwarn):
    model = loaded(made, None)
    model.add("a", halka.LoRA(rank=4))
    disturb(model, "a")
    halka.save(model, "a", tmp_path / "plain")
    halka.load(model, tmp_path / "plain", name="again")
    assert not recwarn
    other = loaded(made, form)
    with pytest.warns(UserWarning, match=f"trained on this base in full precision, which is quantised to {form} here"):
        halka.load(other, tmp_path / "plain")
    assert all(torch.equal(*pair) for pair in zip(model.parameters("a"), other.parameters("plain"), strict=True))
    halka.save(other, "plain", tmp_path / "packed")
    assert json.loads((tmp_path / "packed" / "halka.json").read_text())["base"]["quantize"] == form
    halka.load(other, tmp_path / "packed")
    with pytest.warns(UserWarning, match=f"trained on this base quantised to {form}, which is in full precision here"):
        halka.load(model, tmp_path / "packed")
    assert len(recwarn) == 0


@pytest.mark.filterwarnings(
    "ignore:.* accepted answers are longer", "ignore:the training examples have .* of validation"
)
@every_form
def test_training_evaluation_a_store_and_a_pool(made, form, tmp_path):
    from halka.data.task import load_task

    model, task = loaded(made, form, "bfloat16"), load_task(str(made / "task.yaml"))
    before = weights_of(model.base)
    config = halka.TrainConfig(steps=3, batch_size=4, lr=1e-2, save_every=None, checkpointing=True)
    names = {"lora": halka.LoRA(rank=4), "prefix": halka.Prefix(length=3), "bottleneck": halka.Bottleneck(width=4)}
    for name, method in names.items():
        model.add(name, method)
    told = list(train_many(model, [Job(name, task.train, config, task.validation) for name in names]))
    assert all(step.loss < 20 for each in told for step in each.values())
    steps = list(halka.train(model, "lora", task.train, config))
    assert steps[-1].loss < steps[0].loss
    found = evaluate(model, ["lora", None, "prefix", "bottleneck"] * 2, task.test, task.metrics, max_new_tokens=3)
    assert found.scores["exact_match"].n == len(task.test)
    assert len(dict(iter_answers(model, "lora", task.test, max_new_tokens=3))) == len(task.test)
    assert perplexity(model, None, "What is the capital of France? " * 20) > 1
    store = halka.AdapterStore(tmp_path / "store")
    for name in names:
        store.save(model, name)
        model.remove(name)
    halka.AdapterPool(model, store, 10**6)
    with torch.no_grad(), model.use(["lora", "prefix", None]):
        model.base(ids(), use_cache=False)
    assert has_weights(model.base, before)


@every_form
def test_a_run_goes_on_only_on_the_form_that_it_began_on(made, form, tmp_path):
    from halka.data.task import load_task

    task, config = load_task(str(made / "task.yaml")), halka.TrainConfig(steps=4, batch_size=4, save_every=1)
    for begun, other in ((form, None), (None, form)):
        folder = tmp_path / str(begun)
        model = loaded(made, begun)
        model.add("a", halka.LoRA(rank=2))
        for step in halka.train(model, "a", task.train, config, folder=folder):
            if step.step == 2:
                break
        second = loaded(made, other)
        second.add("a", halka.LoRA(rank=2))
        with pytest.raises(ValueError, match=f"quantize was {begun!r}, is {other!r}"):
            list(halka.train(second, "a", task.train, config, folder=folder))


@pytest.mark.filterwarnings("ignore:.* accepted answers are longer")
def test_a_measured_run(made, tmp_path):
    from halka.studies.measure import measure

    short = {"steps": 2, "batch_size": 4, "lr": 1e-2}
    plain, *others = (
        measure(a_run(made, quantize=form, train=short), tmp_path / str(form)) for form in (None, *LAYERS)
    )
    assert plain["quantize"] is None
    for form, found in zip(LAYERS, others, strict=True):
        assert found["quantize"] == form
        assert found["parameters"]["total"] == plain["parameters"]["total"]
        assert found["memory"]["weights"] < 0.7 * plain["memory"]["weights"]
        assert found["memory"]["predicted"]["weights"] == found["memory"]["weights"]
        assert found["scores"]["exact_match"]["n"] == 8


def test_an_experiment_names_forms_and_old_runs_keep_their_names(made, tmp_path):
    from halka.studies.compare import ExperimentPlan
    from halka.studies.experiment import read_experiment

    def keys(**changes) -> list[str]:
        given = {"name": "e", "base": str(made / "base"), "task": str(made / "task.yaml"), "seeds": [0], **changes}
        (tmp_path / "e.yaml").write_text(yaml.safe_dump({"methods": [{"method": "lora"}], **given}))
        groups, _ = ExperimentPlan(read_experiment(tmp_path / "e.yaml")).due({})
        return [run.key for runs in groups for run in runs]

    (plain,), (whole,) = keys(), keys(quantize="nf4")
    own = keys(methods=[{"method": "lora"}, {"method": "lora", "quantize": "nf4"}])
    assert own[0] == plain
    assert own[1].startswith("lora-nf4-")
    assert own[1].rpartition("-")[2] == whole.rpartition("-")[2] != plain.rpartition("-")[2]
    with pytest.raises(ValueError, match=r"methods\.0: quantize: Input should be 'nf4' or 'int8'"):
        keys(methods=[{"method": "lora", "quantize": "int3"}])


@every_form
def test_every_command_that_opens_a_base(made, form, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shared = f"--base {made / 'base'} --dtype float32"
    task = f"--task {made / 'task.yaml'}"
    command(f"train {shared} {task} --quantize {form} --steps 2 --batch-size 4 --rank 2 -o run")
    assert yaml.safe_load((tmp_path / "run" / "run.yaml").read_text())["quantize"] == form
    for name in (f"evaluate {task}", "generate Yes? --max-new-tokens 2"):
        same = command(f"{name} {shared} --quantize {form} --adapter run/adapter --json")
        assert "trained on" not in same.stderr
        other = command(f"{name} {shared} --adapter run/adapter --json")
        assert f"trained on this base quantised to {form}" in other.stderr
    assert f"quantised to {form}" in command("adapters show run/adapter").stdout
    refused = command(f"merge run/adapter {shared} --quantize {form} --into whole", code=2)
    assert f"quantised to {form}" in refused.stderr
    command(f"merge run/adapter {shared} --quantize {form} --as peft --into alone")
    wrong = command(f"generate Yes? {shared} --quantize int3", code=2)
    assert "quantize 'int3' is none of nf4, int8" in wrong.stderr
