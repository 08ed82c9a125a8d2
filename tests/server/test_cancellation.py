"""Requests that end early free what they hold at once, and tell a client that is still there."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from types import SimpleNamespace

import pytest

from guarded_for_tests import Guarded, until
from halka.server.guards.cancellation import Cancellation
from halka.server.guards.keys import Keys


class Clock:
    """A time that passes when a test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Client:
    """An ASGI client by hand: it can leave, and not read.

    reads  is called at every piece of the answer
    """

    def __init__(self, guarded: Guarded, path: str, headers=(), method: str = "POST", reads=lambda: None):
        self.messages, self.left, self.reading = [], asyncio.Event(), asyncio.Event()
        self.reading.set()
        self.reads = reads
        host = [(b"host", b"localhost")]
        others = [(name.encode(), value.encode()) for name, value in dict(headers).items()]
        self.scope = {"type": "http", "method": method, "path": path, "headers": host + others, "query_string": b""}
        self.sent = False
        self.task = asyncio.create_task(guarded.app(self.scope, self.receive, self.send))

    async def receive(self):
        if not self.sent:
            self.sent = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message):
        await self.reading.wait()
        self.reads()
        self.messages.append(message)

    @property
    def status(self):
        return self.messages[0]["status"] if self.messages else None

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.messages[1:])


def raised(keys: Keys, id: str) -> None:
    keys.change(id, lambda key: replace(key, role="manager"))


@pytest.fixture
def guarded(tmp_path) -> Guarded:
    return Guarded(tmp_path)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def hasty(tmp_path, clock) -> Guarded:
    """It lets a request be silent for a second, by the clock."""
    guarded = Guarded(tmp_path, timeout=1.0)
    for middleware in guarded.app.user_middleware:
        if middleware.cls is Cancellation:
            middleware.kwargs["clock"] = clock
    return guarded


@pytest.mark.parametrize(("path", "end"), [("/never", "never ended"), ("/stream", "stream ended")])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_who_leaves_ends_what_was_made_for_him(guarded, path, end, method):
    async def leave():
        client = Client(guarded, path, method=method)
        await until(lambda: "begun" in guarded.events or client.messages)
        client.left.set()
        await client.task
        assert guarded.events[-1] == end
        assert guarded.guards.drain.under_way == 0

    asyncio.run(leave())


def test_a_request_of_which_nothing_comes_ends(hasty, clock):
    async def wait():
        client = Client(hasty, "/never")
        await until(lambda: hasty.events)
        clock.now += 1.1
        await client.task
        return client

    client = asyncio.run(wait())
    assert client.status == 503
    error = json.loads(client.body)["error"]
    assert (error["code"], error["type"]) == ("timeout", "server_error")
    assert (b"retry-after", b"10") in client.messages[0]["headers"]
    assert hasty.events == ["begun", "never ended"]


def test_a_stream_that_goes_on_is_not_silent(hasty, clock):
    """Two minutes of a stream whose pieces come most of a second after each other, with a limit of a second."""

    def reads():
        clock.now += 0.9

    async def wait():
        client = Client(hasty, "/stream", reads=reads)
        await until(lambda: len(client.messages) > 150)
        client.left.set()
        await client.task

    asyncio.run(wait())


def test_an_answer_that_grows_unseen_is_not_silent(hasty, clock):
    """As one that is sent whole, for which tokens are made for longer than the limit."""

    class Tokens(list):
        looks = 0

        def __len__(self):
            self.looks += 1
            return super().__len__()

    async def wait():
        client, tokens = Client(hasty, "/never"), Tokens()
        await until(lambda: hasty.events)
        client.scope["state"]["caller"].answers.append([SimpleNamespace(tokens=tokens)])
        for _ in range(3):
            tokens.append(0)
            clock.now += 0.9
            looks = tokens.looks
            await until(lambda looks=looks: tokens.looks > looks)
        assert client.status is None
        clock.now += 1.1
        await client.task
        return client

    assert asyncio.run(wait()).status == 503


def test_a_client_that_does_not_read_is_let_go(hasty, clock):
    async def wait():
        client = Client(hasty, "/stream")
        await until(lambda: len(client.messages) > 3)
        client.reading.clear()
        clock.now += 1.1
        await client.task

    asyncio.run(wait())
    assert hasty.events == ["stream ended"]


