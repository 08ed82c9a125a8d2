"""What one client sends fails nobody else's answers, and holds nobody up for long."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8}


def schema(**body) -> dict:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": body}}}


HARD = [
    {"temperature": 5e-324},
    {"temperature": 2, "top_p": 1e-300, "min_p": 1},
    {"temperature": 1, "top_p": 0, "top_k": 2**62},
    {"temperature": 1, "top_k": 10**400},
    {"temperature": 1, "min_p": 1, "top_p": 0},
    {"presence_penalty": -2, "frequency_penalty": 2, "temperature": 1e-300},
    {"logit_bias": {str(token): -100 for token in range(60)}, "temperature": 1},
    {"logit_bias": {str(10**400): 1}},
    {"seed": 2**63},
    {"stop": ["\x00", "\ufeff", "a" * 100_000]},
    {"max_tokens": 2**62},
    {"max_tokens": 500, "n": 128},
    {"logprobs": True, "top_logprobs": 20, "n": 8},
    schema(enum=[]),
    schema(type="string", maxLength=0),
    schema(type="string", minLength=10**6),
    schema(type="array", minItems=10**9, items={"type": "null"}),
    schema(type="string", pattern="(a+)+$"),
    schema(type="string", pattern="(" * 500 + "a" + ")" * 500),
    schema(type="string", pattern="((a{1,100}){1,100}){1,100}"),
    schema(type="string", pattern="[" * 10),
    schema(type="string", pattern="[" * 60_000),
    schema(type="string", pattern="\\" * 60_001),
    schema(type="number", multipleOf=1e-300),
    schema(type="integer", multipleOf=9_999_991),
    schema(type="integer", allOf=[{"multipleOf": number} for number in (997, 991, 983)]),
    schema(**{"$ref": "#"}),
    schema(**{"$ref": "https://example.org/schema.json"}),
    schema(**{"$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/a"}]}}, "$ref": "#/$defs/a"}),
    schema(type="object", properties={f"p{number}": {"type": "string"} for number in range(500)}),
    schema(anyOf=[{"type": "object", "properties": {f"p{n}": {"enum": [n]} for n in range(m)}} for m in range(60)]),
]


@pytest.fixture(scope="module")
def alone(running) -> list[dict]:
    """What an adapter answers while nobody else asks."""
    url = f"{running.url}/v1/chat/completions"
    return httpx.post(url, json=CHAT | {"model": "lora", "max_tokens": 100}, timeout=60).json()["choices"]


@pytest.mark.slow
@pytest.mark.parametrize("hard", HARD, ids=lambda hard: json.dumps(hard)[:50])
def test_others_get_their_answers(running, alone, hard):
    url = f"{running.url}/v1/chat/completions"
    with ThreadPoolExecutor(2) as clients:
        other = clients.submit(httpx.post, url, json=CHAT | {"model": "lora", "max_tokens": 100}, timeout=60)
        response = clients.submit(httpx.post, url, json=CHAT | hard, timeout=60).result()
    assert response.status_code in (200, 400, 429), response.text
    assert other.result().json()["choices"] == alone
