"""Bodies: bounded in size, time and depth, and refused before a route sees them."""

from __future__ import annotations

import asyncio
import json

import httpx
import pytest

from guarded_for_tests import LOCAL, Guarded
from halka.server.errors import ApiError
from halka.server.guards.bodies import DEPTH, _Body, check_json

JSON = {"content-type": "application/json"}
MULTIPART = {"content-type": "multipart/form-data; boundary=x"}
KB = 0.001  # in MB


@pytest.fixture
def guarded(tmp_path) -> Guarded:
    return Guarded(tmp_path, body_size=KB, upload_size=4 * KB)


async def pieces(count: int, size: int = 100):
    """A body without a length."""
    for _ in range(count):
        yield b" " * size


def test_what_fits_comes_whole(guarded):
    body = json.dumps("x" * 998)
    assert guarded.call("POST", "/echo", content=body, headers=JSON).json() == {"bytes": 1000}
    assert guarded.call("POST", "/echo").json() == {"bytes": 0}


@pytest.mark.parametrize("headers", [{}, {"transfer-encoding": "chunked"}, {"content-length": "5"}])
def test_what_is_too_large_is_refused_whatever_length_it_says(guarded, headers):
    response = guarded.call("POST", "/echo", content=pieces(11), headers={**JSON, **headers})
    assert response.status_code == 413
    assert response.json()["error"]["message"] == "the body is larger than 1000 bytes"
    assert guarded.events == []


def test_a_length_that_is_too_large_is_refused_unread(guarded):
    async def unread():
        pytest.fail("the body was read")
        yield b""

    response = guarded.call("POST", "/echo", content=unread(), headers={**JSON, "content-length": str(10**12)})
    assert response.status_code == 413


def test_a_body_without_a_key_is_not_read(guarded):
    guarded.key()

    async def unread():
        pytest.fail("the body was read")
        yield b""

    assert guarded.call("POST", "/echo", content=unread(), headers=JSON).status_code == 401


def test_uploads_may_be_larger(guarded):
    manager = guarded.key("manager")
    statuses = [
        guarded.call("POST", "/v1/adapters", content=pieces(count), headers=MULTIPART | manager).status_code
        for count in (40, 41)
    ]
    assert statuses == [200, 413]
    assert guarded.events == ["read"]


def test_an_upload_by_who_may_add_nothing_is_refused_unread(guarded):
    """It would hold the tenant's storage until its end."""

    async def unread():
        pytest.fail("the body was read")
        yield b""

    for length in ({}, {"content-length": "1000"}):
        headers = MULTIPART | guarded.key("user") | length
        response = guarded.call("POST", "/v1/adapters", content=unread(), headers=headers)
        assert (response.status_code, response.json()["error"]["code"]) == (403, "role_too_low")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/echo"),
        ("POST", "/v1/collections"),
        ("POST", "/v1/collections/faq/search"),
        ("POST", "/v1/adapters/import"),
        ("POST", "/v1/adapters/"),
        ("PATCH", "/v1/adapters"),
        ("PATCH", "/v1/adapters/support"),
    ],
)
def test_an_upload_anywhere_else_is_refused(guarded, method, path):
    """A route that wants JSON would keep all of it in memory."""
    assert guarded.call(method, path, content=pieces(1), headers=MULTIPART).status_code == 415


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "application/xml", "", "application"]
)
def test_only_json_is_json(guarded, kind):
    """A web page posts the other kinds without asking first."""
    headers = {"content-type": kind} if kind else {}
    assert guarded.call("POST", "/echo", content="{}", headers=headers).status_code == 415


@pytest.mark.parametrize("kind", ["application/json", "application/json; charset=utf-8", "Application/JSON;x"])
def test_json_by_its_names(guarded, kind):
    assert guarded.call("POST", "/echo", content="{}", headers={"content-type": kind}).status_code == 200


def test_a_compressed_body_is_refused(guarded):
    """A small one can be large."""
    headers = {**JSON, "content-encoding": "gzip"}
    assert guarded.call("POST", "/echo", content=b"\x1f\x8b", headers=headers).status_code == 415


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS"])
def test_what_takes_no_body_gets_none(guarded, method):
    """A proxy may think that it is the next request."""
    for content, headers in ((b"{}", {}), (pieces(1), {"transfer-encoding": "chunked"})):
        assert guarded.call(method, "/who", content=content, headers={**JSON, **headers}).status_code == 400
    assert guarded.call(method, "/who", headers={"content-length": "0"}).status_code in (200, 405)


# ── time ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def body_that_stops(seconds: float, most: int = 10**6, timeout: float = 0.05) -> _Body:
    """A body whose second piece comes after so long."""
    sent = []

    async def receive():
        if sent:
            await asyncio.sleep(seconds)
        sent.append(1)
        return {"type": "http.request", "body": b"[" if len(sent) == 1 else b"]", "more_body": len(sent) == 1}

    return _Body(receive, most, timeout, 0)


