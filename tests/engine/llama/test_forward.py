"""The engine's own step for Llama's kind computes what transformers' pass does, and leaves the base as it was."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

import halka
from engine_for_tests import NoTwin, model_of
from halka.core import AdaptedModel, Adapter, ModulePart, Part, Target
from halka.engine.forward import TransformersForward
from halka.engine.llama.forward import LlamaForward, unsupported
from halka.engine.llama.kernels import TOKENS
from halka.engine.llama.weights import LlamaWeights
from halka.methods.lora import LoRAPart
from halka.models.fingerprint import fingerprint
from halka.models.quantised import quantise
from halka.models.quantised.int8 import Int8Linear
from halka.util.errors import HalkaError
from halka.util.huge_pages import PAGE
from lines_for_tests import Lines
from tiny import tiny

BASES = {
    "llama": {},
    "qwen2": {},
    "qwen3": {},
    "mistral": {"sliding_window": 5},
    "qwen2, some windows": {
        "use_sliding_window": True,
        "sliding_window": 6,
        "layer_types": ["full_attention", "sliding_attention"],
    },
    "llama, biases, its own head width": {"attention_bias": True, "mlp_bias": True, "head_dim": 32},
    "llama, in huge pages": {"intermediate_size": 8192, "num_hidden_layers": 1},
    "llama, int8": {},
    "qwen2, int8": {},
}


@dataclass(frozen=True)
class Doubled:
    """A method of a user's own, which cannot be stacked: y + x · w, at the layers that keep the width."""

    name: ClassVar[str] = "doubled"
    paper: ClassVar[str] = ""
    lr: ClassVar[float] = 1e-3

    def roles(self) -> tuple[str, ...]:
        return ("attn.o", "attn")

    def build(self, target: Target) -> Part | None:
        return DoubledPart(target.d_out)


class DoubledPart(ModulePart):
    def __init__(self, width: int):
        super().__init__()
        self.w = torch.nn.Parameter(torch.ones(width))

    def edit_output(self, x: Tensor, y: Tensor, *tensors: Tensor) -> Tensor:
        return y + x.flip(-1) * self.w.to(y.dtype)

    def stack_key(self) -> None:
        return None


METHODS = {
    "lora": halka.LoRA(rank=4),
    "lora, ragged": halka.LoRA(rank=3, alpha=5, targets=("attn.qv", "mlp.down")),
    "ia3": halka.IA3(),
    "ia3, at the output": halka.IA3(targets=("attn.o", "mlp.up"), feedforward=()),
    "bottleneck": halka.Bottleneck(width=8),
    "bottleneck, input": halka.Bottleneck(width=8, reads="input"),
    "bottleneck, residual": halka.Bottleneck(width=8, reads="residual", activation="silu"),
    "bottleneck, learned scales": halka.Bottleneck(widths=(0, 5), activation="gelu", scale=1.5, scaling="channel"),
    "bottleneck, sum": halka.Bottleneck(width=8, reads="sum", targets=("mlp",)),
    "normed bottleneck": halka.NormedBottleneck(width=8, reads="sum", keeps="sum", norms=("before", "outer")),
    "bitfit": halka.BitFit(),
    "dora": halka.DoRA(rank=4),
    "lora with bias": halka.LoRABias(rank=4),
    "joint, at one sublayer": halka.Joint(
        (
            halka.IA3(targets=("attn.o", "mlp.down"), feedforward=("attn.o",)),
            halka.Bottleneck(width=4),
            halka.Bottleneck(width=3, reads="residual"),
        )
    ),
    "joint": halka.Joint((halka.LoRA(rank=2, targets=("mlp.linear",)), halka.Bottleneck(width=4, targets=("attn",)))),
    "a user's own": Doubled(),
}
ELSEWHERE = {  # where the step does not pass through
    "head": halka.LoRA(rank=4, targets=("head", "attn.q")),
    "embedding": halka.LoRA(rank=4, targets=("embedding",)),
    "input of q": halka.IA3(targets=("attn.q",), feedforward=("attn.q",)),
    "gated": halka.LlamaAdapter(length=3),
}


