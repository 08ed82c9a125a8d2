"""`halka chat`: with a server and with an engine of its own, by hand and through a pipe."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from commands import ROOT, failure, halka
from halka.cli.chat import talk
from halka.engine import AsyncEngine
from halka.server.resources.collection_access import new_collection
from halka.util.errors import HalkaError
from serving_for_tests import Running, make_base, make_store

LONG = "--max-new-tokens 400 --temperature 2"
HEARS_CTRL_C = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs begin with it ignored
from halka.__main__ import main; main()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """With `base` and `adapters`."""
    folder = tmp_path_factory.mktemp("chat")
    make_base(folder / "base")
    make_store(folder / "adapters", folder / "base")
    return folder


@pytest.fixture(scope="module")
def running(folder):
    with Running(folder / "base", folder / "adapters", folder / "data") as running:
        made = new_collection(running.service, "main", "faq")
        [*made.put([("parcels.md", "Parcels are sent on Monday.")])]
        yield running


@pytest.fixture
def url(running) -> str:
    return running.url


@pytest.fixture
def here(folder, monkeypatch) -> Path:
    monkeypatch.chdir(folder)
    monkeypatch.delenv("HALKA_API_KEY", raising=False)
    return folder


def test_a_server_and_an_engine_of_ones_own_answer_alike(here, url):
    lines = "What is the capital?\n\nWhy?\n/new\nWhat is the capital?\n"
    own = "--base base --dtype float32 --store adapters --adapter lora --max-new-tokens 8"
    served = halka(f"chat --url {url} --model lora --max-new-tokens 8", input=lines)
    mine = halka(f"chat {own}", input=lines)
    assert mine.stdout == served.stdout
    answers = mine.stdout.splitlines()
    assert len(answers) == 3
    assert answers[0] == answers[2], "/new begins anew"
    other = halka(f"chat {own} --system Shout.", input=lines)
    assert other.stdout != mine.stdout
    plain = halka(f"chat --url {url}/v1 --max-new-tokens 8", input="What is the capital?\n")
    assert plain.stdout != "".join(answers[:1]), "without --model the base answers"


def test_any_seed_of_a_server_is_one_of_an_engine_of_ones_own(here, url):
    sampled = "--seed -1 --temperature 1 --max-new-tokens 8"
    served = halka(f"chat --url {url} --model lora {sampled}", input="What is it?\n")
    mine = halka(f"chat --base base --dtype float32 --store adapters --adapter lora {sampled}", input="What is it?\n")
    assert mine.stdout == served.stdout != "\n"


def test_the_conversation_goes_on(here, url):
    both = halka(f"chat --url {url} --model lora --max-new-tokens 6", input="What is it?\nWhy?\n").stdout.splitlines()
    alone = halka(f"chat --url {url} --model lora --max-new-tokens 6", input="Why?\n").stdout.splitlines()
    assert len(both) == 2
    assert both[1:] != alone


def test_a_collection_answers_through_the_server(here, url):
    result = halka(f"chat --url {url} --collection faq --max-new-tokens 8", input="When are parcels sent?\n")
    assert result.stdout.strip()
    assert "no collection 'nothing'" in failure(
        f"chat --url {url} --collection nothing --max-new-tokens 8", input="When?\n"
    )


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ("--base base --url http://x", "--url is for a server"),
        ("--base base --model x", "--model is for a server"),
        ("--base base --collection x", "halka ask"),
        ("--base base --store adapters", "nothing names an adapter in it"),
        ("--adapter x", "--model"),
        ("--url ftp://x", "is no URL"),
        ("--url http://me:secret@x", "must not have a password"),
        ("--url http://127.0.0.1:9 --model x", "nobody answers"),
        ("--key-env NOTHING", "no variable NOTHING"),
        ("--top-p 0.5", "--temperature"),
    ],
)
def test_what_does_not_fit_is_said(here, flags, reason):
    message = failure(f"chat {flags}", input="Hello\n")
    assert reason in message
    assert "secret" not in message


def test_a_key_that_no_header_can_hold_is_not_shown(here, url, monkeypatch):
    monkeypatch.setenv("HALKA_API_KEY", "clé-geheim")
    message = failure(f"chat --url {url}", input="Hello\n")
    assert "HALKA_API_KEY has characters that no header can have" in message
    assert "geheim" not in message
    monkeypatch.setenv("HALKA_API_KEY", "halka_secret\n")  # a line of a file
    assert halka(f"chat --url {url} --max-new-tokens 2", input="Hello\n").stdout


def test_a_servers_error_is_told(here, url):
    assert "the model 'nothing' does not exist" in failure(f"chat --url {url} --model nothing", input="Hello\n")


class Other(BaseHTTPRequestHandler):
    """Answers all that is asked, and not as OpenAI's API does."""

    chunk = b'{"choices": [{"text": "Hello"}]}'

    def do_GET(self) -> None:
        self._answer(b'{"data": []}')

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self._answer(b"data: " + self.chunk + b"\n\n")

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def answering_once(handler: type[Other]) -> Iterator[str]:
    """The address of a server that answers one request."""
    with HTTPServer(("127.0.0.1", 0), handler) as server:
        serving = threading.Thread(target=server.handle_request)
        serving.start()
        yield f"http://127.0.0.1:{server.server_port}"
        serving.join()


