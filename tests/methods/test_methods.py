"""What each method computes, against a plain way to compute the same; and fields that make no sense."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields, is_dataclass
from functools import partial
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import halka
from contract import adapted, disturb, ids
from halka.core import AdaptedModel, Method, ModulePart, Target
from halka.methods import all_methods, method_named
from halka.methods.bottleneck import ACTIVATIONS
from halka.methods.lora import padded
from numbers_for_tests import close
from tiny import tiny
from tokenizers_for_tests import chatml_tokenizer

LORA = halka.LoRA(rank=4)


def logits(model: AdaptedModel, name: str | None = "a") -> Tensor:
    with torch.no_grad(), model.use(name):
        return model.base(ids()).logits


def edited(part: ModulePart, x: Tensor, y: Tensor) -> Tensor:
    return part.edit((x, y), part.tensors(y.dtype))


@contextmanager
def changed(module: nn.Module, change: Callable[[Tensor, Tensor], Tensor]) -> Iterator[None]:
    """The module returns change(x, y), x being what it received; where it returns a tuple, y is the first."""

    def hook(module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> Any:
        x = args[0] if args else kwargs["hidden_states"]
        if isinstance(output, tuple):
            return (change(x, output[0]), *output[1:])
        return change(x, output)

    handle = module.register_forward_hook(hook, with_kwargs=True)
    yield
    handle.remove()


def by_hand(base: nn.Module, changes: dict[str, Callable[[Tensor, Tensor], Tensor]]) -> Tensor:
    """The logits of a base whose modules, by their paths, return something else."""
    with torch.no_grad(), ExitStack() as stack:
        for path, change in changes.items():
            stack.enter_context(changed(base.get_submodule(path), change))
        return base(ids()).logits


# ── fields ──────────────────────────────────────────────────────────────────────────────────────────────────────────

MISTAKES: list[tuple[Callable[[], object], str]] = [
    (lambda: halka.LoRA(rank=0), "lora: rank must be a whole number above 0, not 0"),
    (lambda: halka.LoRA(rank=2.5), "lora: rank must be a whole number, not 2.5"),
    (lambda: halka.LoRA(rank="8"), "lora: rank must be a whole number, not '8'"),
    (lambda: halka.LoRA(rank=True), "lora: rank must be a whole number, not True"),
    (lambda: halka.LoRA(alpha="16"), "lora: alpha must be a number or None, not '16'"),
    (lambda: halka.LoRA(dropout="0.1"), "lora: dropout must be a number, not '0.1'"),
    (
        lambda: halka.LoRA(8, 16, 0.0, ("linear",), "rank", 7),
        r"LoRA\(8, 16, .*, 7\): too many positional arguments: its fields are rank, alpha, dropout, targets, scaling",
    ),
    (lambda: halka.LoRA(alpha=math.nan), "lora: alpha must be a finite number, not nan"),
    *(
        (partial(kind, alpha=0.0), rf"{kind.name}: alpha must be a finite number other than 0, not 0\.0")
        for kind in (halka.LoRA, halka.LoRABias, halka.DoRA)
    ),
    (lambda: halka.DoRA(targets=("mlp",)), "dora: targets are linear layers"),
    (lambda: halka.Prefix(hidden=8, tokens=(1,)), "prefix: the MLP .* starts at random"),
    (lambda: halka.LoRA(dropout=1.0), r"lora: dropout must be at least 0 and below 1, not 1\.0"),
    (lambda: halka.LoRA(dropout=-0.1), r"lora: dropout must be at least 0 and below 1, not -0\.1"),
    (lambda: halka.LoRA(scaling="sqrt"), r"scaling is one of rank, root, not 'sqrt'"),
    (lambda: halka.DoRA(rank=-2), "rank must be a whole number above 0, not -2"),
    (lambda: halka.DoRA(dropout=1.0), "dropout must be at least 0 and below 1"),
    (lambda: halka.Bottleneck(width=0), "bottleneck: width must be a whole number above 0, not 0"),
    (lambda: halka.Bottleneck(scale=0), "bottleneck: scale must be a finite number other than 0, not 0"),
    (lambda: halka.Bottleneck(dropout=2), "bottleneck: dropout must be at least 0 and below 1, not 2"),
    (lambda: halka.Bottleneck(activation="swish"), "activation is one of relu, gelu, gelu_tanh, .*, none, not 'swish'"),
    (lambda: halka.Bottleneck(reads="both"), "reads is one of output, input, residual, sum, not 'both'"),
    (lambda: halka.Bottleneck(targets=("attn.q",)), r"targets takes attn, mlp, not 'attn\.q'"),
    (lambda: halka.Prefix(length=0), "prefix: length must be a whole number above 0, not 0"),
    (lambda: halka.Prefix(hidden=0), "prefix: hidden must be a whole number above 0, not 0"),
    (lambda: halka.Prefix(start="zeros"), "prefix: start is one of vocabulary, random, not 'zeros'"),
    (lambda: halka.Prefix(tokens=(1.5,)), r"prefix: tokens must be a whole number, not 1\.5"),
    (lambda: halka.LoRA(targets=5), "lora: targets must be a tuple, not 5"),
    (lambda: halka.LoRA(targets=(5,)), "lora: targets must be text, not 5"),
    (lambda: halka.Bottleneck(targets=5), "bottleneck: targets must be a tuple, not 5"),
    (lambda: halka.IA3(feedforward=("up",)), "ia3: feedforward are linear layers"),
    (
        lambda: halka.IA3(targets=("attn.kv",), feedforward=("mlp.up", "attn.v")),
        "ia3: feedforward names mlp.up, which targets lacks",
    ),
    (
        lambda: halka.Modules(("attn", "memory", "mlp.down", "head")),
        r"modules: targets takes head, embedding, or paths of modules, not 'attn', 'memory', 'mlp\.down'$",
    ),
    (lambda: halka.Joint((halka.LoRA, halka.IA3())), "joint: give two or more methods"),
    (lambda: halka.Joint(5), "joint: methods must be a tuple, not 5"),
    (lambda: halka.Joint((halka.LoRA(), 5)), "joint: give two or more methods"),
    (lambda: halka.Prompt(length=-1), "prompt: length must be a whole number above 0, not -1"),
    (lambda: halka.Prompt(start="zeros"), "prompt: start is one of vocabulary, random, not 'zeros'"),
    (
        lambda: method_named("lara"),
        "there is no method 'lara': choose one of bitfit, bottleneck, dora, full, ia3, llama_adapter",
    ),
]


@pytest.mark.parametrize(("make", "message"), MISTAKES, ids=[message[:40] for _, message in MISTAKES])
def test_a_field_that_makes_no_sense_is_refused_by_name_with_the_choices(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("kind", all_methods().values(), ids=lambda kind: kind.name)
def test_a_method_is_frozen_and_says_what_its_fields_mean(kind):
    assert is_dataclass(kind)
    assert kind.__dataclass_params__.frozen
    assert method_named(kind.name) is kind
    assert kind.lr > 0
    assert kind.paper
    assert kind.plain[0].isupper(), "a sentence"
    assert kind.plain[-1] == "."
    assert hash(kind()) == hash(kind())
    for each in fields(kind):
        assert each.metadata["help"], each.name


# ── LoRA ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("method", "scale"),
    [
        (halka.LoRA(), 2.0),
        (halka.LoRA(rank=8), 4.0),
        (halka.LoRA(rank=8, alpha=None), 2.0),
        (halka.LoRA(rank=8, alpha=8), 1.0),
        (halka.LoRA(rank=8, alpha=4), 0.5),
        (halka.LoRA(rank=16, alpha=8, scaling="root"), 2.0),
        (halka.LoRA(rank=64, scaling="root"), 4.0),
        (halka.LoRA(rank=9, alpha=None, scaling="root"), 6.0),
    ],
)
def test_the_scale_of_lora(method, scale):
    assert method.scale == scale


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_lora_is_its_formula(architecture):
    model = adapted(halka.LoRA(rank=4, alpha=6), architecture=architecture)

    def change(part):
        return lambda x, y: y + 6 / 4 * (x @ part.lora_A.T @ part.lora_B.T)

    parts = model.adapters["a"].parts
    assert len(parts) == 2 * (7 if architecture == "llama" else 4)
    expected = by_hand(model.base, {path: change(part) for path, part in parts.items()})
    torch.testing.assert_close(logits(model), expected, rtol=0, atol=1e-5)


def test_dropout_of_lora_is_on_the_products_input():
    model = adapted(halka.LoRA(rank=4, dropout=0.5))
    part = model.adapters["a"].parts["model.layers.0.self_attn.q_proj"]
    x, y = torch.ones(1, 1, 64), torch.zeros(1, 1, 64)
    part.train()
    torch.manual_seed(0)
    dropped = edited(part, x, y)
    torch.manual_seed(0)
    torch.testing.assert_close(dropped, part.scale * F.dropout(x, 0.5) @ part.lora_A.T @ part.lora_B.T)
    part.eval()
    torch.testing.assert_close(edited(part, x, y), part.scale * x @ part.lora_A.T @ part.lora_B.T)


# ── padded for compute ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("rank", [1, 8, 15, 16, 17, 40])
def test_padding_a_rank_changes_no_number(rank):
    A, B, x = torch.randn(rank, 24), torch.randn(24, rank), torch.randn(5, 24).bfloat16()
    wide_A, wide_B = padded(A.bfloat16(), B.bfloat16())
    assert wide_A.shape == (-(-rank // 16) * 16, 24)
    assert wide_B.shape == (24, -(-rank // 16) * 16)
    assert torch.equal(wide_A[:rank], A.bfloat16())
    assert torch.equal(wide_B[:, :rank], B.bfloat16())
    assert not wide_A[rank:].any()
    assert not wide_B[:, rank:].any()
    narrow = (x.float() @ A.bfloat16().float().T).bfloat16().float() @ B.bfloat16().float().T
    close(F.linear(F.linear(x, wide_A), wide_B), narrow, within=0.02)
    A32, B32 = padded(A, B)
    assert A32 is A
    assert B32 is B


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("width", [5, 16])
def test_padding_a_bottleneck_changes_no_number(activation, width):
    part = halka.Bottleneck(width=width, activation=activation).build(Target("x", "mlp", nn.Identity(), 24, 24))
    nn.init.normal_(part.up.weight, std=0.2)
    nn.init.normal_(part.down.weight, std=0.2)
    nn.init.constant_(part.down.bias, 0.3)
    nn.init.constant_(part.up.bias, -0.7)
    y = torch.randn(2, 3, 24)
    expected = edited(part, y, y)
    close(edited(part, y.bfloat16(), y.bfloat16()), expected, within=0.03)
    assert (expected - y).abs().min() > 1e-6


# ── DoRA ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_the_norms_of_dora_are_those_of_the_summed_weight(architecture):
    model = adapted(halka.DoRA(rank=4), architecture=architecture, trained=False)
    for path, part in model.adapters["a"].parts.items():
        module = model.base.get_submodule(path)
        weight = module.weight.T if architecture == "gpt2" else module.weight
        torch.testing.assert_close(part.magnitude, weight.norm(dim=1))
        with torch.no_grad():
            part.lora_B.normal_(std=0.1)
        torch.testing.assert_close(part.norms(weight), (weight + part.scale * part.lora_B @ part.lora_A).norm(dim=1))


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gpt2"])
def test_dora_is_its_formula(architecture):
    """With biases (Qwen's q, k, v; all of GPT-2's) and transposed weights."""
    model = adapted(halka.DoRA(rank=4, alpha=6), architecture=architecture)
    for module in model.base.modules():
        if isinstance(getattr(module, "bias", None), nn.Parameter):
            nn.init.normal_(module.bias, std=0.3)

    def change(part, module):
        def formula(x, y):
            weight = module.weight.T if architecture == "gpt2" else module.weight
            direction = weight + 6 / 4 * part.lora_B @ part.lora_A
            return F.linear(x, part.magnitude[:, None] * direction / direction.norm(dim=1, keepdim=True), module.bias)

        return formula

    parts = model.adapters["a"].parts
    expected = by_hand(model.base, {path: change(part, model.base.get_submodule(path)) for path, part in parts.items()})
    torch.testing.assert_close(logits(model), expected, rtol=0, atol=1e-5)


def test_the_norms_of_dora_carry_no_gradient():
    """As in the paper (4.3): the gradient is that of a constant denominator."""
    model = adapted(halka.DoRA(rank=4))
    part = model.adapters["a"].parts["model.layers.0.mlp.down_proj"]
    module = model.base.model.layers[0].mlp.down_proj
    x = torch.randn(2, 3, 96)
    edited(part, x, module(x)).square().sum().backward()
    found = [parameter.grad.clone() for parameter in part.parameters()]
    part.zero_grad()
    direction = module.weight + part.scale * part.lora_B @ part.lora_A
    F.linear(x, (part.magnitude / direction.norm(dim=1).detach())[:, None] * direction).square().sum().backward()
    for ours, parameter in zip(found, part.parameters(), strict=True):
        torch.testing.assert_close(ours, parameter.grad, rtol=1e-4, atol=1e-5)


# ── bottleneck adapters ─────────────────────────────────────────────────────────────────────────────────────────────

SUBLAYERS = {
    "llama": (
        {"attn": "model.layers.{}.self_attn", "mlp": "model.layers.{}.mlp"},
        ("self_attn.o_proj", "mlp.down_proj"),
    ),
    "gpt2": ({"attn": "transformer.h.{}.attn", "mlp": "transformer.h.{}.mlp"}, ("attn.c_proj", "mlp.c_proj")),
}
PLACES = {
    "Houlsby": halka.Bottleneck(width=6),
    "Pfeiffer": halka.Bottleneck(width=6, targets=("mlp",), activation="gelu"),
    "after attention": halka.Bottleneck(width=6, targets=("attn",), activation="tanh"),
    "parallel": halka.Bottleneck(width=6, reads="input", scale=4.0, activation="silu"),
    "parallel to the MLP": halka.Bottleneck(width=6, targets=("mlp",), reads="input"),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("architecture", SUBLAYERS)
def test_a_bottleneck_acts_on_the_whole_sublayer(place, architecture):
    """Before the residual sum: after what the sublayer returns, or beside it, from what it receives."""
    method = PLACES[place]
    model = adapted(method, architecture=architecture)
    sublayers, outputs = SUBLAYERS[architecture]
    activation = {"relu": F.relu, "gelu": F.gelu, "silu": F.silu, "tanh": torch.tanh}[method.activation]

    def change(part):
        def formula(x, y):
            read = x if method.reads == "input" else y
            return y + method.scale * part.up(activation(part.down(read)))

        return formula

    changes = {}
    for role in method.targets:
        for layer in range(2):
            path = sublayers[role].format(layer)
            own = dict(zip(("attn", "mlp"), outputs, strict=True))[role].rsplit(".", 1)[1]
            changes[path] = change(model.adapters["a"].parts[f"{path}.{own}"])
    assert len(changes) == len(model.adapters["a"].parts)
    torch.testing.assert_close(logits(model), by_hand(model.base, changes), rtol=0, atol=1e-5)
    assert (logits(model) - logits(model, None)).abs().max() > 1e-2


def test_a_bottleneck_is_a_sixteenth_wide_unless_said():
    parts = adapted(halka.Bottleneck()).adapters["a"].parts.values()
    assert {part.down.weight.shape for part in parts} == {(4, 64)}


def test_dropout_of_a_bottleneck_is_within_it():
    part = halka.Bottleneck(width=8, dropout=0.5).build(Target("x", "mlp", nn.Identity(), 16, 16))
    nn.init.normal_(part.up.weight)
    y = torch.randn(2, 3, 16)
    torch.manual_seed(0)
    dropped = edited(part.train(), y, y)
    torch.manual_seed(0)
    torch.testing.assert_close(dropped, y + part.up(F.dropout(F.relu(part.down(y)), 0.5)))
    torch.testing.assert_close(edited(part.eval(), y, y), y + part.up(F.relu(part.down(y))))


# ── BitFit, (IA)³ ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_bitfit_is_a_bias(architecture):
    model = adapted(halka.BitFit(), architecture=architecture)
    found = logits(model)
    for path, part in model.adapters["a"].parts.items():
        module = model.base.get_submodule(path)
        with torch.no_grad():
            module.bias = nn.Parameter(part.bias if module.bias is None else module.bias + part.bias)
    torch.testing.assert_close(found, logits(model, None), rtol=0, atol=1e-5)


def test_ia3_is_a_scale_of_keys_values_and_inner_activations():
    model = adapted(halka.IA3())
    found = logits(model)
    parts = model.adapters["a"].parts
    assert len(parts) == 6
    with torch.no_grad():
        for layer in range(2):
            attention, mlp = model.base.model.layers[layer].self_attn, model.base.model.layers[layer].mlp
            attention.k_proj.weight *= parts[f"model.layers.{layer}.self_attn.k_proj"].ia3_l[:, None]
            attention.v_proj.weight *= parts[f"model.layers.{layer}.self_attn.v_proj"].ia3_l[:, None]
            # the paper's l_ff scales γ(W₁x), which W₂ reads
            mlp.down_proj.weight *= parts[f"model.layers.{layer}.mlp.down_proj"].ia3_l[None]
    torch.testing.assert_close(found, logits(model, None), rtol=0, atol=1e-5)


# ── prompts and prefixes ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_doras_norms_are_known_until_something_changes(dtype):
    model = adapted(halka.DoRA(rank=4), dtype)
    part = model.adapter("a").parts["model.layers.0.self_attn.q_proj"]
    asked = []
    own = part.norms
    part.norms = lambda weight: (asked.append(1), own(weight))[1]
    with model.use("a"):
        differentiated = model.base(ids()).logits.detach()
        with torch.no_grad():
            known = [model.base(ids()).logits for _ in range(3)]
            assert len(asked) == 2
            assert all(torch.equal(each, differentiated) for each in known)
            for parameter in part.parameters():
                parameter.add_(0.1)
                changed = model.base(ids()).logits
                assert not torch.equal(changed, known[-1])
                known.append(changed)
            assert len(asked) == 5
        with torch.inference_mode():
            assert torch.equal(model.base(ids()).logits, known[-1])


def test_dora_starts_as_the_base_where_a_weight_has_rows_of_nothing():
    base = tiny()
    with torch.no_grad():
        for layer in base.model.layers:
            layer.mlp.down_proj.weight[::3] = 0
        expected = base(ids()).logits
    model = halka.adapt(base)
    model.add("a", halka.DoRA(rank=4))
    with torch.no_grad(), model.use("a"):
        assert torch.equal(model.base(ids()).logits, expected)
    model.merge("a")
    with torch.no_grad():
        torch.testing.assert_close(model.base(ids()).logits, expected, rtol=0, atol=1e-5)


def test_a_prompt_from_text_starts_as_its_tokens():
    tokenizer = chatml_tokenizer()
    text = "How do I reset my password?"
    tokens = tuple(tokenizer.encode(text, add_special_tokens=False))
    assert len(tokens) > 3
    assert halka.Prompt.from_text(text, tokenizer) == halka.Prompt(length=len(tokens), tokens=tokens)
    with pytest.raises(ValueError, match="virtual tokens cannot start from a text without tokens"):
        halka.Prompt.from_text("", tokenizer)
    base = tiny(vocab_size=len(tokenizer))
    own = base.get_input_embeddings().weight[list(tokens)]
    for length in (2, len(tokens), 2 * len(tokens) + 1):
        method = halka.Prompt.from_text(text, tokenizer, length)
        (start,) = halka.adapt(base).add(str(length), method).parameters()
        assert torch.equal(start, own.repeat(3, 1)[:length])


@pytest.mark.parametrize("kind", [halka.Prompt, halka.Prefix])
@pytest.mark.parametrize(
    "tokens",
    [
        (3, 97),
        pytest.param((-1, 5)),
    ],
)
def test_tokens_that_the_base_lacks_are_refused(kind, tokens):
    wrong = 97 if 97 in tokens else -1
    with pytest.raises(ValueError, match=f"token ids run from 0 to 96 in this base, not {wrong}"):
        halka.adapt(tiny()).add("a", kind(tokens=tokens))


def test_tokens_of_embedding_and_head_share_rows_where_they_are_the_same_tokens():
    """GPT-2's head is tied: ids that differ are other rows of the one weight."""
    one, other = (halka.Tokens((token,), (role,)) for token, role in ((5, "embedding"), (9, "head")))
    for joint, rows in ((halka.Joint((one, other)), 2), (halka.Tokens((5,)), 1)):
        model = halka.adapt(tiny("gpt2"))
        prompt = torch.tensor([[5, 7, 9]])
        bare = model.base(prompt).logits
        assert [len(tensor) for tensor in model.add("a", joint).parameters()] == [1] * rows
        with torch.no_grad(), model.use("a"):
            assert torch.equal(model.base(prompt).logits, bare)


