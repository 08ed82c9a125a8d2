"""Chat answers are the engine's, by the adapter that `model` names."""

from __future__ import annotations

import json

import pytest

import halka
from engine_for_tests import alone
from halka.engine import Request, Stopping
from halka.storage.adapter_folder import AdapterFolder

MESSAGES = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="module")
def expected(base, stored):
    """The text of each model's greedy answer, without an engine."""
    model = halka.adapt(*halka.load_base(base, dtype="float32"))
    texts = {}
    for name in (None, "lora", "prefix", "bottleneck"):
        if name is not None:
            halka.load(model, stored / name / "1", name=name)
        request = Request.of(MESSAGES, model.tokenizer, adapter=name, stopping=Stopping(8))
        texts[name or "tiny"] = model.tokenizer.decode(alone(model, request), skip_special_tokens=True)
    return texts


def ask(client, **more):
    answer = client.post("/v1/chat/completions", json={"model": "tiny", "messages": MESSAGES, "max_tokens": 8} | more)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_each_model_answers_by_its_own_adapter(visitor, expected):
    assert len({*expected.values()}) == 4
    for name, text in expected.items():
        answer = ask(visitor, model=name)
        assert answer["object"] == "chat.completion"
        assert answer["model"] == name
        (choice,) = answer["choices"]
        assert choice["message"]["role"] == "assistant"
        assert choice["message"]["content"] == text
        assert choice["finish_reason"] in ("stop", "length")
        assert choice["logprobs"] is None
        assert answer["usage"]["total_tokens"] == sum(
            answer["usage"][key] for key in ("prompt_tokens", "completion_tokens")
        )


def test_null_is_as_good_as_nothing(visitor, expected):
    fields = (
        "temperature",
        "top_p",
        "n",
        "stop",
        "seed",
        "stream",
        "logit_bias",
        "max_completion_tokens",
        "user",
        "store",
    )
    assert ask(visitor, **dict.fromkeys(fields))["choices"][0]["message"]["content"] == expected["tiny"]


def test_content_in_parts_and_other_roles(visitor, expected):
    parts = [{"role": "user", "content": [{"type": "text", "text": MESSAGES[0]["content"]}]}]
    assert ask(visitor, messages=parts)["choices"][0]["message"]["content"] == expected["tiny"]
    assert ask(visitor, messages=[{"role": "developer", "content": "Be brief."}, *MESSAGES])["choices"]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_answers_name_the_content_that_made_them(visitor, stored, path):
    ask = {"max_tokens": 3} | ({"messages": MESSAGES} if "chat" in path else {"prompt": "Paris is"})
    for name in ("tiny", "lora", "prefix"):
        id = None if name == "tiny" else AdapterFolder.open(stored / name / "1").id
        whole = visitor.post(path, json=ask | {"model": name})
        assert whole.json()["system_fingerprint"] == id
        events = visitor.post(path, json=ask | {"model": name, "stream": True}).text.split("\n\n")
        chunks = [json.loads(event[6:]) for event in events if event.startswith("data: {")]
        assert {chunk["system_fingerprint"] for chunk in chunks} == {id}


def test_without_max_tokens_an_answer_has_what_the_prompt_leaves(visitor):
    """Of an adapter that nobody has loaded, too, whose virtual tokens take positions."""
    tokens = ask(visitor, model="prefix", max_tokens=None)["usage"]
    assert tokens["prompt_tokens"] < tokens["total_tokens"] <= 512 - 4


def test_a_conversation_that_is_too_long_has_the_code_that_openais_has(visitor):
    """Before the engine takes it, and once an adapter is loaded whose virtual tokens take positions."""
    long = {"messages": [{"role": "user", "content": "a b c d " * 200}], "max_tokens": 8}
    for model in ("tiny", "prefix"):
        refused = visitor.post("/v1/chat/completions", json=long | {"model": model})
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "context_length_exceeded"), refused.text


def test_a_schema_has_only_so_many_bytes(visitor):
    for bytes, status in ((65_000, 200), (66_000, 400)):
        schema = {"const": "x", "description": "x" * (bytes - 40)}
        form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
        body = {"model": "tiny", "messages": MESSAGES, "max_tokens": 8, "response_format": form}
        answer = visitor.post("/v1/chat/completions", json=body)
        assert answer.status_code == status, answer.text
    assert answer.json()["error"]["param"] == "response_format"
    assert "over the 65,536 that one may have" in answer.json()["error"]["message"]


def test_a_messages_name_changes_nothing(visitor):
    named = [{**message, "name": "Ada"} for message in MESSAGES]
    assert ask(visitor, messages=named)["choices"] == ask(visitor)["choices"]
