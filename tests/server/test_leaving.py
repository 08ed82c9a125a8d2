"""Over a real connection: who leaves frees his rows at once, of whatever he asked for."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from urllib.parse import urlsplit

import httpx
import pytest

from serving_for_tests import Running, until
from unending_for_tests import unending

LONG = {
    "model": "lora",
    "messages": [{"role": "user", "content": "Hello"}],
    "max_tokens": 450,
    "temperature": 1.0,
    "ignore_eos": True,
}


@pytest.fixture
def unended(running) -> Iterator[Running]:
    """A server whose answers go on until their clients leave."""
    with unending(running.service.engine.engine):
        yield running


def post(url: str, path: str, body: dict) -> socket.socket:
    """A connection on which this was sent, and nothing read yet."""
    at = urlsplit(url)
    connection = socket.create_connection((at.hostname, at.port))
    content = json.dumps(body).encode()
    headers = f"Host: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    connection.sendall(f"POST {path} HTTP/1.1\r\n{headers}".encode() + content)
    return connection


@pytest.mark.parametrize("asked", [{}, {"stream": True}, {"n": 3}, {"n": 3, "stream": True}], ids=str)
def test_a_client_that_leaves_frees_its_rows(unended, asked):
    service = unended.service
    engine, guards = service.engine.engine, service.guards
    cancelled = guards.metrics.registry.get_sample_value
    labels = {"adapter": "lora", "finish": "cancelled"}
    before = cancelled("halka_answers_total", labels) or 0
    with post(unended.url, "/v1/chat/completions", LONG | asked) as client:
        until(lambda: len(engine.schedule.running) == asked.get("n", 1), "not all have a row")
        assert guards.limiter.answers == asked.get("n", 1)
        if "stream" in asked:
            assert client.recv(1 << 16).startswith(b"HTTP/1.1 200")
    until(lambda: guards.drain.under_way == 0, "the request goes on")
    until(lambda: not engine.busy, "its rows are not free")
    assert guards.limiter.answers == 0
    assert cancelled("halka_answers_total", labels) == before + asked.get("n", 1)


def test_a_client_that_leaves_while_it_waits_is_no_longer_waited_for(unended):
    """More than there are rows: those that have none leave as well."""
    service = unended.service
    clients = [post(unended.url, "/v1/chat/completions", LONG | {"stream": True}) for _ in range(20)]
    until(lambda: service.engine.engine.waiting > 0, "no more have come than there are rows")
    for client in clients:
        client.close()
    until(lambda: service.guards.drain.under_way == 0, "a request goes on")
    until(lambda: not service.engine.engine.busy, "a row is not free")


def upload(running: Running, collection: str, files: list[tuple[str, bytes]]) -> socket.socket:
    """A connection on which these documents of a new collection were sent."""
    assert running.client.post("/v1/collections", json={"name": collection}).status_code == 201
    place = f"{running.url}/v1/collections/{collection}/documents"
    asked = httpx.Request("POST", place, files=[("files", file) for file in files])
    content, at = asked.read(), urlsplit(running.url)
    headers = "".join(f"{name}: {value}\r\n" for name, value in asked.headers.items())
    client = socket.create_connection((at.hostname, at.port))
    client.sendall(f"POST {asked.url.path} HTTP/1.1\r\n{headers}\r\n".encode() + content)
    return client


def test_documents_of_a_client_that_leaves_are_not_taken_in(running):
    """They stop at the next one: each of these is read by a process of its own."""
    files = [(f"{number}.html", b"<p>Parcels.</p>") for number in range(4)]
    uploads = running.service.settings.data / "uploads"
    with upload(running, "left", files):
        until(lambda: len([*uploads.glob("*/*.html")]) == len(files), "the files have not come")
    until(lambda: running.service.guards.drain.under_way == 0, "the request goes on")
    assert running.client.get("/v1/collections/left/documents").json()["data"] == []


def test_a_long_document_of_a_client_that_leaves_is_not_taken_in(running):
    """It stops between two batches of passages."""
    embedder, words = running.service.embedders.get(), 100_000
    before = embedder.embedded
    with upload(running, "long", [("long.md", b"parcel " * words)]):
        until(lambda: embedder.embedded > before, "nothing is embedded")
    until(lambda: running.service.guards.drain.under_way == 0, "the request goes on")
    assert embedder.embedded - before < words / embedder.limit, "all of it was embedded"
    assert running.client.get("/v1/collections/long/documents").json()["data"] == []
    assert not [*(running.service.settings.data / "uploads").iterdir()]