def adapted(name: str = "llama", dtype: torch.dtype = torch.float32, **methods: object) -> AdaptedModel:
    """A tiny model of BASES whose every value, biases and norms included, is random, with adapters of these methods."""
    base = tiny(name.partition(",")[0], dtype, **BASES[name])
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for key, parameter in base.named_parameters():
            if "norm" in key or "bias" in key:
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    if name.endswith("int8"):
        quantise(base, "int8")
    model = halka.adapt(base)
    for adapter_name, method in methods.items():
        adapter = model.add(adapter_name, method)
        with torch.no_grad():
            for parameter in adapter.parameters():
                parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model


def one_row(lines: Lines, names: Sequence[str | None]) -> list[Tensor]:
    text = lines.text(names[0])
    return [lines({text: count}) for count in (1, 7, *[1] * 12)]


def rows(lines: Lines, names: Sequence[str | None]) -> list[Tensor]:
    texts = [lines.text(name) for name in names]
    return [
        lines({text: 3 + index for index, text in enumerate(texts)}),
        *(lines(dict.fromkeys(texts, 1)) for _ in range(9)),
    ]


def rows_of_one(lines: Lines, names: Sequence[str | None]) -> list[Tensor]:
    return rows(lines, [names[0]] * 3)


def beside_a_chunk(lines: Lines, names: Sequence[str | None]) -> list[Tensor]:
    texts = [lines.text(name) for name in names]
    first = lines(dict.fromkeys(texts, 2))
    chunk, other = lines.text(names[0]), lines.text(names[-1])
    mixed = [lines({texts[0]: 1, chunk: 9, texts[1]: 1, other: 40, texts[2]: 1}) for _ in range(2)]
    return [
        first,
        *mixed,
        lines({chunk: 1, texts[2]: 1}),
        lines({chunk: 5}, last=()),
        lines({chunk: 1, other: 6}, last=(0,)),
        lines({lines.text(names[0]): TOKENS, texts[1]: 1, lines.text(names[-1]): TOKENS + 1}),
    ]


def blocks(lines: Lines, names: Sequence[str | None]) -> list[Tensor]:
    """Behind virtual tokens, and two texts behind the blocks of a third."""
    first, virtual = lines.text(names[0]), lines.text(names[1], virtual=5)
    results = [lines({first: 20, virtual: 3})]
    one, two = lines.text(names[0], behind=first), lines.text(names[0], behind=first)
    results.append(lines({one: 3, virtual: 1, two: 2}))
    results += [lines({first: 1, one: 1, two: 1, virtual: 1}) for _ in range(8)]
    return [*results, *(lines({virtual: 1}) for _ in range(8)), lines({two: 1})]


SITUATIONS: list[Callable[[Lines, Sequence[str | None]], list[Tensor]]] = [
    one_row,
    rows,
    rows_of_one,
    beside_a_chunk,
    blocks,
]


def assert_equals_the_twin(model: AdaptedModel, names: Sequence[str | None], situation: Callable, within: float = 1e-4):
    twin = situation(Lines(model, TransformersForward(model)), names)
    forward = LlamaForward(model)
    fast = situation(Lines(model, forward), names)
    forward.close()
    for a, b in zip(fast, twin, strict=True):
        assert a.dtype == torch.float32
        assert a.shape == b.shape
        if a.numel():
            assert (a - b).abs().max() <= within * b.abs().max()


@pytest.mark.parametrize("situation", SITUATIONS, ids=lambda it: it.__name__)
@pytest.mark.parametrize("base", BASES)
def test_every_base(base, situation):
    model = adapted(base, a=halka.LoRA(rank=4), b=halka.LoRA(rank=8))
    assert unsupported(model) is None
    assert_equals_the_twin(model, ("a", None, "b"), situation)


@pytest.mark.parametrize("situation", SITUATIONS, ids=lambda it: it.__name__)
@pytest.mark.parametrize("method", METHODS)
def test_every_method(method, situation):
    model = adapted(a=METHODS[method], b=METHODS[method], c=halka.LoRA(rank=5, alpha=10), d=halka.IA3())
    for names in (("a", None, "b"), ("c", "a", "d")):
        assert_equals_the_twin(model, names, situation)


def mixed(lines: Lines, names: Sequence[str | None]) -> list[Tensor]:
    """A row of each name, some behind virtual tokens: each reads its prompt, all decode, some beside prompts."""
    texts = [lines.text(name, virtual=index % 3 and 4 + index % 2) for index, name in enumerate(names)]
    results = [lines({text: 1 + 3 * (index % 3) for index, text in enumerate(texts)})]
    results += [lines(dict.fromkeys(texts, count)) for count in (1, 1, 2, 6, 1)]
    return [*results, *(lines({text: 1 + 4 * (index % 5 == 0) for index, text in enumerate(texts)}) for _ in range(2))]


