"""`/v1/usage`: a tenant sees what it has used, the operator what each has."""

from __future__ import annotations

from halka.engine import Answer, Request
from halka.server.guards.keys import Limits
from halka.server.guards.usage import OTHER, Usage
from serving_for_tests import InProcess

CHAT = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}


def ask(server: InProcess, headers: dict[str, str], model: str, **more) -> dict:
    response = server.client.post("/v1/chat/completions", json={**CHAT, "model": model, **more}, headers=headers)
    assert response.status_code == 200, response.text
    return response.json()["usage"]


def test_a_tenant_sees_its_own(server):
    main, acme = server.key("main", "user", limits=Limits(storage=5000)), server.key("acme", "user")
    first, second = ask(server, main, "lora", n=2), ask(server, main, "lora")
    ask(server, main, "tiny")
    ask(server, acme, "tiny")
    usage = server.client.get("/v1/usage", headers=main).json()
    assert (usage["object"], usage["since"], usage["tenant"]) == ("usage", server.service.created, "main")
    base, lora = usage["adapters"]
    assert (base["adapter"], base["requests"]) == (None, 1)
    assert lora == {
        "adapter": "lora",
        "requests": 2,
        "prompt_tokens": first["prompt_tokens"] + second["prompt_tokens"],
        "cached_tokens": lora["cached_tokens"],
        "completion_tokens": first["completion_tokens"] + second["completion_tokens"],
        "answers": lora["answers"],
    }
    assert sum(lora["answers"].values()) == 3
    stored = sum(
        path.stat().st_size for path in server.service.tenants.of("main").store.folder.rglob("*") if path.is_file()
    )
    assert usage["storage"] == {"used": stored, "allowed": 5000}
    assert usage["tenants"] is None
    other = server.client.get("/v1/usage", headers=acme).json()
    assert [entry["requests"] for entry in other["adapters"]] == [1]
    assert other["storage"] == {"used": 0, "allowed": 10 * 10**9}
    assert "lora" not in str(other)


def test_a_cached_prompt_counts_once_however_many_answers_it_has(server):
    """The first of them reads it, which the others find in the cache."""
    long = [{"role": "user", "content": "Hello " * 20}]
    ask(server, {}, "lora", n=4, messages=long)
    (lora,) = server.client.get("/v1/usage").json()["adapters"]
    assert (lora["prompt_tokens"] > 20, lora["cached_tokens"]) == (True, 0)
    assert 'halka_tokens_total{adapter="lora",kind="cached"} 0.0' in server.client.get("/metrics").text
    again = ask(server, {}, "lora", n=4, messages=long)
    (lora,) = server.client.get("/v1/usage").json()["adapters"]
    assert 0 < lora["cached_tokens"] == again["prompt_tokens_details"]["cached_tokens"] <= again["prompt_tokens"]


def test_what_is_refused_is_not_counted(server):
    key = server.key("main", "user", limits=Limits(tokens=2000))
    before = server.client.get("/v1/usage", headers=key).json()["adapters"]
    for _ in range(4):
        wrong = {"model": "tiny", "prompt": [5] * 600, "max_tokens": 1, "logit_bias": {"99999999": 1}}
        assert server.client.post("/v1/completions", json=wrong, headers=key).status_code == 400
        too_long = wrong | {"prompt": [5] * 2000, "logit_bias": {}}
        assert server.client.post("/v1/completions", json=too_long, headers=key).status_code in (400, 429)
        batch = {"model": "tiny", "prompt": [[5] * 9, [5] * 9, [5] * 9], "max_tokens": 900}  # of which two have room
        assert server.client.post("/v1/completions", json=batch, headers=key).status_code in (400, 429)
    assert server.client.get("/v1/usage", headers=key).json()["adapters"] == before
    metrics = server.client.get("/metrics", headers=server.key("main", "monitor")).text
    assert 'finish="cancelled"' not in metrics
    ask(server, key, "tiny")


def test_the_operator_sees_each_tenants(server):
    acme = server.key("acme", "admin")
    ask(server, acme, "tiny")
    usage = server.client.get("/v1/usage", headers=server.key("main", "admin")).json()
    tenants = {entry["tenant"]: entry for entry in usage["tenants"]}
    assert [entry["requests"] for entry in tenants["acme"]["adapters"]] == [1]
    assert tenants["main"]["storage"]["used"] == usage["storage"]["used"] > 0
    assert server.client.get("/v1/usage", headers=acme).json()["tenants"] is None
    assert server.client.get("/v1/usage", headers=server.key("main", "monitor")).status_code == 403


def test_what_is_stored_is_not_counted_at_each_request(server):
    folder = server.service.tenants.of("main").store.folder
    before = server.client.get("/v1/usage").json()["storage"]["used"]
    (folder / "more").write_bytes(b" " * 100)
    assert server.client.get("/v1/usage").json()["storage"]["used"] == before
    server.service.stored.clear()
    assert server.client.get("/v1/usage").json()["storage"]["used"] == before + 100


def test_names_are_bounded():
    usage = Usage(2)
    for name in ("a", "b", "c", "d"):
        usage.count(Request([1, 2], f"acme/{name}", tenant="acme"), 1, [])
    entries = usage.of("acme")
    assert [(entry["adapter"], entry["requests"]) for entry in entries] == [(OTHER, 2), ("a", 1), ("b", 1)]
    assert usage.of("nobody") == []


def test_what_did_not_begin_was_cancelled_and_what_failed_is_an_error():
    usage, request = Usage(2), Request([1, 2], None, tenant="acme")
    answer = Answer(request)
    answer.finish = "error"
    usage.count(request, 3, [answer])
    (entry,) = usage.of("acme")
    assert entry["answers"] == {"stop": 0, "length": 0, "cancelled": 2, "error": 1}
