"""The outermost layer: ids, headers, the log, errors that nobody expected; draining."""

from __future__ import annotations

import asyncio
import io
import json
import logging

import pytest

from guarded_for_tests import Guarded, until
from halka.server.errors import api_error
from halka.server.guards.logs import LOGGERS, log_to
from halka.util.errors import DamagedFolderError, HalkaError, OutOfMemoryError

HEADERS = ("x-request-id", "x-content-type-options", "content-security-policy", "referrer-policy", "x-frame-options")


@pytest.fixture
def guarded(tmp_path) -> Guarded:
    return Guarded(tmp_path)


@pytest.fixture
def logged():
    """What the server logs, as a function that returns the lines; all loggers are as they were afterwards."""
    before = {name: (logging.getLogger(name).handlers, logging.getLogger(name).propagate) for name in LOGGERS}
    stream = io.StringIO()
    log_to(stream, texts=False)
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    for name, (handlers, propagate) in before.items():
        logging.getLogger(name).handlers, logging.getLogger(name).propagate = handlers, propagate


def test_every_response_has_the_headers(guarded):
    key = guarded.key()
    for path, headers, status in (
        ("/who", key, 200), ("/who", {}, 401), ("/nothing", key, 404), ("/fails", key, 500), ("/healthz", {}, 200),
        ("/echo", key, 405),
    ):  # fmt: skip
        response = guarded.call("GET", path, headers=headers)
        assert response.status_code == status
        assert all(header in response.headers for header in HEADERS)
        assert response.headers["cache-control"] == "no-store"
        assert "server" not in response.headers


def test_an_id_is_the_servers_own(guarded):
    """What a client sends would be in the log."""
    ids = {guarded.call("GET", "/who", headers={"x-request-id": "mine"}).headers["x-request-id"] for _ in range(2)}
    assert len(ids) == 2
    assert "mine" not in ids


def test_an_error_that_nobody_expected_says_nothing(guarded, logged):
    response = guarded.call("GET", "/fails")
    id = response.headers["x-request-id"]
    assert response.json()["error"] == {
        "message": f"the server failed at this request; its log says more of {id}",
        "type": "server_error",
        "param": None,
        "code": "internal_error",
    }
    failed, ended = logged()
    assert (failed["level"], failed["message"], failed["request"]) == ("error", "a request failed", id)
    assert failed["error"] == "ValueError"
    assert failed["trace"][-1].endswith(" fails")
    assert "secret" not in json.dumps(failed), "an error's message may be a piece of a prompt"
    assert ended["status"] == 500


def test_memory_that_runs_out_is_no_fault_of_the_request(logged):
    error = api_error(OutOfMemoryError("out of memory in a step of the engine: lower rows"))
    assert (error.status, error.code, error.message[:13]) == (503, "out_of_memory", "out of memory")
    assert [line["message"] for line in logged()] == ["memory ran out"]


def test_errors_of_the_machine_are_logged_with_their_reason(logged):
    damaged = DamagedFolderError("keys.json does not hold keys: restore it from a backup")
    for error in (OSError(28, "No space left on device"), damaged, ValueError("my secret"), HalkaError("my secret")):
        try:
            raise error
        except Exception as caught:
            logging.getLogger("halka.server").error("failed", exc_info=caught)
    disk, keys, *others = logged()
    assert disk["reason"] == "[Errno 28] No space left on device"
    assert keys["reason"] == str(damaged)
    assert not any("reason" in other for other in others)
    assert len(others) == 2


def test_a_request_is_one_line(guarded, logged):
    headers = guarded.key("manager", "acme")
    (id,) = guarded.keys.all()
    guarded.call("GET", "/v1/models/my%20name?secret=1", headers=headers)
    (line,) = logged()
    assert line.pop("time").endswith("+00:00")
    assert line.pop("seconds") >= 0
    assert len(line.pop("request")) == 32
    assert line == {
        "level": "info",
        "message": "request",
        "method": "GET",
        "route": "/v1/models/{name:path}",
        "status": 200,
        "client": "127.0.0.1",
        "tenant": "acme",
        "key": id,
        "tokens": None,
    }


def test_no_key_is_in_the_log(guarded, logged):
    headers = guarded.key()
    text = headers["authorization"].removeprefix("Bearer ")
    guarded.call("GET", f"/who?key={text}", headers=headers)
    guarded.call("GET", f"/{text}", headers=headers)
    guarded.call("GET", "/who", headers={"authorization": f"Bearer {text}x"})
    assert len(logged()) == 3
    assert text not in json.dumps(logged())


def test_prompts_are_in_the_log_only_if_asked_for(tmp_path, logged):
    for asked in (False, True):
        guarded = Guarded(tmp_path, log_prompts=asked)
        guarded.call("POST", "/echo", json={"prompt": "my secret\n"})
        line = logged()[-1]
        assert ("body" in line) == asked
        assert line.get("body", r'{"prompt":"my secret\n"}') == r'{"prompt":"my secret\n"}'


def test_metrics_name_routes_and_no_paths(guarded):
    key = guarded.key()
    for path in ("/who", "/v1/models/a", "/v1/models/b", "/nothing/c", "/nothing/d"):
        guarded.call("GET", path, headers=key)
    guarded.call("GET", "/v1/models/e")
    counted = guarded.guards.metrics.registry.get_sample_value
    assert counted("halka_requests_total", {"route": "/v1/models/{name:path}", "status": "200"}) == 2
    assert counted("halka_requests_total", {"route": "(none)", "status": "404"}) == 2
    assert counted("halka_requests_total", {"route": "(none)", "status": "401"}) == 1


# ── draining ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_server_that_drains_ends_what_it_has_and_takes_nothing_new(guarded):
    async def drain(client):
        under_way = asyncio.create_task(client.post("/answers", json={"n": 1, "tokens": 1, "seconds": 0.3}))
        await until(lambda: "begun" in guarded.events)
        guarded.guards.drain.draining = True
        assert guarded.guards.drain.under_way == 1
        refused = await client.get("/who")
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "10")
        assert refused.headers["connection"] == "close"
        assert (await client.get("/healthz")).status_code == 200
        assert (await under_way).status_code == 200
        assert guarded.guards.drain.under_way == 0

    guarded.run(drain)
