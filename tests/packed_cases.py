"""Cases of packed training, and what a packed batch must equal: a padded one's losses and gradients.

`tests/training/test_packed.py` tries pairs of their dimensions, `benchmarks/packing_grid.py` all of them.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Mapping
from contextlib import nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

import halka
from contract import JOINT, METHODS, OF_EXPERTS, disturb
from halka.core import AdaptedModel, Method
from halka.data.tokens import Tokens
from halka.models.attention.function import use_attention
from halka.models.quantised import quantise
from halka.objectives import summed_losses
from tiny import WINDOWED, WITHOUT_RESIDUALS, tiny, windowed

BY_PATH = halka.Joint((halka.LoRA(rank=4), halka.Modules(("lm_head",))))  # JOINT's first, with the head by its path
FORMS: list[Method] = [
    *(forms[0] for forms in METHODS.values()),
    *METHODS["bottleneck"][2:4],
    *(BY_PATH, *JOINT[1:]),
    *OF_EXPERTS,
]
ALL_FORMS: list[Method] = [*dict.fromkeys([form for forms in METHODS.values() for form in forms] + JOINT + OF_EXPERTS)]
"""Those, and all other forms that the contract tries."""
MIXTURES = ("mixtral", "qwen2_moe", "qwen3_moe", "olmoe")
ALL_EXPERTS = ("mixtral", "olmoe")  # whose layers have no other linear layer in their feed-forward
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
    if case["window"] and architecture not in WINDOWED:
        return False
    if method in OF_EXPERTS and not mixture:
        return False
    if architecture in ALL_EXPERTS and method not in OF_EXPERTS and {"mlp.down", "mlp.linear"} & roles:
        return False
    if case["company"] != "alone" and method.name == "full":
        return False
    if case["quantize"] and method.name == "full":
        return False
    if "attn.q" in roles and architecture in ("phi3", "gpt2", "gpt_neox"):
        return False
    residual = any(role.endswith(".residual") for role in roles)
    if residual and architecture in WITHOUT_RESIDUALS:
        return False
    if any("model.norm" in role for role in roles) and architecture in ("gpt2", "gpt_neox", "opt"):
        return False
    if method == BY_PATH and architecture == "gpt_neox":  # whose head is `embed_out`
        return False
    return case["company"] == "alone" or roles.isdisjoint({"head", "module:lm_head"})


WITHOUT_DROPOUT = {
    "gpt2": {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0},
    "opt": {"dropout": 0.0, "attention_dropout": 0.0},
}


@cache
def _base(architecture: str, window: bool) -> PreTrainedModel:
    return tiny(architecture, **(windowed(architecture, 5) if window else {}), **WITHOUT_DROPOUT.get(architecture, {}))


def model_of(case: Mapping[str, Any]) -> tuple[AdaptedModel, dict[str, list[Tokens]]]:
    base = copy.deepcopy(_base(case["architecture"], case["window"]))
    if case["quantize"]:
        quantise(base, case["quantize"])
    model = halka.adapt(base)
    others = {"alone": {}, "of other families": OTHERS, "of its own": {"b": case["method"], "c": case["method"]}}
    for seed, (name, method) in enumerate({"a": case["method"], **others[case["company"]]}.items()):
        model.add(name, method, seed=seed)
        disturb(model, name, seed=seed)
    if case["checkpointing"]:
        model.base.train()
        context = lambda: (nullcontext(), model.as_now())  # noqa: E731
        base.activation_checkpointing_enable({"use_reentrant": False, "context_fn": context})
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


def differences(packed: list[Tensor], padded: list[Tensor], floor: float = 3e-2) -> list[float]:
    """How far the losses and each parameter's gradient are from the padded ones, relative to these.

    A gradient below `floor` of the largest is compared with that share of the largest. Below 3 % of it rounding shows,
    some 1e-5 of such a gradient; far below (offsets of keys, which change no score) there is nothing else.
    """
    largest = max(float(tensor.norm()) for tensor in padded[1:])
    assert largest > 0
    return [
        float((ours - expected).norm()) / max(float(expected.norm()), floor * largest)
        for ours, expected in zip(packed, padded, strict=True)
    ]
