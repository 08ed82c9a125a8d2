"""Packed batches train as padded ones do: losses and gradients of every method, on every decoder, in any company."""

from __future__ import annotations

import random
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor

import halka
from contract import JOINT, METHODS, disturb
from halka.core import AdaptedModel, Method
from halka.data.tokens import Tokens
from halka.models.attention.function import use_attention
from halka.models.quantised import quantise
from halka.objectives import summed_losses
from halka.training import Job, TrainConfig, mean_loss, train, train_many
from pairwise import pairwise
from tiny import CONFIGS, tiny
from training_for_tests import items, weights

EXPERTS = [halka.LoRA(rank=3, targets=("experts",)), halka.IA3(targets=("attn.kv", "experts.down"))]
FORMS: list[Method] = [*(forms[0] for forms in METHODS.values()), *METHODS["bottleneck"][2:4], *JOINT, *EXPERTS]
MIXTURES = ("mixtral", "qwen2_moe", "qwen3_moe", "olmoe")
OTHERS: dict[str, Method] = {
    "bottleneck": halka.Bottleneck(width=5, reads="input"),
    "prefix": halka.Prefix(length=4),
    "prompt": halka.Prompt(length=3),
}


def texts(sharing: str, seed: int) -> list[Tokens]:
    """Six examples of unlike length that share nothing, a beginning, or beginnings of beginnings."""
    draw = random.Random(seed)

    def words(count: int) -> list[int]:
        return [draw.randrange(3, 97) for _ in range(count)]

    root, middle = words(9), [words(7), words(6)]
    examples: list[Tokens] = []
    for number in range(6):
        own = words(draw.randint(3, 9))
        beginning = [] if sharing == "nothing" else root + (middle[number % 2] if sharing == "three levels" else [])
        loss = [sharing == "labels in it"] * len(beginning) + [True] * len(own)
        if sharing == "three levels":
            loss[len(root)] = True  # a label in the middle, for all or for some
            loss[len(beginning) - 1] = number < 4
        if sharing in ("nothing", "labels in it"):
            loss[0] = True  # no label: nothing predicts it
        examples.append(Tokens(beginning + own, loss))
    if sharing == "three levels":
        examples += [examples[0], Tokens(examples[1].ids[:-1], examples[1].loss[:-1])]
    return examples


def possible(case) -> bool:
    method, architecture = case["method"], case["architecture"]
    mixture = architecture in MIXTURES
    roles = set(method.roles())
    if method in EXPERTS and not mixture:
        return False
    needs_dense = {"mlp.down", "mlp.linear", "mlp"} & roles
    if mixture and method not in EXPERTS and (needs_dense or method.name in ("ia3", "lora_bias")):
        return False
    if case["company"] != "alone" and method.name == "full":
        return False
    if case["quantize"] and method.name == "full":
        return False
    if "attn.q" in roles and architecture in ("phi3", "gpt2", "gpt_neox"):
        return False
    residual = any(role.endswith(".residual") for role in roles)
    if residual and architecture in ("gemma2", "gemma3_text", "opt"):
        return False
    if any("model.norm" in role for role in roles) and architecture in ("gpt2", "gpt_neox", "opt"):
        return False
    return case["company"] == "alone" or not any(role in ("head", "module:model.norm") for role in roles)


WITHOUT_DROPOUT = {
    "gpt2": {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0},
    "opt": {"dropout": 0.0, "attention_dropout": 0.0},
}
CASES = pairwise(
    {
        "architecture": tuple(CONFIGS),
        "method": tuple(FORMS),
        "company": ("alone", "of other families", "of its own"),
        "sharing": ("nothing", "a beginning", "three levels", "labels in it"),
        "window": (False, True),
        "checkpointing": (False, True),
        "quantize": (None, "int8"),
    },
    possible,
)


def model_of(case) -> tuple[AdaptedModel, dict[str, list[Tokens]]]:
    architecture = case["architecture"]
    window = {"sliding_window": 5} if case["window"] and "sliding_window" in CONFIGS[architecture] else {}
    base = tiny(architecture, **window, **WITHOUT_DROPOUT.get(architecture, {}))
    if case["quantize"]:
        quantise(base, case["quantize"])
    model = halka.adapt(base)
    others = {"alone": {}, "of other families": OTHERS, "of its own": {"b": case["method"], "c": case["method"]}}
    for seed, (name, method) in enumerate({"a": case["method"], **others[case["company"]]}.items()):
        model.add(name, method, seed=seed)
        disturb(model, name, seed=seed)
    return model, {name: texts(case["sharing"], seed) for seed, name in enumerate(model.adapters)}