@pytest.mark.parametrize("base", ["llama", "qwen3", "qwen2, int8"])
def test_every_method_in_one_line(base):
    """Ranks, widths and placements of all kinds side by side, those that no kernel computes among them."""
    model = adapted(base, **METHODS)
    names = [*METHODS, None, *reversed(METHODS)]
    assert_equals_the_twin(model, names[: len(METHODS) + 2], mixed)
    assert_equals_the_twin(model, names[len(METHODS) :], mixed)


@pytest.mark.parametrize("method", ELSEWHERE)
def test_what_acts_elsewhere_is_computed_by_the_twin(method):
    model = adapted(a=ELSEWHERE[method], b=halka.LoRA(rank=4))
    assert_equals_the_twin(model, ("a", None, "b"), rows)


@pytest.mark.parametrize("situation", SITUATIONS, ids=lambda it: it.__name__)
@pytest.mark.parametrize("base", ["llama", "qwen3", "qwen2, some windows", "qwen2, int8"])
def test_bf16_is_no_further_from_fp32_than_the_twin(base, situation):
    model = adapted(base, torch.bfloat16, a=halka.LoRA(rank=4), b=halka.Bottleneck(width=8))
    exact = adapted(base, a=halka.LoRA(rank=4), b=halka.Bottleneck(width=8))
    exact.base.load_state_dict(model.base.state_dict())
    with torch.no_grad():
        for parameter in (parameter for own in (model, exact) for name in "ab" for parameter in own.parameters(name)):
            parameter.copy_((parameter / 4).bfloat16())  # large ones make noise of every difference
    forwards = LlamaForward(model), TransformersForward(model), TransformersForward(exact)
    fast, twin, expected = (
        torch.cat(situation(Lines(own, forward), ("a", None, "b")))
        for own, forward in zip((model, model, exact), forwards, strict=True)
    )
    assert (fast - expected).norm() <= 1.1 * (twin - expected).norm()
    assert (fast - expected).norm() <= 0.1 * expected.norm()
    forwards[0].close()


def test_full_copies_and_merged_adapters_are_computed_by_the_twin():
    model = adapted(a=halka.LoRA(rank=4), full=halka.Full())
    assert_equals_the_twin(model, ["full"], one_row)
    model.merge("a")
    assert_equals_the_twin(model, ["a"], one_row)


