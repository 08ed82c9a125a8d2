"""Every error has OpenAI's shape, names what is wrong, and no folder, trace or other tenant."""

from __future__ import annotations

import pytest

from halka.server.errors import public, refusal
from halka.server.guards.access import Caller
from halka.util.errors import HalkaError, OutOfMemoryError, PinnedFullError, StoreAwayError

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}


def refused(answer, status=400):
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(answer.json()) == {"error"}
    assert set(error) == {"message", "type", "param", "code"}
    return error


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"model": None}, "model"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "messages.0"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages.0.role"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"temperature": 3}, "temperature"),
        ({"n": 0}, "n"),
        ({"stop": ""}, "stop"),
        ({"audio": {"voice": "x"}}, "audio"),
        ({"store": True}, "store"),
        ({"unheard_of": 1}, "unheard_of"),
    ],
)
def test_what_is_wrong_is_named(visitor, change, param):
    error = refused(visitor.post("/v1/chat/completions", json=CHAT | change))
    assert error["param"].startswith(param)
    assert error["type"] == "invalid_request_error"
    assert param.rpartition(".")[2] in error["message"] or param in error["message"]


IMAGE = {"type": "image_url", "image_url": {"url": "x"}}
CACHED = {"type": "text", "text": "hi", "cache_control": {"type": "ephemeral"}}


@pytest.mark.parametrize(
    ("path", "change", "param", "why"),
    [
        ("chat/completions", {"messages": [{"role": "user", "content": [IMAGE]}]}, "messages.0.content.0", ""),
        (
            "chat/completions",
            {"messages": [{"role": "user", "content": [CACHED]}]},
            "messages.0.content.0.cache_control",
            "unknown parameter",
        ),
        ("chat/completions", {"messages": [{"role": "user", "content": 5}]}, "messages.0.content", "string"),
        ("chat/completions", {"messages": [{"content": "x"}]}, "messages.0.role", "required"),
        ("chat/completions", {"stop": ["a"] * 17}, "stop", "at most 16"),
        ("chat/completions", {"stop": ["a", ""]}, "stop.1", ""),
        (
            "responses",
            {"messages": None, "input": [{"role": "user", "content": "x", "foo": 1}]},
            "input.0.foo",
            "unknown",
        ),
        ("responses", {"messages": None, "input": [{"type": "reasoning", "summary": []}]}, "input.0", "reasoning"),
    ],
)
def test_a_field_of_several_types_is_named_by_what_was_sent(visitor, path, change, param, why):
    body = {key: value for key, value in (CHAT | change).items() if value is not None}
    if path == "responses":
        body = {key: body[key] for key in ("model", "input")} | {"store": False}
    error = refused(visitor.post(f"/v1/{path}", json=body))
    assert error["param"].startswith(param)
    assert why in error["message"]
    assert ".str" not in error["message"]
    assert "constrained" not in error["message"]


def test_a_body_that_is_no_json(visitor):
    for body in (b"", b"{", b'{"model": ' + b"[" * 100000, b"\xff\xfe", b"[]", b"null"):
        refused(visitor.post("/v1/chat/completions", content=body, headers={"content-type": "application/json"}))


def test_no_route_and_no_method(visitor):
    assert refused(visitor.get("/v1/nothing"), 404)["code"] == "not_found"
    assert refused(visitor.get("/v1/chat/completions"), 405)["code"] == "method_not_allowed"


def test_an_unknown_model(visitor):
    for name in ("nobody", "../lora", "main/lora", "", "x" * 1000, "a\nb"):
        error = refused(visitor.post("/v1/chat/completions", json=CHAT | {"model": name}), 404)
        assert error["code"] == "model_not_found"
        assert error["param"] == "model"


def test_a_prompt_that_is_too_long(visitor):
    error = refused(visitor.post("/v1/chat/completions", json=CHAT | {"max_tokens": 5000}))
    assert "positions" in error["message"]


def test_a_damaged_adapter_fails_its_own_requests_and_names_no_folder(server, store):
    (weights,) = (store / "lora").rglob("*.safetensors")
    weights.write_bytes(b"damaged")
    error = refused(server.client.post("/v1/chat/completions", json=CHAT | {"model": "lora"}))
    assert "damaged" in error["message"]
    assert str(store) not in error["message"]
    assert "/" not in error["message"]
    assert server.client.post("/v1/chat/completions", json=CHAT | {"model": "prefix"}).status_code == 200


@pytest.mark.parametrize(
    ("kind", "status", "code"),
    [
        (HalkaError, 409, "wrong_status"),
        (OutOfMemoryError, 503, "out_of_memory"),
        (PinnedFullError, 503, "adapters_pinned"),
    ],
)
def test_memory_that_is_full_is_no_fault_of_what_was_asked_for(kind, status, code):
    refused = refusal(kind("no room"), 409, param="name", code="wrong_status")
    assert (refused.status, refused.code, refused.message) == (status, code, "no room")


def test_where_a_collection_is_kept_is_for_the_log_alone(caplog):
    refused = refusal(StoreAwayError("PostgreSQL at db.example.org cannot be used"), param="messages")
    assert (refused.status, refused.code, refused.param) == (503, "documents_away", None)
    assert "example.org" not in refused.message
    assert "example.org" in caplog.text


def test_paths_and_tenants_leave_messages():
    assert public("/home/me/store/lora/1 is damaged: fetch it") == "1 is damaged: fetch it"
    assert (
        public("adapter 'acme/lora' of '/a/b/c.json', and C:\\x\\y\\z", Caller("acme"))
        == "adapter 'lora' of 'c.json', and z"
    )
    assert public("schema at #/properties/a/b: no") == "schema at #/properties/a/b: no"
    assert public("GET /v1/models lists them") == "GET /v1/models lists them"
    assert public("halka-server/uploads/3f/halka.json is no Card") == "halka.json is no Card"
    assert public("GET /v1/models of 'v1/lora' lists", Caller("v1")) == "GET /v1/models of 'lora' lists"
    for words in ("org/Name-1.7B has no 0.5/1.5", "see https://example.org/a/b.html", "either/or"):
        assert public(words) == words
