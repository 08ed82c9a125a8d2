"""The whole application: every route of it is guarded, limited, and frees what it holds."""

from __future__ import annotations

import asyncio
import json
import re
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.routing import BaseRoute, Mount, Route

from halka.server.guards.access import OPEN, SESSION, is_open
from halka.server.guards.keys import Keys, Limits, Role
from halka.server.guards.metrics import Metrics
from halka.server.guards.sessions import COOKIE
from halka.server.guards.usage import Usage
from serving_for_tests import InProcess, until

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}


def routes(of: list[BaseRoute], above: str = "") -> set[tuple[str, str]]:
    """Every method and path, with something in the place of parameters; also of routers and mounted applications."""
    pairs = set()
    for route in of:
        path = above + filled(getattr(route, "path", None) or "")
        below = getattr(getattr(route, "original_router", route), "routes", None)  # FastAPI's included router keeps it
        pairs |= set() if below is None else routes([*below], path)
        if isinstance(route, Route | Mount):
            pairs |= {(method, path) for method in getattr(route, "methods", None) or {"GET"}}
    return pairs


def without_key(method: str, path: str) -> set[int]:
    """What a request gets that needs no key: what is open, the page or none of its files. Nothing: it needs one."""
    return {200, 405} if path in OPEN else {200, 404} if is_open(method, path) else set()


def filled(path: str) -> str:
    return re.sub(r"\{[^}]*\}", "x", path)


@pytest.fixture
def closed(base, store, tmp_path):
    """A server with keys, and a function that makes one."""
    keys = Keys(tmp_path / "data" / "keys.json")

    def key(role: Role = "user", tenant: str = "main", **limits) -> dict[str, str]:
        return {"authorization": f"Bearer {keys.add(tenant, role, limits=Limits(**limits))[0]}"}

    key()
    with InProcess.open(base, store, tmp_path / "data") as server:
        server.key = key
        yield server


def test_every_route_without_a_key_is_401(closed):
    """All that the application has, and what nobody has written: documentation, files."""
    pairs = routes(closed.client.app.routes)
    schema = closed.client.app.openapi()["paths"]
    assert pairs >= {(method.upper(), filled(path)) for path, methods in schema.items() for method in methods}
    assert pairs >= {("GET", "/metrics"), ("GET", "/openapi.json"), ("POST", "/v1/jobs"), ("POST", "/v1/responses")}
    for method, path in pairs | {("GET", "/docs"), ("GET", "/redoc"), ("GET", "/static/x"), ("PUT", "/v1/models")}:
        status = closed.client.request(method, path).status_code
        if path == SESSION:
            assert status == {"GET": 200, "POST": 400, "DELETE": 403}[method]
            continue
        assert status in (without_key(method, path) or {401}), (method, path, status)


def test_a_users_key_changes_nothing(closed):
    """Whatever adds, replaces, removes or downloads needs a manager's; a search only asks."""
    headers, tried = closed.key("user"), 0
    for method, path in routes(closed.client.app.routes):
        changes = path.startswith(("/v1/adapters", "/v1/collections")) and method != "GET" and "/search" not in path
        if changes or path.startswith("/v1/jobs") or path.endswith(("/archive", "/files/x")):
            assert closed.client.request(method, path, headers=headers).status_code == 403, (method, path)
            tried += 1
    assert tried > 17


def test_the_schema_says_where_a_key_is_needed(closed):
    schema = closed.client.app.openapi()
    key, page = schema["components"]["securitySchemes"].items()
    assert (key[1]["type"], key[1]["scheme"]) == ("http", "bearer")
    assert (page[1]["type"], page[1]["in"], page[1]["name"]) == ("apiKey", "cookie", COOKIE)
    for path, operations in schema["paths"].items():
        for operation in operations.values():
            assert operation.get("security", []) == ([] if path in OPEN else [{key[0]: []}, {page[0]: []}]), path


def test_a_monitor_sees_metrics_alone(closed):
    headers = closed.key("monitor")
    for method, path in routes(closed.client.app.routes):
        if path == SESSION:
            continue
        status = closed.client.request(method, path, headers=headers).status_code
        expected = {200} if path == "/metrics" else without_key(method, path) or {403}
        assert status in expected or status == 405, (method, path, status)


def test_a_key_answers_as_its_tenant(closed):
    main, other = closed.key(), closed.key(tenant="acme")
    names = [model["id"] for model in closed.client.get("/v1/models", headers=main).json()["data"]]
    assert "lora" in names
    names = [model["id"] for model in closed.client.get("/v1/models", headers=other).json()["data"]]
    assert names == ["tiny", "words"]
    for model in ("lora", "main/lora", "../main/lora", "acme/../main/lora"):
        answer = closed.client.post("/v1/chat/completions", json=CHAT | {"model": model}, headers=other)
        assert answer.status_code == 404
        assert "main" not in answer.text.replace(model, "")