# ── changes ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_changes_of_adapters_are_seen():
    """An optimiser's step, another adapter of the same name, one that is merged meanwhile and taken out again."""
    model = adapted(a=halka.LoRA(rank=4), b=halka.LoRA(rank=4))
    twin, forward = TransformersForward(model), LlamaForward(model)

    def assert_alike():
        fast, slow = (rows(Lines(model, it), ("a", "b")) for it in (forward, twin))
        for a, b in zip(fast, slow, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
        return fast[-1]

    before = assert_alike()
    optimizer = torch.optim.SGD(model.parameters("a"), lr=1.0)
    for parameter in model.parameters("a"):
        parameter.grad = torch.full_like(parameter, 0.1)
    optimizer.step()
    stepped = assert_alike()
    assert not torch.allclose(before, stepped)
    model.remove("b")
    model.add("b", halka.IA3(), seed=1)
    forward.forget()
    assert not torch.allclose(stepped, assert_alike())
    model.merge("a")
    merged = one_row(Lines(model, forward), ("a",))
    model.unmerge()
    beside = one_row(Lines(model, forward), ("a",))
    torch.testing.assert_close(merged, beside, rtol=1e-3, atol=1e-4)
    forward.close()


def assigned(adapter: Adapter) -> None:
    adapter.load_state_dict({key: 1.5 * value for key, value in adapter.state_dict().items()}, assign=True)


def replaced(adapter: Adapter) -> None:
    for part in adapter.parts.values():
        assert isinstance(part, LoRAPart)
        part.lora_B = torch.nn.Parameter(part.lora_B.detach() * 1.5)


def rescaled(adapter: Adapter) -> None:
    for part in adapter.parts.values():
        assert isinstance(part, LoRAPart)
        part.scale *= 1.5


@pytest.mark.parametrize("change", [assigned, replaced, rescaled], ids=lambda it: it.__name__)
def test_parameters_and_scales_that_are_replaced_are_seen_each_time(change):
    """What is assigned, at once; what is set by hand, when the names of the rows change."""
    model = adapted(a=halka.LoRA(rank=4, alpha=8), b=halka.IA3())
    forward, names = LlamaForward(model), ("a", "b")
    for _ in range(4):
        fast, slow = (rows(Lines(model, it), names) for it in (forward, TransformersForward(model)))
        for a, b in zip(fast, slow, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
        change(model.adapter("a"))
        names = names if change is assigned else names[::-1]
    forward.close()


def test_dropout_is_switched_by_train_and_eval():
    model = adapted(a=halka.LoRA(rank=4, dropout=0.5))
    forward = LlamaForward(model)
    adapter = model.adapter("a")
    adapter.train(False)
    still = rows(Lines(model, forward), ("a", "a"))[0]
    adapter.train()
    dropped = [rows(Lines(model, forward), names)[0][:2] for names in (("a", None), ("a", "a"))]
    assert not any(torch.allclose(own[0], still[0], atol=1e-3) for own in dropped)
    adapter.train(False)
    rows(Lines(model, forward), ("a", None))
    assert torch.equal(rows(Lines(model, forward), ("a", "a"))[0], still)
    forward.close()


def test_after_close_no_matrix_is_held_and_the_twin_computes():
    model = adapted(a=halka.LoRA(rank=4))
    forward = LlamaForward(model)
    assert forward._step is not None
    matrix = weakref.ref(forward._step.weights.layers[0].products["qkv"].weight)
    one_row(Lines(model, forward), ("a",))
    forward.close()
    gc.collect()
    assert matrix() is None
    assert not forward.intact
    fast, slow = (one_row(Lines(model, it), ("a",)) for it in (forward, TransformersForward(model)))
    assert all(torch.equal(a, b) for a, b in zip(fast, slow, strict=True))
    forward.close()


def test_an_engine_that_is_refused_leaves_the_weights_where_they_were():
    model = model_of(families={"a": halka.LoRA(rank=4)})

    def held() -> list[int]:
        return [weights.untyped_storage().nbytes() for weights in model.base.parameters()]

    before = held()
    with pytest.raises(HalkaError, match="two blocks"):
        halka.Engine(model, memory=1)
    assert held() == before
    with halka.Engine(model):
        assert held() != before
    assert held() == before


def test_a_base_that_is_moved_meanwhile_is_computed_by_the_twin():
    model = adapted(a=halka.LoRA(rank=4))
    forward = LlamaForward(model)
    model.to(torch.bfloat16).to(torch.float32)
    fast, slow = (one_row(Lines(model, it), ("a",)) for it in (forward, TransformersForward(model)))
    assert all(torch.equal(a, b) for a, b in zip(fast, slow, strict=True))
    forward.close()


# ── the base ────────────────────────────────────────────────────────────────────────────────────────────────────────


def storages(base) -> list[int]:
    return [
        parameter.untyped_storage().nbytes() - parameter.numel() * parameter.itemsize for parameter in base.parameters()
    ]


@pytest.mark.parametrize("name", ["llama", "qwen2", "llama, in huge pages"])
def test_the_base_stays_what_it_was(name, tmp_path):
    model = adapted(name, a=halka.LoRA(rank=4))
    base = model.base
    before = {key: tensor.clone() for key, tensor in base.state_dict().items()}
    objects, prints = [*base.parameters()], fingerprint(base)
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        logits = base(ids).logits
    forward = LlamaForward(model)
    attention = base.model.layers[0].self_attn
    shares = (
        attention.q_proj.weight.untyped_storage().data_ptr() == attention.v_proj.weight.untyped_storage().data_ptr()
    )
    assert shares
    assert any(storages(base))
    if name == "llama, in huge pages":
        assert attention.q_proj.weight.untyped_storage().nbytes() >= PAGE
    assert all(a is b for a, b in zip(objects, base.parameters(), strict=True))
    assert fingerprint(base) == prints
    with torch.no_grad():
        torch.testing.assert_close(base(ids).logits, logits)
    base.save_pretrained(tmp_path / "meanwhile")
    forward.close()
    assert not any(storages(base))
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "meanwhile")
    for state in (base.state_dict(), again.state_dict()):
        assert state.keys() == before.keys()
        assert all(torch.equal(state[key], tensor) for key, tensor in before.items())
    with torch.no_grad():
        assert torch.equal(base(ids).logits, logits)


def test_one_that_begins_in_inference_mode_leaves_a_base_that_trains():
    model = adapted(a=halka.LoRA(rank=4))
    expected = one_row(Lines(model, TransformersForward(model)), ("a",))
    with torch.inference_mode():
        forward = LlamaForward(model)
    torch.testing.assert_close(one_row(Lines(model, forward), ("a",)), expected)
    for close in (lambda: None, forward.close):
        close()
        assert not any(parameter.is_inference() for parameter in model.base.parameters())
        with model.use("a"):
            model.base(torch.arange(3, 20)[None]).logits.sum().backward()


def test_matrices_are_free_as_soon_as_they_are_undone():
    """Else a base that fills the memory would not fit once more when its engine closes."""
    weights = LlamaWeights(adapted().base)
    matrices = [weakref.ref(product.weight) for layer in weights.layers for product in layer.products.values()]
    weights.undo()
    assert matrices
    assert not any(matrix() is not None for matrix in matrices)


def test_passes_of_one_base_share_its_matrices_until_the_last_is_closed():
    model = adapted(a=halka.LoRA(rank=4))
    expected = one_row(Lines(model, TransformersForward(model)), ("a",))
    first, second = LlamaForward(model), LlamaForward(model)
    assert first._step is not None
    assert second._step is not None
    assert first._step.weights is second._step.weights
    first._twin = second._twin = NoTwin()
    for forward in (first, second, first):
        torch.testing.assert_close(one_row(Lines(model, forward), ("a",)), expected, rtol=1e-4, atol=1e-5)
    first.close()
    assert second.intact
    torch.testing.assert_close(one_row(Lines(model, second), ("a",)), expected, rtol=1e-4, atol=1e-5)
    third = LlamaForward(model)
    assert third.intact
    second.close()
    assert any(storages(model.base))
    del third  # which nobody closes
    gc.collect()
    LlamaForward(model).close()
    assert not any(storages(model.base))


def test_a_pass_of_a_base_that_was_moved_meanwhile_is_not_shared():
    model = adapted(a=halka.LoRA(rank=4))
    first = LlamaForward(model)
    model.to(torch.bfloat16).to(torch.float32)
    expected = one_row(Lines(model, TransformersForward(model)), ("a",))
    second = LlamaForward(model)
    assert second.intact
    for end in (lambda: None, first.close):
        end()
        assert not first.intact
        torch.testing.assert_close(one_row(Lines(model, second), ("a",)), expected, rtol=1e-4, atol=1e-5)
    assert any(storages(model.base))
    second.close()
    assert not any(storages(model.base))


# ── which bases ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "architecture", ["gemma", "gemma2", "gemma3_text", "phi3", "mixtral", "qwen3_moe", "gpt2", "opt", "gpt_neox"]
)
def test_other_kinds_are_named(architecture):
    assert unsupported(halka.adapt(tiny(architecture)))


def test_odd_bases_are_named():
    assert "fp32" in (unsupported(halka.adapt(tiny("llama", torch.float16))) or "")
    assert "SiLU" in (unsupported(halka.adapt(tiny("llama", hidden_act="gelu"))) or "")
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    assert "dynamic" in (unsupported(halka.adapt(tiny("llama", rope_parameters=rope))) or "")
    assert "generate" in (unsupported(halka.adapt(tiny("llama", kind="sequence-classification"))) or "")
    base = tiny("llama")
    layer = base.model.layers[1].mlp
    layer.up_proj = Int8Linear(layer.up_proj.weight.detach(), None, False, torch.empty(0))
    assert "quantised" in (unsupported(halka.adapt(base)) or "")


def test_without_numba_the_reason_is_how_to_install_it():
    code = (
        "import sys; sys.path.insert(0, 'tests'); sys.modules['numba'] = None\n"
        "import halka; from tiny import tiny; from halka.engine.llama.forward import unsupported\n"
        "print(unsupported(halka.adapt(tiny('llama'))))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "halka[engine]" in result.stdout