def test_a_slow_body_is_refused():
    async def read():
        with pytest.raises(ApiError) as error:
            await body_that_stops(10).read_json()
        assert (error.value.status, error.value.code) == (408, "too_slow")
        assert await body_that_stops(0).read_json() == b"[]"

    asyncio.run(read())


def test_a_trickle_does_not_last(guarded):
    """Piece by piece, none of which takes long."""

    async def trickle():
        while True:
            yield b" "
            await asyncio.sleep(0.005)

    async def post(client):
        return await client.post("/echo", content=trickle(), headers=JSON)

    guarded.app.middleware_stack = None  # built anew, with a shorter timeout
    for middleware in guarded.app.user_middleware:
        if middleware.cls.__name__ == "Bodies":
            middleware.kwargs["timeout"] = 0.1
    response = guarded.run(post)
    assert response.status_code == 408
    assert guarded.events == []


def test_a_slow_upload_is_refused_whatever_the_route_made_of_it(guarded):
    async def stops():
        yield b"--x\r\n"
        await asyncio.sleep(10)

    async def post(client):
        return await client.post("/v1/adapters", content=stops(), headers=MULTIPART)

    for middleware in guarded.app.user_middleware:
        if middleware.cls.__name__ == "Bodies":
            middleware.kwargs["timeout"] = 0.1
    response = guarded.run(post)
    assert response.status_code == 408
    assert response.json()["error"]["code"] == "too_slow"


# ── what JSON may hold ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "expecting value at character 0"),
        (b'{"a": ', "expecting value at character 6"),
        (b"{} {}", "extra data at character 3"),
        (b"{'a': 1}", "expecting property name enclosed in double quotes at character 1"),
        (b'"\xff"', "byte 1 is no UTF-8"),
        ('{"a": 1}'.encode("utf-16"), "byte 0 is no UTF-8"),
        ('{"a": 1}'.encode("utf-16-le"), "expecting property name enclosed in double quotes at character 1"),
        ("\ufeff{}".encode(), "unexpected utf-8 bom"),
        (b'"\xed\xa0\x80"', "byte 1 is no UTF-8"),
        (b'"\\ud800"', "half of a surrogate pair"),
        (b'["\\udc00\\ud800"]', "half of a surrogate pair"),
        (b'{"\\ud83d": 1}', "half of a surrogate pair"),
        (b'"\x00"', "invalid control character at at character 1"),
        (b"NaN", "nan is no number"),
        (b'{"temperature": -Infinity}', "-infinity is no number"),
        (b"1e999", "1e999 is too large a number"),
        (b"1" * 5000, "exceeds the limit"),
        (b"[" * 65 + b"]" * 65, "nested deeper than 64 levels"),
        (b'{"a":' * 65 + b"1" + b"}" * 65, "nested deeper than 64 levels"),
        (b"[" * 1_000_000, "nested deeper than 64 levels"),
        (b'["\\"[",' * 65 + b"1" + b"]" * 65, "nested deeper than 64 levels"),
        (b'"\\' + b"[" * 1_000_000, "invalid \\escape"),
    ],
)
def test_what_is_no_json_is_named(body, reason):
    with pytest.raises(ApiError) as error:
        check_json(body)
    assert (error.value.status, error.value.code) == (400, "invalid_json")
    assert reason in error.value.message


@pytest.mark.parametrize(
    "body",
    [
        b"{}", b'"\\ud83d\\ude00"', '"😀\\u00e9"'.encode(), b'"' + b"[" * 1000 + b'"', b"[" * DEPTH + b"]" * DEPTH,
        b"[" + b"[]," * 1000 + b"[]]", b'["\\\\", "[[", "\\"[["]', b"1e300", b"-0.0", b'["\\\\ud800"]', b'"\\u0000"',
        json.dumps({"messages": [{"role": "user", "content": "[{" * 50}] * 100}).encode(),
    ],
)  # fmt: skip
def test_what_is_json_passes(body):
    check_json(body)


def test_long_json_is_checked_too(tmp_path):
    guarded = Guarded(tmp_path)
    for body, status in ((b"[1]" + b" " * 100_000, 200), (b"[" * 100_000, 400)):
        assert guarded.call("POST", "/echo", content=body, headers=JSON).status_code == status


def test_a_body_is_the_same_after_the_check(guarded):
    sent = json.dumps({"a": ["é", 1.5, None]}, ensure_ascii=False).encode()

    async def post(client: httpx.AsyncClient):
        return await client.post(f"{LOCAL}/echo", content=sent, headers=JSON)

    assert guarded.run(post).json() == {"bytes": len(sent)}