def losses_and_gradients(model: AdaptedModel, groups: dict[str, list[Tokens]], *, packed: bool) -> list[Tensor]:
    names = list(groups)
    parameters = [parameter for name in names for parameter in model.parameters(name)]
    with model.use(names if len(names) > 1 else names[0]), use_attention(model.base):
        losses = summed_losses(model, groups, packed=packed)
        scale = torch.arange(1.0, len(names) + 1)  # each adapter's loss is its own
        gradients = torch.autograd.grad((losses * scale).sum(), parameters, allow_unused=True)
    return [
        losses.detach(),
        *(p if g is None else g for g, p in zip(gradients, map(torch.zeros_like, parameters), strict=True)),
    ]


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(str(value)[:40] for value in case.values()))
def test_losses_and_gradients_are_the_padded_ones(case):
    model, groups = model_of(case)
    if case["checkpointing"]:
        context = lambda: (nullcontext(), model.as_now())  # noqa: E731
        model.base.train()
        model.base.activation_checkpointing_enable({"use_reentrant": False, "context_fn": context})
    packed, padded = (losses_and_gradients(model, groups, packed=way) for way in (True, False))
    largest = max(float(tensor.norm()) for tensor in padded[1:])
    assert largest > 0
    for ours, expected in zip(packed, padded, strict=True):
        assert (ours - expected).norm() <= 1e-5 * max(float(expected.norm()), 3e-2 * largest)


def test_twenty_steps_of_sgd_end_with_the_same_adapter():
    batches = [texts(sharing, seed) for seed in range(5) for sharing in ("nothing", "a beginning", "three levels")]
    starts: list[Tensor] = []
    ends: list[list[Tensor]] = []
    for packed in (True, False):
        model = halka.adapt(tiny())
        model.add("a", halka.LoRA(rank=4))
        disturb(model, "a")
        starts = [parameter.detach().clone() for parameter in model.parameters("a")]
        optimizer = torch.optim.SGD(model.parameters("a"), lr=0.3)
        for step in range(20):
            with model.use("a"), use_attention(model.base):
                batch = batches[step % len(batches)]
                loss = summed_losses(model, {"a": batch}, packed=packed).sum() / sum(item.labels for item in batch)
                loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        ends.append([parameter.detach() for parameter in model.parameters("a")])
    for ours, expected, start in zip(*ends, starts, strict=True):
        assert (expected - start).norm() > 1e-3
        assert (ours - expected).norm() <= 1e-4 * expected.norm()


def test_runs_with_packed_and_with_padded_batches_of_the_same_examples_learn_the_same():
    results = []
    for batches in ("packed", "padded"):
        model = halka.adapt(tiny())
        model.add("a", halka.LoRA(rank=4))
        config = TrainConfig(steps=6, batch_size=3, batches=batches, evaluate_every=3, seed=2, lr=1e-3)
        steps = list(train(model, "a", texts("a beginning", 0), config, validation=items(4, seed=5)))
        results.append((steps, weights(model)))
    (packed, mine), (padded, theirs) = results
    assert [step.tokens for step in packed] == [step.tokens for step in padded]
    assert [step.loss for step in packed] == pytest.approx([step.loss for step in padded], rel=1e-5)
    assert packed[-1].validation == pytest.approx(padded[-1].validation, rel=1e-5)
    for key, tensor in theirs.items():
        torch.testing.assert_close(mine[key], tensor, rtol=1e-3, atol=1e-5)


def test_adapters_trained_together_learn_what_they_learn_apart():
    jobs = {"a": texts("a beginning", 0), "b": texts("nothing", 1)}
    config = TrainConfig(steps=5, batch_size=3, lr=1e-3)
    model = halka.adapt(tiny())
    for name in jobs:
        model.add(name, halka.LoRA(rank=4))
    list(train_many(model, [Job(name, examples, config) for name, examples in jobs.items()]))
    for name, examples in jobs.items():
        alone = halka.adapt(tiny())
        alone.add(name, halka.LoRA(rank=4))
        list(train(alone, name, examples, config))
        for key, tensor in weights(alone, name).items():
            torch.testing.assert_close(weights(model, name)[key], tensor, rtol=1e-3, atol=1e-5)


def test_bf16_stays_within_rounding():
    results = []
    for dtype, packed in ((torch.bfloat16, True), (torch.bfloat16, False), (torch.float32, False)):
        model = halka.adapt(tiny(dtype=dtype))
        model.add("a", halka.LoRA(rank=4))
        disturb(model, "a")
        results.append(losses_and_gradients(model, {"a": texts("three levels", 0)}, packed=packed)[1:])
    ours, padded, exact = (torch.cat([tensor.flatten() for tensor in tensors]) for tensors in results)
    assert (ours - exact).norm() <= 1.5 * (padded - exact).norm()


def test_the_mean_loss_is_the_padded_ones():
    model = halka.adapt(tiny())
    examples = texts("labels in it", 0)
    assert mean_loss(model, None, examples) == pytest.approx(mean_loss(model, None, examples, packed=False), rel=1e-5)


def test_a_line_with_other_runs_than_use_named_is_refused():
    model = halka.adapt(tiny())
    model.add("a", halka.LoRA(rank=4))
    groups = {"a": texts("nothing", 0), "b": texts("nothing", 1)}
    refused = pytest.raises(halka.HalkaError, match="the line has 2 runs, but `use` named 3 adapters")
    with refused, model.use(["a", None, "a"]), use_attention(model.base):
        summed_losses(model, groups, packed=True)


def test_an_encoders_batches_cannot_be_packed():
    model = halka.adapt(tiny("bert", kind="sequence-classification"))
    with pytest.raises(halka.HalkaError, match="cannot be packed: train with batches=padded"):
        summed_losses(model, {None: []}, packed=True)