@pytest.mark.parametrize(("flags", "path"), [("", "/v1/models"), ("--model x", "/v1/chat/completions")])
def test_a_server_of_another_kind_is_named(here, flags, path):
    with HTTPServer(("127.0.0.1", 0), Other) as other:
        serving = threading.Thread(target=other.serve_forever, kwargs={"poll_interval": 0.01})
        serving.start()
        try:
            url = f"http://127.0.0.1:{other.server_port}"
            message = failure(f"chat --url {url} {flags}", input="Hello\n")
        finally:
            other.shutdown()
            serving.join()
    assert f"{url}: what it answers at {path} is not as OpenAI's API has it" in message


class Thorough(Other):
    """Says in every chunk that there is no error."""

    chunk = b'{"error": null, "choices": [{"delta": {"content": "Hello"}}]}'


def test_an_error_that_is_null_is_none():
    with answering_once(Thorough) as url:
        answer = halka(f"chat --url {url} --model x", input="Hi\n")
    assert answer.stdout == "Hello\n"


class Busy(Other):
    def _answer(self, body: bytes) -> None:
        self.send_error(503)


def test_a_server_that_fails_is_no_wrong_command():
    with answering_once(Busy) as url:
        message = failure(f"chat --url {url}", code=1, input="Hello\n")
    assert "the server answers with status 503" in message


def test_what_is_no_utf_8_is_refused(monkeypatch):
    assert "--system is not UTF-8: it has the byte 0xe9" in failure("chat --model x --system caf\udce9")
    monkeypatch.setattr("sys.stdin", io.StringIO("caf\udce9\n"))
    with pytest.raises(HalkaError, match="the message is not UTF-8: it has the byte 0xe9"):
        talk(lambda history: (text for text in ("Yes",)), None)


@pytest.mark.slow
def test_ctrl_c_stops_an_answer_and_the_talk_goes_on(here, running):
    """By hand: standard input is a terminal. An answer may end before the signal comes: then another is asked for."""
    with slowed(running.service.engine):
        assert any(b"(stopped)" in interrupted(running.url, seed) for seed in range(20))


@contextmanager
def slowed(engine: AsyncEngine) -> Iterator[None]:
    """Within the block the engine pauses between its steps: an answer takes seconds."""
    over = threading.Event()

    async def pause() -> None:
        while not over.is_set():
            await engine.call(lambda: time.sleep(0.02))

    pausing = threading.Thread(target=lambda: asyncio.run(pause()))
    pausing.start()
    try:
        yield
    finally:
        over.set()
        pausing.join()


def interrupted(url: str, seed: int) -> bytes:
    """The messages of a talk whose first answer gets Ctrl-C, and which goes on to its end."""
    ours, theirs = os.openpty()
    command = f"chat --url {url} --model lora {LONG} --seed {seed}".split()
    process = subprocess.Popen(
        [sys.executable, "-c", HEARS_CTRL_C, *command],
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "PYTHONUNBUFFERED": "1"},
    )
    os.close(theirs)
    with process:
        assert process.stdout is not None
        assert process.stderr is not None
        os.write(ours, b"Tell me a long story\n")
        assert process.stdout.read(4)
        process.send_signal(signal.SIGINT)
        os.write(ours, b"/new\n\x04")
        _, messages = process.communicate(timeout=60)
        assert process.returncode == 0, messages
    os.close(ours)
    return messages
