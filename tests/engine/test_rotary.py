"""Bases whose texts beyond some length have other rotary frequencies from their first token on: `longrope`."""

from __future__ import annotations

import random

import pytest

from engine_for_tests import alone, model_of, run
from halka.engine.engine import Engine
from halka.engine.request import Request
from halka.engine.stopping import Stopping
from halka.methods import LoRA, Prefix, Prompt

TURN = 64
ROPE = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 8, "long_factor": [4.0] * 8, "factor": 4.0}
DRAW = random.Random(1)
TOKENS = [DRAW.randrange(3, 97) for _ in range(100)]
FAMILIES = {"lora": LoRA(rank=2), "prompt": Prompt(length=5), "prefix": Prefix(length=5)}


@pytest.fixture(scope="module")
def model():
    return model_of(
        "phi3",
        families=FAMILIES,
        rope_parameters=ROPE | {"original_max_position_embeddings": TURN},
        initializer_range=0.3,
        max_position_embeddings=256,
        original_max_position_embeddings=TURN,
    )


def request(count: int, new: int, adapter: str | None = None) -> Request:
    return Request(TOKENS[:count], adapter, stopping=Stopping(new, ignore_ends=True))


def answered(engine: Engine, *requests: Request) -> list[list[int]]:
    answers = [answer for each in requests for answer in engine.submit(each)]
    run(engine, *answers)
    return [answer.tokens for answer in answers]


@pytest.mark.parametrize("adapter", [None, *FAMILIES])
def test_a_long_text_is_one_from_its_first_token_on_however_it_is_read(model, adapter):
    whole = request(100, 6, adapter)
    expected = [alone(model, whole)]
    for prefill in (32, 512):
        with Engine(model, prefill=prefill) as engine:
            assert answered(engine, whole) == expected
    with Engine(model) as engine:
        answered(engine, request(60 - 5 * (adapter in ("prompt", "prefix")), 1, adapter))  # a short one begins alike
        assert answered(engine, whole) == expected


@pytest.mark.parametrize("adapter", [None, *FAMILIES])
def test_a_text_that_becomes_long_is_read_anew(model, adapter):
    across = request(50, 24, adapter)
    with Engine(model, prefill=16) as engine:
        assert answered(engine, across) == [alone(model, across)]


def test_short_and_long_texts_answer_beside_each_other_as_alone(model):
    requests = [
        request(40, 12),
        request(100, 6),
        request(58, 12, "lora"),
        request(30, 6, "prompt"),
        request(90, 6, "lora"),
    ]
    with Engine(model, rows=3, prefill=24) as engine:
        assert answered(engine, *requests) == [alone(model, each) for each in requests]
