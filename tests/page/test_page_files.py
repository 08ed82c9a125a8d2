"""The page's files: who gets them, with which headers; what else is at its addresses needs a key."""

from __future__ import annotations

import gzip
import re

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from halka.server import errors
from halka.server.guards.access import is_open
from halka.server.page import BUILT, SCREENS, is_page, page_router

INDEX = (BUILT / "index.html").read_bytes()
ASSETS = sorted(path.name for path in (BUILT / "assets").iterdir())


def client(folder=BUILT) -> TestClient:
    app = FastAPI()
    app.include_router(page_router(folder))
    errors.install(app)
    return TestClient(app, headers={"accept-encoding": "identity"})


@pytest.fixture(scope="module")
def pages() -> TestClient:
    return client()


@pytest.mark.parametrize("path", ["/", *(f"/{name}" for name in SCREENS), "/adapters/a%20b/c%2Fd", "/documents/"])
def test_every_address_of_the_page_is_its_index(pages, path):
    response = pages.get(path)
    assert (response.status_code, response.content) == (200, INDEX)
    assert response.headers["cache-control"] == "no-cache"
    assert pages.head(path).headers["content-length"] == str(len(INDEX))


def test_the_policy_lets_nothing_else_run_or_be_called(pages):
    for path in ("/", f"/assets/{ASSETS[0]}"):
        headers = pages.get(path).headers
        policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
        assert "unsafe" not in headers["content-security-policy"]
        assert (
            policy["default-src"]
            == policy["form-action"]
            == policy["frame-ancestors"]
            == policy["base-uri"]
            == "'none'"
        )
        assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
        assert "camera=()" in headers["permissions-policy"]
        assert headers["cross-origin-opener-policy"] == "same-origin"


def test_who_has_the_page_does_not_get_it_again(pages):
    etag = pages.get("/").headers["etag"]
    again = pages.get("/train", headers={"if-none-match": f'"other", W/{etag}'})
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", etag)
    assert pages.get("/", headers={"if-none-match": '"other"'}).status_code == 200


@pytest.mark.parametrize("name", ASSETS)
def test_assets_hold_for_good_and_come_compressed(pages, name):
    plain = pages.get(f"/assets/{name}")
    assert plain.content == (BUILT / "assets" / name).read_bytes()
    assert "immutable" in plain.headers["cache-control"]
    assert "content-encoding" not in plain.headers
    with pages.stream("GET", f"/assets/{name}", headers={"accept-encoding": "br, gzip"}) as packed:
        assert packed.headers["content-encoding"] == "gzip"
        assert packed.headers["vary"] == "accept-encoding"
        assert gzip.decompress(b"".join(packed.iter_raw())) == plain.content


def test_who_refuses_gzip_gets_none(pages):
    for refused in ("gzip;q=0", "br, gzip; q=0.0", "x-gzipped", ""):
        assert "content-encoding" not in pages.get("/", headers={"accept-encoding": refused}).headers, refused
    assert "content-encoding" in pages.get("/", headers={"accept-encoding": "gzip;q=0.5"}).headers


@pytest.mark.parametrize("name", ["nothing.js", "..%2Findex.html", "index.html", "%2e%2e", "a/b.js"])
def test_there_are_no_other_files(pages, name):
    assert pages.get(f"/assets/{name}").status_code == 404


def test_without_a_build_there_is_a_way_out(tmp_path):
    response = client(tmp_path).get("/")
    assert response.status_code == 404
    assert "scripts/page" in response.json()["error"]["message"]


# ── who may have them ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "path",
    ["", "/v1", "/v1/models", "/v1/session", "/play", "/playgroundx", "/Playground", "//playground", "/assets",
     "/assets/", "/assets/a/b", "/assets/../v1", "/metrics", "/openapi.json", "/account\n", "/assets/a.js\n",
     "/x/playground"],
)  # fmt: skip
def test_what_is_not_the_pages_stays_closed(path):
    assert not is_page(path)
    assert not is_open("GET", path)


def test_the_page_is_open_to_be_read_alone():
    for path in ("/", "/playground", "/adapters/x/y", "/assets/a-1.js"):
        assert is_open("GET", path)
        assert is_open("HEAD", path)
        assert not any(is_open(method, path) for method in ("POST", "PUT", "PATCH", "DELETE", "OPTIONS", "get"))
        assert not is_open("GET", path, root="/playground")


def test_no_other_route_is_at_an_address_of_the_page():
    from halka.server.app import ROUTERS

    paths = [route.path for router in ROUTERS for route in router.routes]
    assert len(paths) > 20
    assert not [path for path in paths if is_page(re.sub(r"\{.*?\}", "x", path))]


def test_a_server_with_keys_gives_the_page_and_nothing_more(base, store, tmp_path):
    from serving_for_tests import InProcess

    with InProcess.open(base, store, tmp_path / "data") as server:
        server.key("main")
        for path in ("/", "/adapters/lora", f"/assets/{ASSETS[0]}"):
            response = server.client.get(path)
            assert response.status_code == 200, path
            assert response.headers["x-content-type-options"] == "nosniff"
            assert response.headers["referrer-policy"] == "no-referrer"
            assert server.client.post(path).status_code == 401
        for path in ("/v1/adapters", "/v1/adapters/lora", "/v1/nothing", "/nothing", "/openapi.json"):
            response = server.client.get(path)
            assert response.status_code == 401
            assert response.json()["error"]["type"] == "authentication_error"
        allowed = server.key("main", "user")
        assert server.client.get("/v1/nothing", headers=allowed).json()["error"]["code"] == "not_found"