def test_a_server_that_others_reach_does_not_start_without_keys(base, store, tmp_path):
    from halka.util.errors import HalkaError

    with pytest.raises(HalkaError, match=r"host is '0.0.0.0', which others can reach, and there are no keys"):
        InProcess.open(base, store, tmp_path / "data", host="0.0.0.0").__enter__()


def test_health(closed):
    assert closed.client.get("/healthz").json() == {"status": "ok"}
    assert closed.client.get("/readyz").json() == {"status": "ok"}
    closed.service.guards.drain.draining = True
    assert closed.client.get("/healthz").status_code == 200
    assert (closed.client.get("/readyz").status_code, closed.client.get("/readyz").json()) == (
        503,
        {"status": "draining"},
    )


# ── limits ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("stream", [False, True])
def test_n_counts_as_many_answers(closed, stream):
    headers = closed.key(concurrency=4)
    asked = CHAT | {"n": 4, "stream": stream}
    assert closed.client.post("/v1/chat/completions", json=asked, headers=headers).status_code == 200
    refused = closed.client.post("/v1/chat/completions", json=asked | {"n": 5}, headers=headers)
    assert refused.status_code == 400
    assert refused.json()["error"]["code"] == "request_too_large"
    assert closed.service.guards.limiter.answers == 0


@pytest.mark.parametrize("stream", [False, True])
def test_tokens_of_all_answers_count(closed, stream):
    """Those that were reserved and not made go back."""
    headers = closed.key(tokens=200)
    asked = CHAT | {"n": 2, "max_tokens": 40, "stream": stream}
    statuses = [closed.client.post("/v1/chat/completions", json=asked, headers=headers) for _ in range(8)]
    assert statuses[0].status_code == 200
    assert statuses[-1].status_code == 429
    assert 1 <= int(statuses[-1].headers["retry-after"]) <= 60


@pytest.mark.parametrize("stream", [False, True])
def test_every_prompt_of_a_batch_counts(closed, stream):
    asked = {"model": "tiny", "prompt": ["One", "Two", "Three"], "n": 2, "max_tokens": 10, "stream": stream}
    for limits, status in (
        ({"concurrency": 6}, 200),
        ({"concurrency": 5}, 400),
        ({"tokens": 100}, 200),
        ({"tokens": 60}, 400),
    ):
        headers = closed.key(**limits)
        assert closed.client.post("/v1/completions", json=asked, headers=headers).status_code == status, limits
    assert closed.service.guards.limiter.answers == 0
    until(lambda: not closed.service.engine.engine.busy, "what the others had begun goes on")


def test_a_request_that_cannot_be_answered_costs_no_tokens_of_an_answer(closed):
    headers = closed.key(tokens=1000)
    for _ in range(5):
        refused = closed.client.post("/v1/chat/completions", json=CHAT | {"max_tokens": 600}, headers=headers)
        assert refused.status_code == 400
    assert closed.client.post("/v1/chat/completions", json=CHAT, headers=headers).status_code == 200


# ── metrics ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def samples(server: InProcess) -> dict[str, float]:
    """What /metrics says: values by name and labels."""
    text = server.client.get("/metrics").text
    lines = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in lines}


def test_what_is_counted(server):
    for model, n in (("tiny", 1), ("lora", 2), ("prefix", 1)):
        answer = server.client.post("/v1/chat/completions", json=CHAT | {"model": model, "n": n, "seed": 1})
        assert answer.status_code == 200
        if n == 2:
            usage = answer.json()["usage"]
    server.client.post("/v1/chat/completions", json=CHAT | {"model": "nobody"})
    counted = samples(server)
    assert counted['halka_tokens_total{adapter="lora",kind="prompt"}'] == usage["prompt_tokens"]
    assert counted['halka_tokens_total{adapter="lora",kind="completion"}'] == usage["completion_tokens"]
    for name in ("halka_time_to_first_token_seconds", "halka_queue_seconds"):
        assert [counted[f'{name}_count{{adapter="{label}"}}'] for label in ("(base)", "lora", "prefix")] == [1, 2, 1]
    ended = sum(value for name, value in counted.items() if name.startswith("halka_answers_total"))
    assert ended == 4
    assert counted['halka_requests_total{route="/v1/chat/completions",status="404"}'] == 1
    assert counted["halka_adapter_loads_total"] == 2
    assert counted["halka_adapter_evictions_total"] == 0
    assert counted['halka_adapter_bytes{adapter="lora"}'] > 0
    info = 'vllm:lora_requests_info{max_lora="8",running_lora_adapters="",waiting_lora_adapters=""}'
    assert abs(counted[info] - time.time()) < 60


def test_the_time_to_the_first_token_begins_with_the_request(server):
    begun, release = threading.Event(), threading.Event()

    def step() -> None:
        begun.set()
        release.wait()

    held = threading.Thread(target=lambda: asyncio.run(server.service.engine.call(step)))
    asking = threading.Thread(target=lambda: server.client.post("/v1/chat/completions", json=CHAT))
    held.start()
    begun.wait()
    asking.start()
    until(lambda: server.service.guards.limiter.answers > 0, "the request never came")
    time.sleep(0.3)  # the request waits for the engine's step
    release.set()
    held.join()
    asking.join()
    counted = samples(server)
    for name in ("halka_time_to_first_token_seconds", "halka_queue_seconds"):
        assert sum(counted[each] for each in counted if each.startswith(f"{name}_sum")) >= 0.3


