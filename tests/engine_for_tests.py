"""Tiny models with adapters for the engine's tests, and what an answer is without an engine."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import torch

import halka
from halka.core import Method
from halka.engine.engine import Engine
from halka.engine.request import Answer, Request
from halka.storage.adapter_folder import AdapterFolder
from tiny import tiny


class Tokenizer:
    """As much of one as the engine needs."""

    eos_token_id, chat_template = 2, None
    added_tokens_decoder: Mapping[int, Any] = {}

    def __len__(self):
        return 100

    def convert_ids_to_tokens(self, number):
        return str(number)

    def decode(self, ids, **_):
        return " ".join(map(str, ids))


class NoTwin:
    """A slow twin of the engine's pass that is not to compute."""

    def __call__(self, line):
        raise AssertionError("the slow twin computes")

    def forget(self):
        pass

    def close(self):
        pass


def model_of(architecture: str = "llama", *, families: Mapping[str, Method], **changes):
    model = halka.adapt(tiny(architecture, **changes), Tokenizer())
    for seed, (name, method) in enumerate(families.items()):
        filled(model, name, method, seed)
    return model


def alone(model, request: Request) -> list[int]:
    """The greedy answer by whole passes of the base, without any cache."""
    tokens = [*request.prompt]
    with torch.inference_mode(), model.use(request.adapter):
        for _ in range(request.stopping.max_new_tokens):
            ids = torch.tensor([tokens], device=model.base.device)
            logits = model.base(input_ids=ids, use_cache=False).logits[0, -1]
            tokens.append(int(logits.argmax()))
            if tokens[-1] == 2:
                break
    return tokens[len(request.prompt) :]


def prompts(count: int, longest: int = 40, seed: int = 0) -> list[list[int]]:
    draw = random.Random(seed)
    common = [draw.randrange(3, 97) for _ in range(longest)]
    return [
        common[: draw.randrange(longest)] + [draw.randrange(3, 97) for _ in range(draw.randrange(1, 9))]
        for _ in range(count)
    ]


def filled(model, name: str, method: Method, seed: int = 0) -> None:
    """Add an adapter that makes a difference."""
    model.add(name, method, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters(name):
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)


def taken(folder: AdapterFolder) -> int:
    """The bytes that an adapter takes in memory: its parameters, and of a base of Llama's kind in fp32 a copy."""
    return 2 * folder.memory


def run(engine: Engine, *answers: Answer, steps: int = 500) -> None:
    """Step until these are finished, or all; fails after so many steps."""
    for _ in range(steps):
        if all(answer.finish is not None for answer in answers) and (answers or not engine.busy):
            return
        engine.step()
    raise AssertionError(f"not finished after {steps} steps")
