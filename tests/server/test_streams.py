"""Streams have the form that OpenAI's have, chunk by chunk, and say what whole answers say."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import replace

import pytest
from starlette.testclient import TestClient

from halka.server.app import create_app
from serving_for_tests import InProcess, Scripted, open_service

BODY = {"model": "lora", "messages": [{"role": "user", "content": "What is the capital of France?"}], "max_tokens": 9}


def chunks(client, **more) -> list[dict]:
    """Of a stream whose last event is [DONE]."""
    answer = client.post("/v1/chat/completions", json=BODY | {"stream": True} | more)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    *events, done, nothing = answer.content.split(b"\n\n")
    assert (done, nothing) == (b"data: [DONE]", b"")
    return [json.loads(event.removeprefix(b"data: ")) for event in events]


def whole(client, **more) -> dict:
    answer = client.post("/v1/chat/completions", json=BODY | more)
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.mark.parametrize(
    "more",
    [{}, {"n": 3, "temperature": 1, "seed": 5}, {"stop": ["a", "e"]}, {"max_tokens": 1}, {"logprobs": True, "n": 2}],
    ids=str,
)
def test_a_stream_says_what_the_whole_answer_says(client, more):
    texts, finishes, tokens = defaultdict(str), {}, defaultdict(list)
    for chunk in chunks(client, **more):
        (choice,) = chunk["choices"]
        texts[choice["index"]] += choice["delta"].get("content", "")
        tokens[choice["index"]] += (choice["logprobs"] or {}).get("content", [])
        if choice["finish_reason"]:
            finishes[choice["index"]] = choice["finish_reason"]
    choices = whole(client, **more)["choices"]
    assert [choice["index"] for choice in choices] == [*range(more.get("n", 1))]
    assert {choice["index"]: choice["message"]["content"] for choice in choices} == texts
    assert {choice["index"]: choice["finish_reason"] for choice in choices} == finishes
    for choice in choices:
        ours = (choice["logprobs"] or {"content": []})["content"]
        assert [token["token"] for token in ours] == [token["token"] for token in tokens[choice["index"]]]


class LastFirst(Scripted):
    """The last of a request's answers comes first."""

    async def follow(self, request, n=1, *, pieces=True):
        for answer in reversed({answer: None async for answer in super().follow(request, n)}):
            yield answer


@pytest.mark.parametrize("path", ["chat/completions", "completions"])
def test_a_choice_is_numbered_as_its_answer_whichever_comes_first(base, tmp_path, path):
    service = open_service(base, None, tmp_path / "data")
    texts = ["Paris", "Dhaka", "Lomé"]
    app = create_app(replace(service, backend=LastFirst(service.engine, texts)))
    body = {**BODY, "prompt": "Where?"} if path == "completions" else BODY
    body = {key: value for key, value in body.items() if path != key.replace("messages", "completions")}
    with TestClient(app, base_url="http://127.0.0.1:8000") as client:
        choices = client.post(f"/v1/{path}", json=body | {"model": service.name, "n": 3}).json()["choices"]
        streamed = client.post(f"/v1/{path}", json=body | {"model": service.name, "n": 3, "stream": True}).text
    own = [choice.get("text") or choice["message"]["content"] for choice in choices]
    assert (own, [choice["index"] for choice in choices]) == (texts, [0, 1, 2])
    pieces = defaultdict(str)
    for event in streamed.split("\n\n")[:-2]:
        (choice,) = json.loads(event.removeprefix("data: "))["choices"]
        pieces[choice["index"]] += choice.get("text") or choice.get("delta", {}).get("content", "")
    assert pieces == dict(enumerate(texts))


def test_every_chunk_has_the_form_that_clients_expect(client):
    all_of_them = chunks(client, n=2, temperature=1)
    assert len({chunk["id"] for chunk in all_of_them}) == 1
    ended = []
    for chunk in all_of_them:
        assert set(chunk) == {"id", "object", "created", "model", "system_fingerprint", "choices"}
        assert chunk["object"] == "chat.completion.chunk"
        (choice,) = chunk["choices"]
        assert set(choice) == {"index", "delta", "logprobs", "finish_reason"}
        assert choice["logprobs"] is None
        assert "tool_calls" not in choice["delta"]
        assert choice["index"] not in ended, "nothing follows a finish_reason"
        if choice["finish_reason"] is not None:
            assert choice["delta"] == {}
            ended.append(choice["index"])
    assert sorted(ended) == [0, 1]
    for index in (0, 1):
        first = next(chunk["choices"][0] for chunk in all_of_them if chunk["choices"][0]["index"] == index)
        assert first["delta"] == {"role": "assistant", "content": ""}


def test_usage_is_a_chunk_of_its_own_without_choices(client):
    *others, last = chunks(client, stream_options={"include_usage": True})
    assert all(chunk["usage"] is None and len(chunk["choices"]) == 1 for chunk in others)
    assert last["choices"] == []
    assert last["usage"] == {
        **whole(client)["usage"],
        "prompt_tokens_details": last["usage"]["prompt_tokens_details"],
    }
    assert all("usage" not in chunk for chunk in chunks(client, stream_options={"include_usage": False}))


def test_usage_comes_with_every_chunk_where_a_client_asks(client):
    options = {"include_usage": True, "continuous_usage_stats": True}
    *others, last = chunks(client, stream_options=options)
    counts = [chunk["usage"]["completion_tokens"] for chunk in others]
    assert counts == sorted(counts)
    assert counts[-1] == last["usage"]["completion_tokens"]
    assert {chunk["usage"]["prompt_tokens"] for chunk in (*others, last)} == {whole(client)["usage"]["prompt_tokens"]}
    options["include_usage"] = False
    assert all("usage" not in chunk for chunk in chunks(client, stream_options=options))


def test_cached_tokens_are_told(client):
    assert whole(client)["usage"]["prompt_tokens_details"] == {"cached_tokens": 0}
    usage = whole(client)["usage"]
    assert 0 < usage["prompt_tokens_details"]["cached_tokens"] < usage["prompt_tokens"]


def test_what_fails_at_once_is_an_error_and_no_stream(client):
    for change, status in (({"model": "nobody"}, 404), ({"max_tokens": 10**6}, 400)):
        answer = client.post("/v1/chat/completions", json=BODY | {"stream": True} | change)
        assert answer.status_code == status
        assert "error" in answer.json()


def test_what_fails_later_is_the_last_event(base, tmp_path):
    secret = RuntimeError("a secret of /var/lib")
    with InProcess.open(base, None, tmp_path / "data", says=[secret]) as server:
        body = BODY | {"model": "tiny", "stream": True}
        response = server.client.post("/v1/chat/completions", json=body)
        *_, begun, last, nothing = response.content.split(b"\n\n")
        assert json.loads(begun.removeprefix(b"data: "))["choices"][0]["delta"]["content"] == "un"
        assert json.loads(last.removeprefix(b"data: "))["error"]["type"] == "server_error"
        assert (nothing, b"secret" in last) == (b"", False)
        assert response.headers["x-request-id"].encode() in last, "the log has it under that id"
        body = {"model": "tiny", "input": "x", "store": False, "stream": True}
        response = server.client.post("/v1/responses", json=body)
        last = response.content.split(b"\n\n")[-2]
        assert last.startswith(b"event: error\ndata: ")
        assert response.headers["x-request-id"].encode() in last
        assert server.client.post("/v1/chat/completions", json=BODY | {"model": "tiny"}).status_code == 500