def test_an_embedding_that_takes_more_than_ids_has_no_lora():
    with pytest.raises(ValueError, match=r"lora: model\.decoder\.embed_positions, .* takes several inputs"):
        halka.adapt(tiny("opt")).add("a", halka.LoRA(targets=("module:model.decoder.embed_positions",)))


def test_a_start_from_the_vocabulary_is_rows_of_it_and_a_random_one_is_as_wide():
    base = tiny()
    model = halka.adapt(base)
    vocabulary = base.get_input_embeddings().weight
    (start,) = model.add("v", halka.Prompt(length=50)).parameters()
    assert all((row == vocabulary).all(1).any() for row in start)
    assert len({tuple(row.tolist()) for row in start}) > 25
    (noise,) = model.add("r", halka.Prompt(length=50, start="random")).parameters()
    assert not any((row == vocabulary).all(1).any() for row in noise)
    assert float(noise.detach().std()) == pytest.approx(float(vocabulary.std()), rel=0.1)


def test_a_prefix_through_an_mlp_is_its_formula():
    model = adapted(halka.Prefix(length=3, hidden=8))
    (part,) = model.adapters["a"].parts.values()
    assert part.table.shape == (3, 64)
    expected = torch.tanh(part.table @ part.narrow.weight.T + part.narrow.bias) @ part.wide.weight.T + part.wide.bias
    torch.testing.assert_close(part.virtual(), expected.view(3, 4, 2, 16))


