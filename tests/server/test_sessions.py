"""Sessions: a key becomes a page's cookie, which nobody else's page can use, and which ends."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from datetime import UTC, datetime, timedelta

import pytest

from guarded_for_tests import LOCAL, Guarded, until
from halka.server.errors import ApiError
from halka.server.guards.keys import Keys, Limits
from halka.server.guards.logs import LOGGERS, log_to
from halka.server.guards.sessions import COOKIE, LIFE, MOST, SECURE, WRONG, Attempts, Session, Sessions
from serving_for_tests import InProcess

PAGE = {"x-halka-page": "1", "origin": LOCAL}
SAME = {"x-halka-page": "1", "sec-fetch-site": "same-origin"}


class Clock:
    """A time that passes when a test says so."""

    def __init__(self) -> None:
        self.now = datetime.now(UTC)

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def keys(tmp_path) -> Keys:
    return Keys(tmp_path / "keys.json")


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def sessions(keys, clock) -> Sessions:
    return Sessions(keys, clock)


def refused(call, *arguments) -> ApiError:
    with pytest.raises(ApiError) as error:
        call(*arguments)
    return error.value


# ── what the server remembers ───────────────────────────────────────────────────────────────────────────────────────


def test_a_cookie_is_random_and_kept_as_a_hash(keys, sessions):
    text, key = keys.add("main", "user")
    cookie, session = sessions.begin(key)
    assert (sessions.key(text, "here"), len(cookie)) == (key, 43)
    assert sessions.find(cookie) == (session, key)
    assert cookie not in repr(vars(sessions))
    assert text not in repr(vars(sessions))
    assert sessions.begin(key)[0] != cookie
    assert refused(sessions.find, cookie[:-1]).code == "session_ended"
    assert refused(sessions.find, session.id).code == "session_ended"


def test_it_ends_after_its_time_with_its_key_or_when_it_is_ended(keys, sessions, clock):
    _, key = keys.add("main", "user")

    def begun() -> tuple[str, Session]:
        return sessions.begin(key)

    (late, session), (ended, other), (orphan, last) = begun(), begun(), begun()
    sessions.end(other.id)
    assert (sessions.valid(session), sessions.valid(other)) == (True, False)
    assert refused(sessions.find, ended).status == 401
    clock.now += LIFE
    assert refused(sessions.find, late).status == 401
    clock.now -= LIFE
    keys.revoke(key.id)
    assert refused(sessions.find, orphan).status == 401
    assert not sessions.valid(last)


def test_it_ends_no_later_than_its_key_expires(keys, sessions):
    soon = datetime.now(UTC) + timedelta(hours=1)
    _, key = keys.add("main", "user", soon)
    assert sessions.begin(key)[1].ends == soon


def test_a_key_has_so_many_and_the_oldest_ends(keys, sessions):
    (_, first), (_, other) = keys.add("main", "user"), keys.add("main", "user")
    cookie = sessions.begin(other)[0]
    cookies = [sessions.begin(first)[0] for _ in range(MOST + 2)]
    assert [refused(sessions.find, old).status for old in cookies[:2]] == [401, 401]
    assert all(sessions.find(new) for new in [*cookies[2:], cookie])


def test_those_that_have_ended_are_forgotten(keys, sessions, clock):
    _, key = keys.add("main", "user")
    old = sessions.begin(key)[1]
    clock.now += LIFE
    sessions.begin(key)
    assert old.id not in repr(vars(sessions))


def test_a_key_that_changes_is_what_it_is_now(keys, sessions):
    """As with the key itself, its new limits count from the next request on."""
    _, key = keys.add("main", "user", limits=Limits(requests=5))
    cookie, session = sessions.begin(key)
    saved = json.loads(keys.path.read_text())
    saved[0]["limits"]["requests"] = 77
    keys.path.write_text(json.dumps(saved))
    assert sessions.find(cookie)[1].limits.requests == 77
    assert sessions.valid(session)


def test_guesses_are_counted_by_address(keys, sessions):
    sessions.attempts = Attempts(lambda: 0.0)  # no time passes
    text, key = keys.add("main", "user")
    for number in range(WRONG):
        assert refused(sessions.key, f"halka_{number}", "guesser").status == 401
    later = refused(sessions.key, "halka_more", "guesser")
    assert (later.status, later.code) == (429, "rate_limit_exceeded")
    assert 1 <= int(later.headers["retry-after"]) <= 2
    assert refused(sessions.key, "halka_more", "somebody else").status == 401
    assert sessions.key(text, "guesser") == key, "behind a proxy all have one address"


def test_addresses_are_forgotten_so_that_they_take_no_memory():
    attempts = Attempts()
    for number in range(10_050):
        attempts.count(f"address {number}")
    assert len(vars(attempts)["_buckets"]) == 10_000


# ── a cookie in the place of a key ──────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def guarded(tmp_path) -> Guarded:
    return Guarded(tmp_path)


def signed_in(guarded: Guarded, role="user", tenant="main", **limits) -> str:
    """The Cookie header of a new key's session."""
    return cookie_for(guarded, guarded.key(role, tenant, **limits))


