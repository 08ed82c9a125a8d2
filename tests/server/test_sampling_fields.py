"""The fields that choose tokens reach the engine: seeds, penalties, biases, stops, log probabilities, formats."""

from __future__ import annotations

import json

import pytest

BODY = {"model": "lora", "messages": [{"role": "user", "content": "How do I reset my password?"}], "max_tokens": 12}


def ask(client, **more):
    answer = client.post("/v1/chat/completions", json=BODY | more)
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"]


def text(client, **more):
    return ask(client, **more)[0]["message"]["content"]


def test_a_seed_draws_the_same_again(visitor):
    drawn = text(visitor, temperature=1, seed=7)
    assert drawn == text(visitor, temperature=1, seed=7)
    assert {text(visitor, temperature=1, seed=seed) for seed in range(5)} != {drawn}
    several = [choice["message"]["content"] for choice in ask(visitor, temperature=1, seed=7, n=3)]
    assert several == [text(visitor, temperature=1, seed=seed) for seed in (7, 8, 9)]
    assert text(visitor, temperature=1, seed=-1) == text(visitor, temperature=1, seed=-1)


def test_a_bias_forbids_and_demands(server):
    token = server.service.tokenizer("Paris", add_special_tokens=False)["input_ids"][0]
    piece = server.service.tokenizer.decode([token])
    assert text(server.client, logit_bias={str(token): 100}, max_tokens=4) == piece * 4
    (choice,) = ask(server.client, logprobs=True, max_tokens=1)
    first = choice["logprobs"]["content"][0]["token"]
    ids = {server.service.token_texts.text(number): number for number in range(len(server.service.tokenizer))}
    (choice,) = ask(server.client, logit_bias={str(ids[first]): -100}, logprobs=True, max_tokens=1)
    assert choice["logprobs"]["content"][0]["token"] != first


def test_biases_are_bounded(visitor):
    refused = visitor.post("/v1/chat/completions", json=BODY | {"logit_bias": {str(token): 0 for token in range(1025)}})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "logit_bias")
    assert "1024" in refused.json()["error"]["message"]


def test_stop_strings_are_bounded(visitor):
    for path, body in (("chat/completions", BODY), ("completions", {"model": "lora", "prompt": "a", "max_tokens": 1})):
        assert visitor.post(f"/v1/{path}", json=body | {"stop": ["a" * 1000]}).status_code == 200
        for stop in ("a" * 1001, ["a", "a" * 1001]):
            refused = visitor.post(f"/v1/{path}", json=body | {"stop": stop})
            assert refused.status_code == 400
            assert "1000 characters" in refused.json()["error"]["message"]


def test_penalties_change_what_repeats(server):
    token = server.service.tokenizer("Paris", add_special_tokens=False)["input_ids"][0]
    piece = server.service.tokenizer.decode([token])
    bias = {"logit_bias": {str(token): 2}, "max_tokens": 12}
    often = text(server.client, **bias).count(piece)
    assert text(server.client, **bias, frequency_penalty=2, presence_penalty=2).count(piece) <= often
    raised = {"logit_bias": {str(token): 100, str(token + 1): 90}, "max_tokens": 2}
    assert text(server.client, **raised) == piece * 2
    other = server.service.tokenizer.decode([token + 1])
    assert text(server.client, **raised, repetition_penalty=2) == piece + other


def test_an_answer_of_a_set_length_ignores_end_tokens(server):
    end = sorted(server.service.engine.engine.ends)[0]
    bias = {"logit_bias": {str(end): 100}, "max_tokens": 6}
    assert ask(server.client, **bias)[0]["finish_reason"] == "stop"
    assert ask(server.client, **bias, ignore_eos=True)[0]["finish_reason"] == "length"
    format = {"response_format": {"type": "json_object"}, "ignore_eos": True}
    refused = server.client.post("/v1/chat/completions", json=BODY | format)
    assert (refused.status_code, refused.json()["error"]["message"]) == (
        400,
        "a constrained answer ends where its constraint does: it cannot ignore end tokens",
    )


def test_a_stop_is_left_out(visitor):
    whole = text(visitor)
    stop = whole[3:5]
    assert text(visitor, stop=stop) == whole[: whole.index(stop)]
    assert ask(visitor, stop=[stop, "never"])[0]["finish_reason"] == "stop"


def test_log_probabilities_of_tokens(visitor):
    (choice,) = ask(visitor, logprobs=True, top_logprobs=3)
    content = choice["logprobs"]["content"]
    assert choice["logprobs"]["refusal"] is None
    assert b"".join(bytes(token["bytes"]) for token in content).decode(errors="replace") == choice["message"]["content"]
    for token in content:
        assert set(token) == {"token", "logprob", "bytes", "top_logprobs"}
        assert len(token["top_logprobs"]) == 3
        assert token["top_logprobs"][0]["logprob"] == pytest.approx(token["logprob"])
    assert ask(visitor, logprobs=True)[0]["logprobs"]["content"][0]["top_logprobs"] == []


def test_json_objects_and_schemas(visitor):
    try:
        made = json.loads(text(visitor, response_format={"type": "json_object"}, max_tokens=200, temperature=1, seed=2))
        assert isinstance(made, dict)
    except json.JSONDecodeError:
        pytest.fail("no JSON, or not finished")
    schema = {
        "type": "object",
        "properties": {"stars": {"type": "integer", "minimum": 1, "maximum": 5}},
        "required": ["stars"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "rating", "schema": schema, "strict": True}}
    (choice,) = ask(visitor, response_format=form, max_tokens=60)
    assert json.loads(choice["message"]["content"])["stars"] in range(1, 6)
    assert choice["finish_reason"] == "stop"
    assert text(visitor, response_format={"type": "text"}) == text(visitor)


def test_a_schema_that_cannot_be_enforced_is_refused_by_its_keyword(visitor):
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "string", "formatt": "date"}}}
    answer = visitor.post("/v1/chat/completions", json=BODY | {"response_format": form})
    assert answer.status_code == 400
    assert "formatt" in answer.json()["error"]["message"]
