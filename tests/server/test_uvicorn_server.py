"""A real server in a process of its own: it drains, closes connections that do nothing, and reads HTTP strictly."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import httpx
import pytest

from halka.server.guards.drain import Drain
from halka.server.guards.edge import HEAD
from halka.server.uvicorn_server import server

TESTS = Path(__file__).parents[1]
pytestmark = pytest.mark.slow


class Bare:
    """The process of bare_server.py."""

    def __init__(self, data: Path, timeout: float = 30.0, drain: float = 20.0, connections: int = 100):
        self._log = data / "log"
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, TESTS / "bare_server.py", data, *map(str, (timeout, drain, connections))],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, "PYTHONPATH": str(TESTS.parent / "src")},
            )
        self.port = int(self.process.stdout.readline())
        self.url = f"http://127.0.0.1:{self.port}"

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=60)

    def get(self, path: str) -> httpx.Response:
        """What comes back on a connection of its own."""
        with self.client() as client:
            return client.get(path)

    def connect(self) -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", self.port))
        connection.settimeout(20)
        return connection

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Within the block the process stands still: whatever comes there has come when it looks for the first time."""
        self.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)

    def ask(self, *pieces: bytes) -> bytes:
        """Everything that comes back on a connection, until the server closes it."""
        with self.connect() as connection:
            for piece in pieces:
                connection.sendall(piece)
            return everything(connection)

    def wait_for(self, event: str) -> None:
        """Wait until a route prints it."""
        assert self.process.stdout.readline().strip() == event

    def drain(self) -> httpx.Response:
        """Ask the process to end, and return the first answer to who comes then."""
        self.process.terminate()
        while (response := self.get("/who")).status_code == 200:
            time.sleep(0.01)
        return response

    def end(self) -> list[dict[str, object]]:
        """Ask the process to end, and return what it logged, without errors."""
        self.process.terminate()
        return self.ended()

    def ended(self) -> list[dict[str, object]]:
        self.process.communicate(timeout=30)
        assert self.process.returncode == 0, self._log.read_text()
        logged = [json.loads(line) for line in self._log.read_text().splitlines()]
        assert not [line for line in logged if line["level"] == "error"], logged
        return logged


def everything(connection: socket.socket) -> bytes:
    received = b""
    try:
        while piece := connection.recv(65536):
            received += piece
    except ConnectionResetError:
        pass
    return received


def closed_while_it_trickles(connection: socket.socket) -> bool:
    """Send a byte a tenth of a second, for half a minute at most."""
    try:
        for _ in range(300):
            connection.sendall(b"a")
            time.sleep(0.1)
    except (BrokenPipeError, ConnectionError):
        return True
    return False


@pytest.fixture(scope="module")
def bare(tmp_path_factory) -> Iterator[Bare]:
    """One server for the tests that leave it as it is."""
    bare = Bare(tmp_path_factory.mktemp("data"))
    yield bare
    bare.end()


@pytest.fixture(scope="module")
def hasty(tmp_path_factory) -> Iterator[Bare]:
    """One whose clients may do nothing for a second."""
    hasty = Bare(tmp_path_factory.mktemp("data"), timeout=1.0)
    yield hasty
    hasty.end()


HOST = b"Host: localhost\r\n"
CLOSE = HOST + b"Connection: close\r\n"


def test_sigterm_lets_requests_finish_and_refuses_new_ones(tmp_path):
    bare, answers = Bare(tmp_path), []

    def ask():
        answers.append(httpx.post(f"{bare.url}/answers", json={"n": 1, "tokens": 1, "seconds": 10}, timeout=60))

    with bare.client() as client:
        assert client.get("/who").status_code == 200
        asking = threading.Thread(target=ask)
        asking.start()
        bare.wait_for("begun")
        refused = bare.drain()
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "10")
        assert bare.get("/healthz").status_code == 200
        asking.join()
    assert answers[0].status_code == 200
    bare.ended()


def test_a_second_signal_ends_it_at_once(tmp_path):
    bare = Bare(tmp_path, drain=60)

    def ask():
        with suppress(httpx.HTTPError):
            httpx.post(f"{bare.url}/never", timeout=60)

    asking = threading.Thread(target=ask)
    asking.start()
    bare.wait_for("begun")
    bare.drain()
    time.sleep(0.3)
    assert bare.process.poll() is None
    bare.process.terminate()
    bare.process.communicate(timeout=20)
    assert bare.process.returncode == 0
    asking.join()


