"""`AdaptedModel` as a user meets it: its repr, warnings where nothing would happen, moving it, errors."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import halka
from contract import ids
from halka.core import AdaptedModel
from halka.models.fingerprint import fingerprint
from tiny import tiny
from tokenizers_for_tests import chatml_tokenizer


@pytest.fixture
def model() -> AdaptedModel:
    model = halka.adapt(tiny())
    model.add("a", halka.LoRA(rank=2, targets=("attn.q",)))
    return model


def test_repr_shows_base_adapters_and_what_is_in_use(model):
    adapter = model.add("p", halka.Prefix(length=3, start="random"))
    total = sum(parameter.numel() for parameter in model.base.parameters())
    first, a, p = repr(model).splitlines()
    assert first == f"AdaptedModel of LlamaForCausalLM: {total:,} parameters, float32 on cpu"
    count = model.adapter("a").count()
    assert a.startswith("  a: LoRA(rank=2, ")
    assert a.endswith(f", {count:,} trained parameters ({count / total:.2%})")
    with model.use(["p", None]):
        assert repr(model).splitlines()[2] == f"{p}, in use"
    model.merge("a")
    assert repr(model).splitlines()[1] == f"{a}, merged"
    assert repr(adapter).startswith("Adapter(Prefix(length=3, ")
    assert repr(adapter).endswith(f", {adapter.count():,} trained parameters in 1 parts)")
    assert "no adapters yet" in repr(halka.adapt(tiny()))


def test_a_block_that_is_never_entered_warns(model):
    with pytest.warns(UserWarning, match=r"`model.use\('a'\)` did nothing, .*: write `with model.use\('a'\):`"):
        model.use("a")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with model.use("a"):
            pass


def test_the_bare_base_that_generates_outside_of_a_block_warns_once(model):
    generate = lambda: model.base.generate(ids(1, 4), max_new_tokens=2, do_sample=False)  # noqa: E731
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.base(ids())  # a plain forward pass says nothing
        with model.use(None):
            generate()
        with model.use("a"):
            generate()
        model.merge("a")
        generate()
        model.unmerge()
    with pytest.warns(UserWarning, match=r"without any of the model's adapters \(a\): .*`with model.use\('a'\):`"):
        generate()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        generate()
        halka.adapt(tiny()).base.generate(ids(1, 4), max_new_tokens=2, do_sample=False)


def test_a_base_that_another_model_uses_warns_of_nothing(model):
    again = halka.adapt(model.base)
    again.add("b", halka.LoRA(rank=2))
    with warnings.catch_warnings(), again.use("b"):
        warnings.simplefilter("error")
        model.base.generate(ids(1, 4), max_new_tokens=2, do_sample=False)


METHODS = (
    halka.LoRA(rank=2),
    halka.DoRA(rank=2),
    halka.Bottleneck(width=2),
    halka.Prefix(length=2),
    halka.Prompt(length=2),
    halka.Tokens((1, 2)),
    halka.Full(),
)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_parts_go_where_the_base_goes(method):
    model = halka.adapt(tiny())
    adapter = model.add("a", method)
    model.base.to("meta")  # behind the model's back
    with model.use("a"):
        assert {tensor.device.type for tensor in adapter.state_dict().values()} == {"meta"}
    model = halka.adapt(tiny())
    adapter = model.add("a", method)
    assert model.to("meta") is model
    assert {tensor.device.type for tensor in adapter.state_dict().values()} == {"meta"}
    assert model.add("b", halka.LoRA(rank=2)).parameters()[0].device.type == "meta"


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_a_cast_moves_the_base_alone(method):
    model = halka.adapt(tiny())
    adapter = model.add("a", method)
    before = {key: tensor.clone() for key, tensor in adapter.state_dict().items()}
    model.to(torch.bfloat16)
    assert model.base.dtype == torch.bfloat16
    after = adapter.state_dict()
    assert all(after[key].dtype == tensor.dtype and torch.equal(after[key], tensor) for key, tensor in before.items())
    with model.use("a"):
        assert model.base(ids()).logits.dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("arch", ["llama", "t5", "glm4_moe"])
def test_a_base_that_is_cast_computes_as_one_that_is_loaded_so(arch, dtype, tmp_path):
    """Rotary frequencies stay in fp32 then, and so does what T5 has in fp32 beside fp16."""
    kind = "seq2seq-lm" if arch == "t5" else "causal-lm"
    tokenizer = chatml_tokenizer()
    base = tiny(arch, kind=kind, vocab_size=len(tokenizer))
    with torch.no_grad():
        for weight in base.parameters():
            weight.mul_(1e-4)  # small ones, of which fp16 keeps fewer bits
    for saved in (base, tokenizer):
        saved.save_pretrained(tmp_path)
    loaded, cast = (halka.load_base(tmp_path, kind=kind, dtype=each)[0] for each in (dtype, torch.float32))
    before, by_way = fingerprint(cast), copy.deepcopy(cast)
    halka.adapt(cast).to(dtype)
    assert fingerprint(cast) == fingerprint(loaded) == before
    assert fingerprint(halka.adapt(by_way).to(torch.bfloat16).to(dtype).base) == before
    expected = {**dict(loaded.named_parameters()), **dict(loaded.named_buffers())}
    tensors = {**dict(cast.named_parameters()), **dict(cast.named_buffers())}
    assert {name: tensor.dtype for name, tensor in tensors.items()} == {
        name: tensor.dtype for name, tensor in expected.items()
    }
    assert all(torch.equal(tensor, expected[name]) for name, tensor in tensors.items())


def test_a_base_that_is_cast_while_it_holds_another_is_of_one_precision_afterwards(model):
    model.merge("a")
    model.base.to(torch.bfloat16)
    model.unmerge()
    assert {parameter.dtype for parameter in model.base.parameters()} == {torch.bfloat16}
    model.base(ids())


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_parts_are_fp32_whatever_torchs_default_is(method):
    model = halka.adapt(tiny(dtype=torch.bfloat16))
    torch.set_default_dtype(torch.bfloat16)
    try:
        adapter = model.add("a", method)
    finally:
        torch.set_default_dtype(torch.float32)
    assert {tensor.dtype for tensor in adapter.parameters()} == {torch.float32}


class RoomForCasts(TorchDispatchMode):
    """Memory runs out after some casts to fp64."""

    def __init__(self, casts: int):
        super().__init__()
        self.casts = casts

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._to_copy.default and (kwargs or {}).get("dtype") == torch.float64:
            self.casts -= 1
            if self.casts < 0:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        return func(*args, **(kwargs or {}))


def test_moving_that_runs_out_of_memory_leaves_all_as_it_was(model):
    torch.nn.init.ones_(model.parameters("a")[1])
    norm = model.base.get_submodule("model.norm").to(torch.bfloat16)  # of another precision than the rest
    before = {name: tensor.clone() for name, tensor in model.base.state_dict().items()}
    model.merge("a")
    merged = {name: tensor.clone() for name, tensor in model.base.state_dict().items()}
    with RoomForCasts(3), pytest.raises(halka.OutOfMemoryError, match=r"does not fit as torch\.float64: choose a sm"):
        model.to(torch.float64)
    assert model.merged == "a"
    assert norm.weight.dtype == torch.bfloat16
    for values in (merged, before):
        after = model.base.state_dict()
        assert all(after[name].dtype == tensor.dtype and after[name].equal(tensor) for name, tensor in values.items())
        model.unmerge()


def test_moving_waits_for_the_end_of_a_block_and_keeps_what_is_merged(model):
    with model.use("a"), pytest.raises(halka.HalkaError, match="moving needs an idle base"):
        model.to("meta")
    plain = model.base(ids()).logits
    torch.nn.init.ones_(model.parameters("a")[1])
    model.merge("a")
    model.to(torch.float64)
    assert model.merged == "a"
    assert not torch.allclose(model.base(ids()).logits.float(), plain)
    model.unmerge()
    assert torch.allclose(model.base(ids()).logits.float(), plain, atol=1e-5)


@pytest.mark.parametrize("method", ["lora", halka.LoRA, {"r": 8}, None])
def test_what_is_no_method_is_refused(model, method):
    with pytest.raises(halka.HalkaError, match=r"'b' needs a method such as halka.LoRA\(rank=16\), not "):
        model.add("b", method)


def test_an_unknown_adapter_is_an_error_of_its_own(model):
    for call in (model.adapter, model.parameters, model.remove, model.merge, lambda name: model.use(name).__enter__()):
        with pytest.raises(halka.UnknownAdapterError, match=r"no adapter 'nobody' here \(there are: 'a'\)"):
            call("nobody")
