"""Who calls: with keys their holders, without keys this machine's programs, and else nobody."""

from __future__ import annotations

import asyncio
import re
from datetime import UTC, datetime
from typing import Any
from urllib.parse import unquote

import pytest

from guarded_for_tests import Guarded
from halka.server.guards.access import OPEN, RIGHTS, Caller, check_host, is_loopback
from halka.server.guards.keys import ROLES
from halka.util.errors import HalkaError

GUARDED = ("/who", "/metrics", "/docs", "/openapi.json", "/mounted/inside", "/v1/models/lora", "/nothing")
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND", "get")


@pytest.fixture
def guarded(tmp_path) -> Guarded:
    """With keys."""
    guarded = Guarded(tmp_path)
    guarded.key()
    return guarded


@pytest.fixture
def local(tmp_path) -> Guarded:
    """Without keys."""
    return Guarded(tmp_path)


def raw(guarded: Guarded, path: str, headers: list[tuple[bytes, bytes]] = (), **scope: Any) -> int:
    """The status of a request whose scope is as no client would make it."""
    statuses = []

    async def send(message):
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    whole = {"type": "http", "method": "GET", "path": path, "headers": [*headers], "query_string": b"", **scope}
    asyncio.run(guarded.app(whole, receive, send))
    return statuses[0]


# ── with keys ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("path", GUARDED)
def test_no_path_and_no_method_is_open_without_a_key(guarded, path):
    for method in METHODS:
        response = guarded.call(method, path)
        assert response.status_code == 401, method
        assert response.headers["www-authenticate"] == "Bearer"


def test_what_is_open_is_named(guarded):
    """Two paths, and for readers the page's files, which `tests/page` tries."""
    assert {"/healthz", "/readyz"} == OPEN
    for method in METHODS:
        is_open = guarded.call(method, "/").status_code != 401
        assert is_open == (method in ("GET", "HEAD", "get")), method
    assert guarded.call("GET", "/healthz").status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        b"/healthz/", b"//healthz", b"/healthz/../who", b"/healthz/..%2fwho", b"/%2e%2e/who", b"/healthz%00",
        b"/healthz%2f..%2fwho", b"/HEALTHZ", b"/healthz%e2%80%8b", b"/who/healthz", b"/healthz%3f", b"/./healthz",
        b"/healthz%0a", b"/%EF%BD%88ealthz", b"http://127.0.0.1/healthz", b"/healthz%20", b"\\healthz", b"*",
        b"/healthz%252f", b"/healthz;/who", b"//", b"", b"/.", b"//playground",
    ],
)  # fmt: skip
def test_only_the_very_path_is_open(guarded, path):
    assert raw(guarded, unquote(path.decode()), raw_path=path) == 401  # as uvicorn decodes it


def test_a_path_is_judged_as_routes_see_it(guarded):
    """Once decoded; a root path that a client cannot set anyway opens nothing."""
    assert guarded.call("GET", "/%68ealthz").status_code == 200
    assert raw(guarded, "/who", root_path="/healthz") == 401
    assert raw(guarded, "/healthz/who", root_path="/healthz") == 401
    assert raw(guarded, "/who", raw_path=b"/healthz") == 401


def test_a_key_lets_in(guarded):
    headers = guarded.key("manager", "acme")
    assert guarded.call("GET", "/who", headers=headers).json() == {"tenant": "acme", "role": "manager"}
    lower = {"authorization": headers["authorization"].replace("Bearer", "bearer")}
    assert guarded.call("GET", "/who", headers=lower).status_code == 200


def test_an_answer_without_a_key_is_openais(guarded):
    response = guarded.call("GET", "/who", headers={"authorization": "Bearer halka_wrong"})
    assert response.json() == {
        "error": {
            "message": "the API key is wrong, revoked or has expired",
            "type": "authentication_error",
            "param": None,
            "code": "invalid_api_key",
        }
    }


def test_wrong_headers_are_no_key(guarded):
    good = guarded.key()["authorization"]
    text = good.removeprefix("Bearer ")
    for value in ("", "Bearer", "Bearer ", text, f"Basic {text}", f"Token {text}", f"Bearer{text}", f"Bearer {text} x",
                  f"Bearer {text}, {text}", "Bearer null", "Bearer undefined", "Bearer " + "a" * 20_000):  # fmt: skip
        assert guarded.call("GET", "/who", headers={"authorization": value}).status_code == 401, value
    assert guarded.call("GET", f"/who?api_key={text}&authorization={good}").status_code == 401
    assert (
        guarded.call("GET", "/who", headers={"x-api-key": text, "cookie": f"authorization={good}"}).status_code == 401
    )