def test_what_does_not_finish_while_the_server_drains_gets_an_error(tmp_path):
    bare, answers = Bare(tmp_path, drain=0.5), []
    asking = threading.Thread(target=lambda: answers.append(httpx.post(f"{bare.url}/never", timeout=60)))
    asking.start()
    bare.wait_for("begun")
    bare.end()
    asking.join()
    assert answers[0].status_code == 503
    assert answers[0].json()["error"]["message"] == "the server is going down"


def test_connections_without_a_request_are_closed(hasty):
    heads = b"", b"GET /who HTTP/1.1\r\n", b"GET /who HTTP/1.1\r\nHost: x\r\nX-A: b\r\n"
    with ExitStack() as connections:
        with hasty.stopped():
            opened = [connections.enter_context(hasty.connect()) for _ in heads]
            for connection, head in zip(opened, heads, strict=True):
                connection.sendall(head)
        assert [everything(connection) for connection in opened] == [b"", b"", b""]


def test_a_head_that_trickles_is_closed(hasty):
    """Each byte comes in time, the head never does."""
    with hasty.stopped():
        connection = hasty.connect()
        connection.sendall(b"GET /who HTTP/1.1\r\nX-A: ")
    with connection:
        assert closed_while_it_trickles(connection)


def test_a_body_that_trickles_after_its_refusal_is_closed(hasty):
    head = b"POST /echo HTTP/1.1\r\n" + HOST + b"Content-Type: text/plain\r\nContent-Length: 1000\r\n\r\n"
    with hasty.stopped():
        connection = hasty.connect()
        connection.sendall(head)
    with connection:
        assert b" 415 " in connection.recv(65536)
        assert closed_while_it_trickles(connection)


def test_a_client_that_does_not_read_its_answer_is_closed(hasty):
    for seconds in (3, 10, 30):  # in which the server sees that nothing is read
        with hasty.stopped():
            connection = hasty.connect()
            connection.sendall(b"GET /large HTTP/1.1\r\n" + HOST + b"\r\n")
        with connection:
            time.sleep(seconds)
            if (length := len(everything(connection))) < 50_000_000:
                break
    assert length < 50_000_000


def test_a_connection_that_is_used_again_and_again_stays(hasty):
    with hasty.client() as client:
        ports, begins = set(), (sent := time.monotonic())
        while time.monotonic() < begins + 3:  # longer than the server's timeout, which it looks at each second
            before, sent = sent, time.monotonic()
            try:
                response = client.get("/who")
                ports.add(response.extensions["network_stream"].get_extra_info("client_addr"))
            except httpx.TransportError:
                assert time.monotonic() >= before + 1, "it was closed while it was used"
            if time.monotonic() >= before + 1:  # the test stood still for as long as the server waits: begin anew
                ports, begins = set(), time.monotonic()
            time.sleep(0.05)
    assert len(ports) == 1


def test_a_connection_that_is_not_used_stays_for_longer_than_clients_keep_theirs():
    """httpx, and so OpenAI's client, sends nothing on one that it has not used for five seconds."""
    assert server(None, Drain(), 60).config.timeout_keep_alive > 2 * httpx.Limits().keepalive_expiry


def test_pipelined_requests_are_each_guarded(bare):
    one = b"POST /echo HTTP/1.1\r\n" + HOST + b"Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
    evil = b"GET /who HTTP/1.1\r\nHost: evil.example\r\n\r\n"
    last = b"GET /who HTTP/1.1\r\n" + CLOSE + b"\r\n"
    statuses = re.findall(rb"HTTP/1.1 (\d+)", bare.ask(one + evil + last))
    assert statuses == [b"200", b"403", b"200"]


SMUGGLED = b"GET /who HTTP/1.1\r\n" + CLOSE + b"\r\n"


@pytest.mark.parametrize(
    "head",
    [
        b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        b"Content-Length: 5\r\nContent-Length: 6\r\n",
        b"Transfer-Encoding: chunked, identity\r\n",
        b"Transfer-Encoding : chunked\r\n",
        b"Transfer-Encoding:\x0bchunked\r\n",
        b"Content-Length: +5\r\n",
        b"Content-Length: 0x5\r\n",
        b"Content-Length: -1\r\n",
    ],
)
def test_a_body_of_two_lengths_hides_no_request(bare, head):
    """Whatever a proxy in front makes of it, no second request is answered."""
    message = b"POST /echo HTTP/1.1\r\n" + HOST + b"Content-Type: application/json\r\n" + head + b"\r\n"
    answered = bare.ask(message + b"0\r\n\r\n" + SMUGGLED)
    assert answered.count(b"HTTP/1.1 200") == 0


