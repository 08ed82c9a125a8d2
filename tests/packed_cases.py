"""Cases of packed training, and what a packed batch must equal: a padded one's losses and gradients.

`tests/training/test_packed.py` tries pairs of their dimensions, `benchmarks/packing.py` the whole grid.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

import halka
from contract import JOINT, METHODS, disturb
from halka.core import AdaptedModel, Method
from halka.data.tokens import Tokens
from halka.models.attention.function import use_attention
from halka.models.quantised import quantise
from halka.objectives import summed_losses
from tiny import CONFIGS, tiny

EXPERTS = [halka.LoRA(rank=3, targets=("experts",)), halka.IA3(targets=("attn.kv", "experts.down"))]
FORMS: list[Method] = [*(forms[0] for forms in METHODS.values()), *METHODS["bottleneck"][2:4], *JOINT, *EXPERTS]
ALL_FORMS: list[Method] = [*dict.fromkeys([form for forms in METHODS.values() for form in forms] + JOINT + EXPERTS)]
"""Those, and all other forms that the contract tries."""
MIXTURES = ("mixtral", "qwen2_moe", "qwen3_moe", "olmoe")
OTHERS: dict[str, Method] = {
    "bottleneck": halka.Bottleneck(width=5, reads="input"),
    "prefix": halka.Prefix(length=4),
    "prompt": halka.Prompt(length=3),
}

COMPANIES = ("alone", "of other families", "of its own")
SHARING = ("nothing", "a beginning", "three levels", "labels in it")


def texts(sharing: str, seed: int) -> list[Tokens]:
    """Six examples of unlike length that share nothing, a beginning, or beginnings of beginnings."""
    draw = random.Random(seed)

    def words(count: int) -> list[int]:
        return [draw.randrange(3, 97) for _ in range(count)]

    root, middle = words(9), [words(7), words(6)]
    examples: list[Tokens] = []
    for number in range(6):
        own = words(draw.randint(3, 9))
        own[1] = 8  # the token that some methods train
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


def possible(case: Mapping[str, Any]) -> bool:
    """Whether the method has a place in the architecture, and may share a pass with others."""
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


def model_of(case: Mapping[str, Any]) -> tuple[AdaptedModel, dict[str, list[Tokens]]]:
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


def differences(packed: list[Tensor], padded: list[Tensor]) -> list[float]:
    """How far the losses and each parameter's gradient are from the padded ones, relative to these.

    A gradient below 3 % of the largest is compared with that share of the largest: it is rounding for the most part.
    """
    largest = max(float(tensor.norm()) for tensor in padded[1:])
    assert largest > 0
    return [
        float((ours - expected).norm()) / max(float(expected.norm()), 3e-2 * largest)
        for ours, expected in zip(packed, padded, strict=True)
    ]
