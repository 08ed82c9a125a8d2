"""Responses without a memory: text and calls as items, and the events that say how they come to be."""

from __future__ import annotations

import json

import pytest

from serving_for_tests import PARIS, WEATHER, InProcess, make_base
from tokenizers_for_tests import hermes_tokenizer

BODY = {"model": "lora", "input": "What is the capital of France?", "max_output_tokens": 8, "store": False}
FLAT = {"type": "function", **WEATHER["function"]}


def respond(client, **more):
    answer = client.post("/v1/responses", json=BODY | more)
    assert answer.status_code == 200, answer.text
    return answer.json()


def events(client, **more):
    answer = client.post("/v1/responses", json=BODY | more | {"stream": True})
    assert answer.status_code == 200, answer.text
    parsed = []
    for part in answer.content.split(b"\n\n")[:-1]:
        name, data = part.split(b"\n")
        parsed.append(json.loads(data.removeprefix(b"data: ")))
        assert name == b"event: " + parsed[-1]["type"].encode()
    assert [event["sequence_number"] for event in parsed] == [*range(len(parsed))]
    return parsed


def text_of(response):
    return "".join(part["text"] for item in response["output"] if item["type"] == "message" for part in item["content"])


def test_it_says_what_chat_says(visitor):
    chat = {"model": "lora", "messages": [{"role": "user", "content": BODY["input"]}], "max_tokens": 8}
    expected = visitor.post("/v1/chat/completions", json=chat).json()
    response = respond(visitor)
    assert text_of(response) == expected["choices"][0]["message"]["content"]
    assert response["object"] == "response"
    assert response["store"] is False
    assert response["system_fingerprint"] == expected["system_fingerprint"] is not None
    assert response["usage"]["input_tokens"] == expected["usage"]["prompt_tokens"]
    assert response["usage"]["output_tokens"] == expected["usage"]["completion_tokens"]
    status = {"length": "incomplete", "stop": "completed"}[expected["choices"][0]["finish_reason"]]
    assert response["status"] == response["output"][0]["status"] == status


def test_the_whole_history_is_the_input(visitor):
    history = [
        {"role": "user", "content": "Hello"},
        {"type": "message", "role": "assistant", "id": "msg_1", "status": "completed"}
        | {"content": [{"type": "output_text", "text": "Yes?", "annotations": [], "logprobs": []}]},
        {"role": "user", "content": [{"type": "input_text", "text": "Why?"}]},
    ]
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Yes?"},
        {"role": "user", "content": "Why?"},
    ]
    answer = visitor.post("/v1/chat/completions", json={"model": "lora", "messages": messages, "max_tokens": 8}).json()
    response = respond(visitor, input=history, instructions="Be brief.")
    assert text_of(response) == answer["choices"][0]["message"]["content"]
    assert response["usage"]["input_tokens"] == answer["usage"]["prompt_tokens"]


def test_events_of_a_text(visitor):
    parsed = events(visitor)
    kinds = [event["type"] for event in parsed]
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert kinds[-4:-1] == ["response.output_text.done", "response.content_part.done", "response.output_item.done"]
    assert {*kinds[4:-4]} == {"response.output_text.delta"}
    last = parsed[-1]["response"]
    assert kinds[-1] == f"response.{last['status']}"
    assert "".join(event["delta"] for event in parsed[4:-4]) == text_of(last) == text_of(respond(visitor))
    assert parsed[0]["response"]["output"] == []
    assert len({event["item_id"] for event in parsed[3:-2]}) == 1


def test_calls_are_items_of_their_own(tmp_path):
    base = make_base(tmp_path / "hermes", hermes_tokenizer())
    with InProcess.open(base, None, tmp_path / "data", says=[f"I look. {PARIS}"]) as server:
        more = {"model": "hermes", "tools": [FLAT]}
        message, call = respond(server.client, **more)["output"]
        assert message["content"][0]["text"] == "I look."
        assert (call["type"], call["name"], json.loads(call["arguments"])) == (
            "function_call",
            "weather",
            {"city": "Paris"},
        )
        kinds = [event["type"] for event in events(server.client, **more)]
        assert kinds[-5:] == [
            "response.output_item.added",
            "response.function_call_arguments.delta",
            "response.function_call_arguments.done",
            "response.output_item.done",
            "response.completed",
        ]
        history = [
            {"role": "user", "content": "Is it warm?"},
            message,
            call,
            {"type": "function_call_output", "call_id": call["call_id"], "output": "25 degrees"},
        ]
        respond(server.client, **more, input=history)
        prompt = server.service.tokenizer.decode(server.service.engine.asked[-1].prompt)
        assert "I look.<tool_call>" in prompt
        assert "25 degrees" in prompt


@pytest.mark.parametrize(
    ("says", "kinds"),
    [(PARIS, ["function_call"]), (f"<to do {PARIS}", ["message", "function_call"]), (" ", ["message"])],
    ids=["a call alone", "after words that could begin one", "nothing"],
)
def test_log_probabilities_of_a_call_make_no_message(tmp_path, says, kinds):
    base = make_base(tmp_path / "hermes", hermes_tokenizer())
    with InProcess.open(base, None, tmp_path / "data", says=[says]) as server:
        more = {"model": "hermes", "tools": [FLAT], "include": ["message.output_text.logprobs"]}
        output = respond(server.client, **more)["output"]
        assert [item["type"] for item in output] == kinds
        for item in output[: kinds.count("message")]:
            assert item["content"][0]["logprobs"][0]["logprob"] == 0, "the first token's, whose text came later"
        added = [event for event in events(server.client, **more) if event["type"] == "response.output_item.added"]
        assert [event["item"]["type"] for event in added] == kinds


def test_a_format_is_enforced(base, tmp_path):
    schema = {"type": "object", "properties": {"yes": {"type": "boolean"}}, "required": ["yes"]}
    with InProcess.open(base, None, tmp_path / "data", says=["{}"]) as server:
        form = {"type": "json_schema", "name": "answer", "schema": schema, "strict": True}
        response = respond(server.client, model="tiny", text={"format": form})
        assert server.service.engine.asked[0].constraint.schema == schema
        assert {**form, "description": None} == response["text"]["format"]


def test_log_probabilities_where_they_are_included(visitor):
    response = respond(visitor, include=["message.output_text.logprobs"], top_logprobs=2)
    (part,) = response["output"][0]["content"]
    assert b"".join(bytes(token["bytes"]) for token in part["logprobs"]).decode(errors="replace") == part["text"]
    assert respond(visitor)["output"][0]["content"][0]["logprobs"] == []


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"store": None}, "store"),
        ({"store": True}, "store"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"background": True}, "background"),
        ({"reasoning": {"effort": "high"}}, "reasoning"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"tools": [FLAT], "text": {"format": {"type": "json_object"}}}, "text.format"),
    ],
    ids=str,
)
def test_what_is_not_supported_is_named(visitor, change, param):
    answer = visitor.post("/v1/responses", json=BODY | change)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["param"].startswith(param)
    assert param in error["message"]