@pytest.mark.parametrize(
    "request_line", [b"GET /who HTTP/1.1", b"GET http://evil.example/who HTTP/1.1", b"GET /healthz/../who HTTP/1.0"]
)
def test_without_a_host_nobody_is_let_in(bare, request_line):
    answered = bare.ask(request_line + b"\r\nConnection: close\r\n\r\n")
    assert b" 200 " not in answered.splitlines()[0]


@pytest.mark.parametrize(
    "header", [b"X-A: " + b"a" * 100_000, b"\r\n".join([b"X-A: a"] * 10_000), b"X-A: a\x00b", b"X A: b"]
)
def test_heads_are_bounded_and_clean(bare, header):
    answered = bare.ask(b"GET /who HTTP/1.1\r\n" + CLOSE + header + b"\r\n\r\n")
    assert not answered or answered.split()[1] in (b"400", b"431")


def error_of(answered: bytes) -> dict[str, str]:
    """The error of one response, whose head is as every response's."""
    assert answered.count(b"HTTP/1.1 ") == 1
    head, _, body = answered.lower().partition(b"\r\n\r\n")
    for line in (b"content-type: application/json", b"x-content-type-options: nosniff", b"connection: close"):
        assert line in head.split(b"\r\n")
    assert f"content-length: {len(body)}".encode() in head
    error = json.loads(answered.partition(b"\r\n\r\n")[2])["error"]
    assert {*error} == {"message", "type", "param", "code"}
    return error


@pytest.mark.parametrize(
    "sent",
    [
        b"nonsense\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"CONNECT localhost:1 HTTP/1.1\r\n\r\n",
        b"GET /who HTTP/1.1\r\nX A: b\r\n\r\n",
        b"POST /echo HTTP/1.1\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\nno length\r\n",
    ],
)
def test_what_is_no_http_gets_an_error_as_all_others(bare, sent):
    error = error_of(bare.ask(sent.replace(b"HTTP/1.1\r\n", b"HTTP/1.1\r\n" + HOST)))
    assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_http")


OFFERS = {
    "h2c, as Java's": b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAA\r\n",
    "websocket": b"Connection: Upgrade\r\nUpgrade: websocket\r\n",
    "unknown": b"Connection: upgrade\r\nUpgrade: x\r\n",
    "beside a proxy's own": b"Connection: Upgrade\r\nUpgrade: h2c\r\nConnection: keep-alive\r\n",
}


@pytest.mark.parametrize("offer", OFFERS.values(), ids=OFFERS)
@pytest.mark.parametrize("apart", [False, True], ids=["in one piece", "in pieces"])
def test_an_offer_of_another_protocol_is_ignored_and_the_body_is_the_requests(bare, offer, apart):
    body = b"GET /who HTTP/1.1\r\n" + HOST + b"\r\n"  # which would be a request of its own
    text = json.dumps({"text": body.decode()}).encode()
    for sent, statuses in ((text, [b"200", b"200"]), (body, [b"400", b"200"])):
        head = b"POST /echo HTTP/1.1\r\n" + HOST + b"Content-Type: application/json\r\n" + offer
        head += b"Content-Length: %d\r\n\r\n" % len(sent)
        behind = b"GET /who HTTP/1.1\r\n" + CLOSE + b"\r\n"
        answered = bare.ask(*((head, sent, behind) if apart else (head + sent + behind,)))
        assert re.findall(rb"HTTP/1\.1 (\d+)", answered) == statuses
    without_body = b"GET /who HTTP/1.1\r\n" + HOST + offer + b"\r\n"
    answered = bare.ask(without_body, b"GET /who HTTP/1.1\r\n" + CLOSE + b"\r\n")
    assert answered.count(b"HTTP/1.1 200") == 2


def test_many_requests_in_one_piece_are_no_large_head(bare):
    one = b"GET /who HTTP/1.1\r\n" + HOST + b"X-A: " + b"a" * 200 + b"\r\n\r\n"
    last = b"GET /who HTTP/1.1\r\n" + CLOSE + b"\r\n"
    assert len(one) * 400 > 2 * HEAD
    answered = bare.ask(one * 400 + last[:30], last[30:])
    assert answered.count(b"HTTP/1.1 200") == 401