def cookie_for(guarded: Guarded, headers: dict[str, str]) -> str:
    """The Cookie header of a session for the key of these headers."""
    sessions = guarded.guards.sessions
    return f"{COOKIE}={sessions.begin(sessions.key(headers['authorization'].removeprefix('Bearer '), 'here'))[0]}"


def both(cookie: str) -> str:
    """The Cookie header with the name that the cookie has by http, and the one by https."""
    return f"{cookie}; __Host-{cookie}"


def status(guarded: Guarded, method: str, **headers: str) -> int:
    return guarded.call(method, "/who", headers=headers).status_code


def test_a_cookie_asks_as_its_key(guarded):
    cookie = signed_in(guarded, "manager", "acme")
    assert guarded.call("GET", "/who", headers={"cookie": cookie}).json() == {"tenant": "acme", "role": "manager"}
    assert status(guarded, "GET", cookie=f"theme=dark; {cookie}; language=bn") == 200
    for headers in (PAGE, SAME, {**SAME, "origin": "https://behind.example"}):
        assert guarded.call("POST", "/who", headers={"cookie": both(cookie), **headers}).status_code == 200


def test_a_key_in_the_header_is_who_calls_whatever_the_cookie_says(guarded):
    cookie, key = signed_in(guarded, "admin"), guarded.key("user", "acme")
    assert guarded.call("GET", "/who", headers={"cookie": cookie, **key}).json()["tenant"] == "acme"
    assert status(guarded, "GET", cookie=cookie, authorization="Bearer halka_wrong") == 401
    assert status(guarded, "GET", cookie=cookie, authorization="") == 401
    assert status(guarded, "POST", cookie="theme=dark", **key) == 200


@pytest.mark.parametrize("method", ["POST", "PATCH", "DELETE"])
@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"x-halka-page": "1"},
        {"origin": LOCAL},
        {"sec-fetch-site": "same-origin"},
        {"x-halka-page": "", "origin": LOCAL},
        {"x-halka-page": "true", "origin": LOCAL},
        {"x-halka-page": "1", "origin": "https://evil.example"},
        {"x-halka-page": "1", "origin": "null"},
        {"x-halka-page": "1", "origin": ""},
        {"x-halka-page": "1", "origin": "http://127.0.0.1"},
        {"x-halka-page": "1", "origin": "http://127.0.0.1:3000"},
        {"x-halka-page": "1", "origin": "http://127.0.0.1:8000.evil.example"},
        {"x-halka-page": "1", "origin": "http://127.0.0.1:8000@evil.example"},
        {"x-halka-page": "1", "origin": "http://[evil"},
        {"x-halka-page": "1", "referer": f"{LOCAL}/"},
        {"x-halka-page": "1", "sec-fetch-site": "cross-site"},
        {"x-halka-page": "1", "sec-fetch-site": "same-site", "origin": LOCAL},
        {"x-halka-page": "1", "sec-fetch-site": "none", "origin": LOCAL},
        {"x-halka-page": "1", "sec-fetch-site": "same-origin, cross-site"},
        {"content-type": "application/x-www-form-urlencoded", "origin": "https://evil.example"},
    ],
)
def test_another_page_changes_nothing_with_a_cookie(guarded, method, headers):
    """A form that is posted, a script's request, a page at another port of this machine."""
    response = guarded.call(method, "/who", headers={"cookie": both(signed_in(guarded, "admin")), **headers})
    assert response.status_code == 403
    assert response.json()["error"]["code"] in ("no_page", "wrong_origin")


