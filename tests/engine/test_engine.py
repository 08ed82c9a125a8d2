"""Whatever company an answer is made in, it is the answer that its adapter gives alone."""

from __future__ import annotations

import random

import pytest
import torch

import halka
from halka.engine.engine import Engine
from halka.engine.request import Answer, Request
from halka.engine.stopping import Stopping
from tiny import CONFIGS, tiny

FAMILIES = {
    "lora": halka.LoRA(rank=4),
    "lora2": halka.LoRA(rank=3),
    "bottleneck": halka.Bottleneck(width=8),
    "prefix": halka.Prefix(length=5),
    "prefix2": halka.Prefix(length=21),
    "prompt": halka.Prompt(length=18),
    "full": halka.Full(),
}


class Tokenizer:
    """As much of one as the engine needs."""

    eos_token_id = 2

    def __init__(self):
        self.added_tokens_decoder = {}

    def convert_ids_to_tokens(self, number):
        return str(number)

    def decode(self, ids, **_):
        return " ".join(map(str, ids))


def model_of(architecture: str = "llama", families=FAMILIES, **changes):
    model = halka.adapt(tiny(architecture, **changes), Tokenizer())
    for seed, (name, method) in enumerate(families.items()):
        model.add(name, method, seed=seed)
        generator = torch.Generator().manual_seed(seed)
        for parameter in model.parameters(name):
            with torch.no_grad():
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


def alone(model, request: Request) -> list[int]:
    """The greedy answer by whole passes of the base, without any cache."""
    tokens = [*request.prompt]
    with torch.inference_mode(), model.use(request.adapter):
        for _ in range(request.stopping.max_new_tokens):
            logits = model.base(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1]
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


def check(model, requests, **settings) -> Engine:
    answers: list[Answer] = []
    with Engine(model, **settings) as engine:
        for request in requests:
            answers += engine.submit(request)
        while engine.step():
            pass
        for request, answer in zip(requests, answers, strict=True):
            assert answer.error is None
            assert answer.tokens == alone(model, request), request
    assert engine.cache.room == engine.cache.size
    return engine


@pytest.mark.parametrize("architecture", CONFIGS)
def test_answers_of_all_families_side_by_side_are_those_of_each_alone(architecture):
    model = model_of(architecture)
    names = [None, *FAMILIES]
    requests = [
        Request(prompt, names[number % len(names)], stopping=Stopping(6)) for number, prompt in enumerate(prompts(24))
    ]
    check(model, requests, rows=8, read=32, read_beside=16)


@pytest.mark.parametrize("blocks", [7, 9, 14])
def test_a_cache_that_is_too_small_changes_no_token(blocks):
    model = model_of()
    each = 16 * 4 * 2 * 2 * 16 * 2
    names = [None, "lora", "prefix", "lora2", "prompt"]
    requests = [
        Request(prompt, names[number % len(names)], stopping=Stopping(20)) for number, prompt in enumerate(prompts(20))
    ]
    engine = check(model, requests, rows=6, memory=blocks * each, read=24, read_beside=8)
    assert engine.cache.size == blocks
    assert engine.preempted