def test_trailers_without_an_end_are_refused_before_they_are_large(bare):
    head = b"POST /echo HTTP/1.1\r\n" + HOST + b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    with bare.connect() as connection:
        connection.sendall(head + b"4\r\nnull\r\n0\r\n")
        sent, line = 0, b"X-A: " + b"a" * 4000 + b"\r\n"
        with suppress(OSError):
            while sent < 64 << 20:
                connection.sendall(line)
                sent += len(line)
        assert sent < 64 << 20


@pytest.mark.parametrize("line", [b"a" * 4096, b"X-A: a\r\n" * 512], ids=["one header", "many"])
def test_a_head_without_an_end_is_refused_before_it_is_large(bare, line):
    with bare.connect() as connection:
        connection.sendall(b"GET /who HTTP/1.1\r\n" + HOST + b"X-A: ")
        sent = 0
        try:
            while sent < 1 << 20:
                connection.sendall(line)
                sent += len(line)
                if select.select([connection], [], [], 0.001)[0]:
                    break
        except OSError:
            pass
        assert sent < 1 << 20
        answered = everything(connection)
    assert not answered or error_of(answered)["message"].startswith("the request's head is larger than")


@pytest.mark.parametrize("queued", [b"", b"GET /who HTTP/1.1\r\n" + HOST + b"\r\n"])
def test_nonsense_behind_a_request_is_not_answered_amid_its_answer(bare, queued):
    with bare.connect() as connection:
        connection.sendall(b"GET /stream HTTP/1.1\r\n" + HOST + b"\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        connection.sendall(queued + b"nonsense\r\n\r\n")
        assert b"HTTP/1.1 400" not in everything(connection)


def test_connections_beyond_the_most_get_an_error_as_all_others(tmp_path):
    """Those that were there before go on, and so do those who ask whether the server lives."""
    bare = Bare(tmp_path, timeout=30.0, connections=2)
    with bare.client() as first, bare.client() as second:
        assert [client.get("/who").status_code for client in (first, second)] == [200, 200]
        answered = bare.ask(b"GET /who HTTP/1.1\r\n" + HOST + b"\r\n")
        assert answered.startswith(b"HTTP/1.1 503 ")
        assert b"retry-after: 10" in answered
        assert "as many connections as it can take" in error_of(answered)["message"]
        assert bare.get("/healthz").status_code == 200
        assert [client.get("/who").status_code for client in (first, second)] == [200, 200]
    assert bare.get("/who").status_code == 200
    statuses = [line["status"] for line in bare.end() if line["message"] == "request"]
    assert statuses == [200, 200, 503, 200, 200, 200, 200]


def test_a_connection_beyond_the_most_is_served_once_others_have_gone(tmp_path):
    """Beyond twice the most none is kept."""
    bare = Bare(tmp_path, timeout=30.0, connections=1)
    for seconds in (0.3, 1, 5, 20):  # in which the server sees that the first has gone
        with bare.connect() as first, bare.connect() as beyond:
            assert bare.ask() == b""
            first.close()
            time.sleep(seconds)
            beyond.sendall(b"GET /who HTTP/1.1\r\n" + CLOSE + b"\r\n")
            if (answered := everything(beyond)).startswith(b"HTTP/1.1 200 "):
                break
    assert answered.startswith(b"HTTP/1.1 200 ")
    bare.end()


def test_a_chunked_body_without_end_is_cut_at_its_most(bare):
    chunk = b"64\r\n" + b" " * 100 + b"\r\n"
    head = b"POST /echo HTTP/1.1\r\n" + CLOSE + b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    with bare.connect() as connection:
        connection.sendall(head + chunk * 11)
        assert b" 413 " in connection.recv(65536).splitlines()[0]


def test_no_response_names_the_servers_software(bare):
    response = bare.get("/who")
    assert not [value for value in response.headers.values() if "uvicorn" in value.lower()]


def test_a_client_that_leaves_is_seen(tmp_path):
    """Also when it has sent a second request, with the first or behind it."""
    bare = Bare(tmp_path)
    never, who = (line + b" HTTP/1.1\r\n" + HOST + b"\r\n" for line in (b"POST /never", b"GET /who"))
    with ExitStack() as connections:
        for first, *behind in ([never], [never + who], [never, who]):
            connection = connections.enter_context(bare.connect())
            connection.sendall(first)
            bare.wait_for("begun")
            for piece in behind:
                connection.sendall(piece)
        time.sleep(1)  # until the server has what came behind
    lines = [line for line in bare.end() if line["message"] == "request"]
    assert [(line["route"], line["status"]) for line in lines] == [("/never", 499)] * 3