def test_two_origins_or_two_hosts_are_none(guarded):
    cookie = signed_in(guarded)
    for twice in (("origin", LOCAL), ("sec-fetch-site", "same-origin"), ("x-halka-page", "1")):
        headers = [("cookie", cookie), *PAGE.items(), ("sec-fetch-site", "same-origin"), twice]
        if twice[0] == "origin":
            headers.remove(("sec-fetch-site", "same-origin"))
        assert guarded.call("POST", "/who", headers=headers).status_code == 403, twice


def test_two_cookies_are_none(guarded):
    """A page of a neighbouring host may have set one of them."""
    mine, other = signed_in(guarded), signed_in(guarded, tenant="acme")
    for headers in (
        [("cookie", f"{mine}; {other}")],
        [("cookie", mine), ("cookie", other)],
        [("cookie", f"{mine};{mine}")],
    ):
        response = guarded.call("GET", "/who", headers=headers)
        assert (response.status_code, response.json()["error"]["code"]) == (401, "session_ended")


def test_what_is_no_cookie_of_the_servers_is_refused(guarded):
    cookie = signed_in(guarded)
    for value in (f"{COOKIE}=", COOKIE, f"{COOKIE}={'a' * 43}", f"{COOKIE}={'a' * 20_000}", f'{COOKIE}="{cookie}"',
                  cookie.upper(), f"{cookie}a", f"x{cookie}", cookie.replace("=", ":"), "=;=;;"):  # fmt: skip
        assert status(guarded, "GET", cookie=value) == 401, value


def test_a_revoked_keys_cookie_is_refused_at_once(guarded):
    cookie = signed_in(guarded)
    assert status(guarded, "GET", cookie=cookie) == 200
    for id in guarded.keys.all():
        guarded.keys.revoke(id)
    assert status(guarded, "GET", cookie=cookie) == 401


def test_the_keys_limits_are_the_sessions(guarded):
    headers = guarded.key(requests=3)
    cookie, text = cookie_for(guarded, headers), headers["authorization"]
    statuses = [status(guarded, "GET", cookie=cookie), status(guarded, "GET", authorization=text)]
    statuses += [status(guarded, "GET", cookie=cookie) for _ in range(2)]
    assert statuses == [200, 200, 200, 429]


@pytest.mark.parametrize("by", ["signing out", "revoking the key"])
def test_what_is_under_way_ends_with_the_session(guarded, by):
    cookie = signed_in(guarded)

    async def leave(client):
        async def end():
            await until(lambda: guarded.guards.drain.under_way)
            await asyncio.sleep(0.1)
            if by == "signing out":
                session, _ = guarded.guards.sessions.find(cookie.partition("=")[2])
                guarded.guards.sessions.end(session.id)
            else:
                guarded.keys.revoke(next(iter(guarded.keys.all())))

        ending = asyncio.create_task(end())
        response = await client.get("/stream", headers={"cookie": cookie})
        await ending
        return response

    last = guarded.run(leave).text.rstrip().rpartition("\n\n")[2]
    code = "session_ended" if by == "signing out" else "invalid_api_key"
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == code
    assert guarded.events == ["stream ended"]


def test_a_cookie_opens_nothing_where_no_keys_are(guarded):
    """Who may call is this machine, whatever else is sent."""
    assert status(guarded, "GET", cookie=f"{COOKIE}=made-up") == 200
    assert status(guarded, "GET", cookie=f"{COOKIE}=made-up", host="evil.example") == 403


# ── /v1/session ─────────────────────────────────────────────────────────────────────────────────────────────────────