@pytest.mark.parametrize(
    ("change", "message", "code"),
    [
        (Keys.revoke, "the API key was revoked or has expired", "invalid_api_key"),
        (raised, "the API key was changed: ask again", "key_changed"),
    ],
)
def test_a_key_that_is_revoked_or_changed_ends_a_stream_with_an_error(guarded, change, message, code):
    headers = guarded.key()

    async def ended():
        client = Client(guarded, "/stream", headers)
        await until(lambda: len(client.messages) > 3)
        (id,) = guarded.keys.all()
        change(guarded.keys, id)
        await client.task
        return client

    client = asyncio.run(ended())
    assert guarded.events == ["stream ended"]
    *_, last, empty = client.body.decode().split("\n\n")
    assert empty == ""
    error = json.loads(last.removeprefix("data: "))["error"]
    assert (error["message"], error["code"]) == (message, code)
    assert not client.messages[-1].get("more_body")


@pytest.mark.parametrize("path", ["/stream", "/never"])
def test_keys_that_cannot_be_read_end_what_they_let_in(guarded, path, caplog):
    headers = guarded.key()

    async def damage():
        client = Client(guarded, path, headers)
        await until(lambda: guarded.events or client.messages)
        guarded.keys.path.write_text("{")
        await client.task
        return client

    client = asyncio.run(damage())
    assert guarded.events[-1] == path[1:] + " ended"
    error = json.loads(client.body.decode().strip().split("\n\n")[-1].removeprefix("data: "))["error"]
    assert (error["code"], error["type"]) == ("keys_unreadable", "server_error")
    assert client.status == (200 if path == "/stream" else 503)
    assert "the keys cannot be read" in caplog.text


def test_keys_that_cannot_be_read_let_nobody_in_and_are_asked_for_again(server, caplog):
    headers, keys = server.key("main", "user"), server.service.guards.keys.path
    whole = keys.read_text()
    keys.write_text("{")
    answer = server.client.get("/v1/models", headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "keys_unreadable")
    assert answer.headers["retry-after"]
    assert "the keys cannot be read" in caplog.text
    keys.write_text(whole)
    assert server.client.get("/v1/models", headers=headers).status_code == 200


def test_a_key_that_expires_ends_a_request_with_401(guarded):
    headers = guarded.key()

    async def expire():
        client = Client(guarded, "/never", headers)
        await until(lambda: "begun" in guarded.events)
        (saved,) = json.loads(guarded.keys.path.read_text())
        guarded.keys.path.write_text(json.dumps([{**saved, "expires": "2020-01-01T00:00:00Z"}]))
        await client.task
        return client

    client = asyncio.run(expire())
    assert client.status == 401
    assert guarded.events == ["begun", "never ended"]


def test_a_key_whose_rights_change_ends_its_requests(guarded):
    headers = guarded.key("admin")

    async def change():
        client = Client(guarded, "/never", headers)
        await until(lambda: "begun" in guarded.events)
        (saved,) = json.loads(guarded.keys.path.read_text())
        guarded.keys.path.write_text(json.dumps([{**saved, "role": "user"}]))
        await client.task
        return client

    assert asyncio.run(change()).status == 409


@pytest.mark.parametrize("path", ["/stream", "/never"])
def test_a_server_that_has_drained_for_long_ends_what_it_has_with_an_error(hasty, path):
    async def end():
        client = Client(hasty, path)
        await until(lambda: hasty.events or client.messages)
        hasty.guards.drain.over = True
        await client.task
        return client

    client = asyncio.run(end())
    assert hasty.events[-1] == path[1:] + " ended"
    error = json.loads(client.body.decode().strip().split("\n\n")[-1].removeprefix("data: "))["error"]
    assert error["message"] == "the server is going down"
    assert client.status == (200 if path == "/stream" else 503)


@pytest.mark.parametrize("how", ["leaves", "cancelled"])
def test_a_thread_at_work_for_a_request_sees_its_end(guarded, how):
    """Also where the event loop cancels all tasks, as it does when the process ends at once."""

    async def end():
        client = Client(guarded, "/works")
        await until(lambda: guarded.events)
        client.left.set() if how == "leaves" else client.task.cancel()
        await asyncio.wait([client.task])
        await until(lambda: guarded.events[-1] == "work ended")

    asyncio.run(end())


def test_another_keys_end_ends_nothing(guarded):
    headers, _ = guarded.key(), guarded.key()

    async def revoke():
        client = Client(guarded, "/stream", headers)
        await until(lambda: client.messages)
        guarded.keys.revoke([*guarded.keys.all()][1])
        before = len(client.messages)
        await until(lambda: len(client.messages) > before + 150)  # a second and a half: longer than between two looks
        client.left.set()
        await client.task

    asyncio.run(revoke())