def test_labels_are_bounded_and_name_no_tenant(base, store, tmp_path):
    with InProcess.open(base, store, tmp_path / "data", metric_adapters=1) as server:
        for model in ("lora", "prefix", "bottleneck"):
            server.client.post("/v1/chat/completions", json=CHAT | {"model": model})
        counted = samples(server)
        assert counted['halka_tokens_total{adapter="(other)",kind="completion"}'] == 8
        assert counted['halka_tokens_total{adapter="lora",kind="completion"}'] == 4
        assert not [name for name in counted if "main" in name or "prefix" in name]


def test_an_upload_that_is_verified_has_no_label():
    versions = [SimpleNamespace(name=name, bytes=8) for name in ("upload 0123", "main/lora")]
    engine: Any = SimpleNamespace(
        adapters=SimpleNamespace(residents=SimpleNamespace(versions=versions, loads=2, evictions=0))
    )
    counts = Metrics(engine, 8, 1, tenants=False, usage=Usage(1))
    for _ in range(2):
        (loaded,) = [metric for metric in counts.registry.collect() if metric.name == "halka_adapter_bytes"]
        assert [(sample.labels["adapter"], sample.value) for sample in loaded.samples] == [("lora", 8)]


def test_tenants_are_named_if_the_operator_asks(base, store, tmp_path):
    with InProcess.open(base, store, tmp_path / "data", metric_tenants=True) as server:
        server.client.post("/v1/chat/completions", json=CHAT | {"model": "lora"})
        assert samples(server)['halka_answers_total{adapter="main/lora",finish="length"}'] == 1


def test_names_that_clients_make_up_are_in_no_label(server):
    for number in range(20):
        server.client.post("/v1/chat/completions", json=CHAT | {"model": f"made-up-{number}"})
        server.client.get(f"/v1/models/made-up-{number}")
        server.client.get(f"/made-up-{number}")
    assert "made-up" not in server.client.get("/metrics").text


# ── data that is no data ────────────────────────────────────────────────────────────────────────────────────────────

DEEP: dict = {"type": "object"}
for _ in range(200):
    DEEP = {"type": "object", "properties": {"a": DEEP}}


@pytest.mark.parametrize(
    "body",
    [
        '{"model": "tiny", "messages": [{"role": "user", "content": "\\ud800"}]}',
        '{"model": "\\udfff", "messages": [{"role": "user", "content": "Hello"}]}',
        '{"model": "tiny", "messages": [{"role": "user", "content": "Hello"}], "temperature": NaN}',
        '{"model": "tiny", "messages": [{"role": "user", "content": "Hello"}], "temperature": 1e999}',
        '{"model": "tiny", "messages": [{"role": "user", "content": "Hello"}], "seed": 1' + "0" * 5000 + "}",
        '{"model": "tiny", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1' + "0" * 400 + "}",
        '{"model": "tiny", "messages": ' + "[" * 100_000 + "]" * 100_000 + "}",
        json.dumps(CHAT | {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": DEEP}}}),
        json.dumps(CHAT | {"logit_bias": {"9" * 400: 1}}),
        json.dumps(CHAT | {"logit_bias": {str(2**70): 1}}),
        json.dumps(CHAT | {"stop": ["\x00"] * 17}),
        json.dumps(CHAT | {"model": "a/../../etc/passwd\x00"}),
        json.dumps(CHAT | {"n": 10**30}),
        json.dumps(CHAT | {"metadata": {"a": "b" * 10}, "user": ["not", "text"], "messages": [[]]}),
    ],
    ids=range(14),
)
def test_data_that_is_no_data_is_refused(visitor, body):
    for path in ("/v1/chat/completions", "/v1/completions", "/v1/responses"):
        response = visitor.post(path, content=body, headers={"content-type": "application/json"})
        assert 400 <= response.status_code < 500, (path, response.text)
        assert set(response.json()["error"]) == {"message", "type", "param", "code"}


def test_a_form_that_holds_no_json_is_refused(visitor):
    response = visitor.post("/v1/jobs/upload", data={"job": "{"}, files={"data": ("a.jsonl", b"{}")})
    assert response.status_code == 400
    assert "JSON" in response.json()["error"]["message"]


def test_texts_of_every_kind_are_answered(visitor):
    """NUL, halves of pairs that are whole, marks that change the direction, and what looks like the template's own."""
    for text in ("\x00", "\U0001f600", "\u202e\u2028", "<|im_end|>", "{{ 7*7 }}", "a" * 50, "\ufeff", "́" * 20):
        asked = CHAT | {"messages": [{"role": "user", "content": text}]}
        assert visitor.post("/v1/chat/completions", json=asked).status_code == 200, text