NOBODY = {"tenant": None, "role": None, "key": None, "expires": None, "keys_required": True}


def sign_in(server: InProcess, headers: dict[str, str], **more: str):
    """Sign in with the key of these headers."""
    key = headers["authorization"].removeprefix("Bearer ")
    return server.client.post("/v1/session", json={"key": key}, headers={**PAGE, **more})


def test_without_keys_this_machine_is_who_calls(client):
    local = {"tenant": "main", "role": "admin", "key": None, "expires": None, "keys_required": False}
    assert client.get("/v1/session").json() == local
    response = client.post("/v1/session", json={"key": "any"}, headers=PAGE)
    assert (response.status_code, response.json()["error"]["code"]) == (400, "no_keys")
    assert client.get("/v1/session", headers={"host": "evil.example"}).status_code == 403
    assert client.delete("/v1/session", headers=PAGE).status_code == 204


def test_signing_in_and_out(server):
    headers = server.key("acme", "manager")
    (key,) = server.service.guards.keys.all().values()
    assert server.client.get("/v1/session").json() == NOBODY
    with_key = {"tenant": "acme", "role": "manager", "key": key.id, "expires": None, "keys_required": True}
    assert server.client.get("/v1/session", headers=headers).json() == with_key
    response = sign_in(server, headers)
    assert response.status_code == 201
    who = response.json()
    assert who == server.client.get("/v1/session").json()
    assert who == {**with_key, "expires": who["expires"]}
    assert timedelta(hours=11.9) < datetime.fromisoformat(who["expires"]) - datetime.now(UTC) < timedelta(hours=12)
    assert server.client.get("/v1/adapters").status_code == 200
    assert server.client.post("/v1/collections", json={"name": "faq"}).status_code == 403
    assert server.client.post("/v1/collections", json={"name": "faq"}, headers=PAGE).status_code == 201
    cookie = server.client.cookies[COOKIE]
    assert server.client.delete("/v1/session", headers=PAGE).status_code == 204
    assert COOKIE not in server.client.cookies
    stale = {"cookie": f"{COOKIE}={cookie}"}
    assert server.client.get("/v1/adapters", headers=stale).status_code == 401
    assert server.client.get("/v1/session", headers=stale).json() == NOBODY


def test_the_cookie_is_for_this_host_alone_and_no_script_reads_it(server):
    parts = sign_in(server, server.key("main", "user")).headers["set-cookie"].split("; ")
    life = next(part for part in parts if part.startswith("Max-Age="))
    assert {*parts[1:]} - {life} == {"HttpOnly", "Path=/", "SameSite=strict"}
    assert 43_100 < int(life.partition("=")[2]) <= 43_200


def test_over_https_it_goes_no_other_way(server):
    """A proxy has the TLS; the page's origin says so."""
    headers = server.key("main", "manager")
    response = sign_in(server, headers, origin="https://halka.example", host="halka.example")
    assert response.status_code == 201
    assert "; Secure" in response.headers["set-cookie"]
    assert response.headers["set-cookie"].startswith(f"{SECURE}="), "and no sibling's page may set it"
    own = response.headers["set-cookie"].partition(";")[0]
    for planted in (f"{COOKIE}=planted; {own}", f"{own}; {COOKIE}=a; {COOKIE}=b"):
        assert server.client.get("/v1/models", headers={"cookie": planted}).status_code == 200
    host = {**PAGE, "origin": "https://halka.example", "host": "halka.example"}
    for cookie, signed_out in ((own.removeprefix("__Host-"), 401), (own, 201)):
        made = server.client.post("/v1/collections", json={"name": "faq"}, headers={**host, "cookie": cookie})
        assert made.status_code == signed_out


def test_signing_in_counts_for_the_keys_limits(server):
    headers = server.key("main", "user", limits=Limits(requests=3))
    assert [sign_in(server, headers).status_code for _ in range(4)] == [201, 201, 201, 429]