# ── full ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("tied", [False, True])
def test_full_weights_are_masters_of_their_own(tied):
    """In fp32 whatever the base's precision, each tied weight once, and the base's after training in its stead."""
    model = halka.adapt(tiny(dtype=torch.bfloat16, tie_word_embeddings=tied))
    adapter = model.add("a", halka.Full())
    own = dict(model.base.named_parameters())
    assert {f"base.{name}" for name in own} == {name for name, _ in adapter.named_parameters()}
    for name, parameter in adapter.named_parameters():
        assert parameter.dtype == torch.float32
        assert torch.equal(parameter, own[name.removeprefix("base.")].float())
    disturb(model, "a")
    other = tiny(dtype=torch.bfloat16, tie_word_embeddings=tied)
    state = {
        name.removeprefix("base."): parameter.detach().bfloat16() for name, parameter in adapter.named_parameters()
    }
    other.load_state_dict(state, strict=not tied)
    with torch.no_grad():
        assert torch.equal(logits(model), other(ids()).logits)


def test_a_method_written_elsewhere_works_like_those_here():
    """No registration is asked for, and no class to inherit from: only what `Method` names."""

    @dataclass(frozen=True)
    class Twice:
        name: ClassVar[str] = "twice"
        paper: ClassVar[str] = "none"
        lr: ClassVar[float] = 1e-3

        def roles(self):
            return ("mlp",)

        def build(self, target: Target):
            class Double(halka.core.ModulePart):
                def edit_output(self, x, y):
                    return 2 * y

            return Double()

    model = halka.adapt(tiny())
    method: Method = Twice()
    model.add("a", method)
    changes = {f"model.layers.{layer}.mlp": lambda x, y: 2 * y for layer in range(2)}
    torch.testing.assert_close(logits(model), by_hand(model.base, changes))
    assert math.isfinite(float(logits(model).sum()))