def test_two_keys_in_one_request_are_none(guarded):
    """A proxy may check one of them, and the server take the other."""
    first, second = guarded.key(tenant="a"), guarded.key(tenant="b")
    headers = [("authorization", first["authorization"]), ("authorization", second["authorization"])]
    assert guarded.call("GET", "/who", headers=headers).status_code == 401


def test_no_header_names_a_tenant(guarded):
    names = ("x-tenant", "tenant", "openai-organization", "openai-project", "x-halka-tenant", "x-forwarded-user",
             "x-remote-user", "x_tenant")  # fmt: skip
    headers = {**guarded.key(tenant="acme"), **dict.fromkeys(names, "main")}
    response = guarded.call("GET", "/who?tenant=main", headers=headers)
    assert response.json() == {"tenant": "acme", "role": "user"}


def test_a_state_that_the_server_has_is_no_caller(guarded):
    """What lifespan puts into every request's state cannot stand for a key."""
    assert raw(guarded, "/who", state={"caller": Caller()}) == 401


def test_a_revoked_key_is_refused_at_the_next_request(guarded):
    headers = guarded.key()
    assert guarded.call("GET", "/who", headers=headers).status_code == 200
    for id in guarded.keys.all():
        guarded.keys.revoke(id)
    assert guarded.call("GET", "/who", headers=headers).status_code == 401


def test_a_damaged_file_of_keys_is_no_open_door(guarded):
    headers = guarded.key()
    guarded.keys.path.write_text("{")
    assert guarded.call("GET", "/who").status_code == 401
    response = guarded.call("GET", "/who", headers=headers)
    assert (response.status_code, response.json()["error"]["code"]) == (503, "keys_unreadable")
    assert "keys.json" not in response.text


def test_web_sockets_are_refused(guarded):
    sent = []

    async def send(message):
        sent.append(message)

    asyncio.run(guarded.app({"type": "websocket", "path": "/who", "headers": []}, None, send))
    assert sent == [{"type": "websocket.close", "code": 1008}]


@pytest.mark.parametrize("role", ROLES)
def test_metrics_are_for_who_watches(guarded, role):
    """A user's key does not show what others do, a monitor's key nothing else."""
    headers = guarded.key(role)
    status = guarded.call("GET", "/metrics", headers=headers).status_code
    assert status == (200 if role in ("monitor", "admin") else 403)
    status = guarded.call("GET", "/who", headers=headers).status_code
    assert status == (403 if role == "monitor" else 200)


def test_metrics_are_the_operators(guarded):
    """They name the adapters of all tenants."""
    refused = guarded.call("GET", "/metrics", headers=guarded.key("admin", tenant="acme"))
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "wrong_tenant")
    with pytest.raises(HalkaError, match="a monitor's key is of tenant main"):
        guarded.key("monitor", tenant="acme")


def test_each_role_has_its_rights():
    assert RIGHTS.keys() == {*ROLES}
    assert Caller(role="manager").may("user")
    assert not Caller(role="manager").may("admin")
    assert not Caller(role="monitor").may("user")


def test_the_key_is_compared_in_constant_time():
    """By one lookup of a public id, and one comparison of whole hashes."""
    import inspect

    from halka.server.guards.keys import Keys

    assert "compare_digest" in inspect.getsource(Keys.find)
    assert not re.search(r"hash\s*==|==\s*\w*hash", inspect.getsource(Keys.find))


# ── without keys ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("[::1]", True), ("localhost", True),
        ("LOCALHOST", True), ("0.0.0.0", False), ("::", False), ("", False), ("10.0.0.1", False), ("127.1", False),
        ("example.org", False), ("localhost.example.org", False), ("127.0.0.1.example.org", False),
        ("0x7f000001", False), ("2130706433", False),
    ],
)  # fmt: skip
def test_what_is_this_machine(host, loopback, local):
    assert is_loopback(host) == loopback
    if loopback:
        check_host(host, local.keys)
    else:
        with pytest.raises(HalkaError, match="which others can reach, and there are no keys: add one"):
            check_host(host, local.keys)