def test_signing_in_reads_the_keys_file_no_more_often_where_there_are_many_sessions(tmp_path):
    class Counted(Keys):
        reads = 0

        def all(self):
            self.reads += 1
            return super().all()

    keys = Counted(tmp_path / "keys.json")
    _, key = keys.add("main", "user")
    sessions, keys.reads = Sessions(keys), 0
    for _ in range(MOST):
        sessions.begin(key)
    assert keys.reads == MOST


def test_signing_in_again_ends_the_session_before(server):
    headers = server.key("main", "user")
    sign_in(server, headers)
    first = server.client.cookies[COOKIE]
    sign_in(server, headers)
    assert server.client.get("/v1/models", headers={"cookie": f"{COOKIE}={first}"}).status_code == 401


def test_another_page_signs_nobody_in_or_out(server):
    """Else who works here would work under an attacker's name."""
    headers = server.key("main", "user")
    key = {"key": headers["authorization"].removeprefix("Bearer ")}
    for wrong in ({}, {"origin": LOCAL}, {"x-halka-page": "1"}, {**PAGE, "origin": "https://evil.example"}):
        response = server.client.post("/v1/session", json=key, headers=wrong)
        assert response.status_code == 403, wrong
        assert "set-cookie" not in response.headers
    form = server.client.post("/v1/session", data=key, headers=PAGE)
    assert form.status_code == 415
    sign_in(server, headers)
    assert server.client.delete("/v1/session").status_code == 403
    assert server.client.get("/v1/session").json()["tenant"] == "main"


def test_wrong_keys_and_bodies(server):
    server.key("main", "user")
    expired, _ = server.service.guards.keys.add("main", "user", datetime.now(UTC) + timedelta(seconds=0.2))
    for body, status in (
        ({"key": "halka_wrong"}, 401), ({"key": ""}, 400), ({"key": "a" * 201}, 400), ({}, 400), ({"key": None}, 400),
        ({"key": "বাংলা"}, 401), ({"key": "\x00"}, 401), ({"key": "a", "tenant": "main"}, 400), ([], 400),
        ({"key": "a" * 5000}, 413),
    ):  # fmt: skip
        response = server.client.post("/v1/session", json=body, headers=PAGE)
        assert response.status_code == status, body
        assert "set-cookie" not in response.headers
        assert "aaaa" not in response.text
    assert expired not in server.client.get("/v1/session").text


def test_guessing_is_slowed_down(server):
    server.service.guards.sessions.attempts = Attempts(lambda: 0.0)  # no time passes
    headers = server.key("main", "user")
    statuses = [
        server.client.post("/v1/session", json={"key": "no"}, headers=PAGE).status_code for _ in range(WRONG + 1)
    ]
    assert (set(statuses[:-1]), statuses[-1]) == ({401}, 429)
    assert sign_in(server, headers).status_code == 201, "a right key is no guess"
    assert server.client.get("/v1/models", headers=headers).status_code == 200


def test_a_monitor_may_sign_in_and_see_metrics_alone(server):
    sign_in(server, server.key("main", "monitor"))
    assert server.client.get("/v1/session").json()["role"] == "monitor"
    assert server.client.get("/metrics").status_code == 200
    assert server.client.get("/v1/models").status_code == 403


def test_neither_key_nor_cookie_is_in_the_log(base, store, tmp_path):
    """Also where bodies are."""
    before = {name: (logging.getLogger(name).handlers, logging.getLogger(name).propagate) for name in LOGGERS}
    log_to(stream := io.StringIO(), texts=True)
    try:
        with InProcess.open(base, store, tmp_path / "data", log_prompts=True) as server:
            headers = server.key("main", "user")
            sign_in(server, headers)
            cookie = server.client.cookies[COOKIE]
            assert server.client.post("/v1/completions", json={"model": "none", "prompt": "seen"}, headers=PAGE)
    finally:
        for name, (handlers, propagate) in before.items():
            logging.getLogger(name).handlers, logging.getLogger(name).propagate = handlers, propagate
    logged = stream.getvalue()
    assert "seen" in logged
    assert cookie not in logged
    assert headers["authorization"].removeprefix("Bearer ") not in logged