def test_with_keys_any_host_will_do(guarded):
    check_host("0.0.0.0", guarded.keys)
    assert guarded.call("GET", "/who", headers={**guarded.key(), "host": "example.org"}).status_code == 200


def test_without_keys_this_machine_is_an_admin(local):
    assert local.call("GET", "/who").json() == {"tenant": "main", "role": "admin"}


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "localhost@evil.example", "192.168.1.5",
             "evil.example#localhost", "", "localhost:x", "[::1", "localhost, evil.example", "127.0.0.1 evil.example"],
)  # fmt: skip
def test_a_name_that_was_bound_to_this_machine_is_not_this_machine(local, host):
    """DNS rebinding: a web page's own name leads to 127.0.0.1, and its requests are no longer of another origin."""
    assert local.call("GET", "/who", headers={"host": host}).status_code == 403


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:8000", "[::1]:8000", "LocalHost:1"])
def test_this_machines_names(local, host):
    assert local.call("GET", "/who", headers={"host": host}).status_code == 200


def test_a_request_without_a_host_is_refused(local):
    assert raw(local, "/who") == 403
    assert raw(local, "/who", [(b"host", b"localhost"), (b"host", b"evil.example")]) == 403
    assert raw(local, "/who", [(b"host", b"localhost")]) == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"}, {"origin": "null"}, {"origin": ""}, {"sec-fetch-site": "cross-site"},
        {"origin": "http://localhost.evil.example"}, {"origin": "http://localhost@evil.example"}, {"origin": "http://[evil"},
        {"x-forwarded-for": "10.0.0.1"}, {"forwarded": "for=10.0.0.1"}, {"via": "1.1 proxy"}, {"x-real-ip": "10.0.0.1"},
    ],
)  # fmt: skip
def test_without_keys_neither_web_pages_nor_proxies_call(local, headers):
    """A page need not read the response to a form that it posts: the upload has happened."""
    response = local.call("POST", "/who", headers=headers)
    assert response.status_code == 403
    assert "access-control-allow-origin" not in response.headers


def test_a_page_of_this_machine_may_post(local):
    assert local.call("POST", "/who", headers={"origin": "http://localhost:3000"}).status_code == 200


def test_the_first_key_closes_a_running_server(local):
    assert local.call("GET", "/who").status_code == 200
    headers = local.key()
    assert local.call("GET", "/who").status_code == 401
    assert local.call("GET", "/who", headers=headers).status_code == 200
    local.keys.path.unlink()
    assert local.call("GET", "/who").status_code == 401


# ── web pages ───────────────────────────────────────────────────────────────────────────────────────────────────────

PREFLIGHT = {"origin": "https://page.example", "access-control-request-method": "POST"}


def test_cors_is_off(guarded):
    for headers in (PREFLIGHT, {**PREFLIGHT, **guarded.key()}):
        response = guarded.call("OPTIONS", "/who", headers=headers)
        assert not [name for name in response.headers if name.startswith("access-control")]


def test_cors_is_for_named_pages(tmp_path):
    guarded = Guarded(tmp_path, cors=("https://page.example",))
    headers = guarded.key()
    response = guarded.call("OPTIONS", "/who", headers=PREFLIGHT)
    assert response.headers["access-control-allow-origin"] == "https://page.example"
    assert "access-control-allow-credentials" not in response.headers
    other = guarded.call("OPTIONS", "/who", headers={**PREFLIGHT, "origin": "https://other.example"})
    assert "access-control-allow-origin" not in other.headers
    assert guarded.call("POST", "/who", headers={"origin": "https://page.example"}).status_code == 401
    allowed = guarded.call("POST", "/who", headers={"origin": "https://page.example", **headers})
    assert allowed.headers["access-control-allow-origin"] == "https://page.example"


def test_expiry_is_looked_at_with_each_request(guarded):
    import json

    headers = guarded.key()
    saved = json.loads(guarded.keys.path.read_text())
    for key in saved:
        key["expires"] = datetime(2020, 1, 1, tzinfo=UTC).isoformat()
    guarded.keys.path.write_text(json.dumps(saved))
    assert guarded.call("GET", "/who", headers=headers).status_code == 401
