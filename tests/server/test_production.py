"""`halka serve` in a process of its own: SIGTERM ends what has begun, SIGKILL loses nothing that is stored."""

from __future__ import annotations

import json
import re
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

import halka
from commands import process
from halka.server.guards.keys import Keys

pytestmark = pytest.mark.slow
ASKED = {"model": "lora", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 200, "stream": True}


class Serving:
    """The process, and the lines that it has logged; `url` once it answers."""

    def __init__(self, base: Path, store: Path, folder: Path):
        flags = f"--base {base} --store {store} --data {folder / 'data'} --dtype float32 --rows 4 --port 0"
        self.process = process(f"serve {flags}", folder)
        self.lines: list[str] = []
        self.url = ""
        self._reading = threading.Thread(target=self._read, daemon=True)
        self._reading.start()
        begun = time.monotonic()
        while not self.url:
            assert self._reading.is_alive(), self.lines
            assert time.monotonic() < begun + 120, self.lines
            time.sleep(0.05)

    def _read(self) -> None:
        for line in self.process.stderr:
            self.lines.append(line)
            if match := re.search(r"answers at (http://\S+)/v1", line):
                self.url = match[1]

    def end(self, by: signal.Signals) -> int:
        self.process.send_signal(by)
        self.process.wait(60)
        self._reading.join(20)
        self.process.stdout.close()
        self.process.stderr.close()
        return self.process.returncode


@pytest.fixture
def key(tmp_path) -> dict[str, str]:
    return {"authorization": f"Bearer {Keys(tmp_path / 'data' / 'keys.json').add('main', 'user')[0]}"}


def test_sigterm_ends_what_has_begun_and_refuses_the_rest(base, store, tmp_path, key):
    serving, events = Serving(base, store, tmp_path), []
    asked = ASKED | {"n": 24, "max_tokens": 400, "temperature": 1.0}  # four at a time: some seconds
    with httpx.stream("POST", f"{serving.url}/v1/chat/completions", json=asked, headers=key, timeout=60) as response:
        lines = response.iter_lines()
        events.append(next(lines))
        serving.process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        refused = httpx.get(f"{serving.url}/v1/models", headers=key)
        ready = httpx.get(f"{serving.url}/readyz")
        events += lines
    assert refused.status_code == 503
    assert refused.json()["error"]["message"] == "the server is going down"
    assert (ready.status_code, ready.json()) == (503, {"status": "draining"})
    assert [event for event in events if event][-1] == "data: [DONE]"
    assert sum('"finish_reason":"' in event for event in events) == 24
    serving.process.wait(60)
    assert serving.end(signal.SIGTERM) == 0, serving.lines
    logged = [json.loads(line) for line in serving.lines if line.startswith("{")]
    assert not [line for line in logged if line["level"] == "error"], logged
    assert [line["status"] for line in logged if line.get("route") == "/v1/chat/completions"] == [200]


def test_sigkill_in_mid_load_leaves_keys_and_adapters_whole(base, store, tmp_path, key):
    """Twice, while clients ask and other processes add keys; and the next server answers."""
    keys = Keys(tmp_path / "data" / "keys.json")
    asked = ASKED | {"stream": False, "max_tokens": 4}
    for _ in range(2):
        serving = Serving(base, store, tmp_path)
        answer = httpx.post(f"{serving.url}/v1/chat/completions", json=asked, headers=key, timeout=60)
        assert answer.status_code == 200

        def ask(number: int, url: str = serving.url) -> None:
            with suppress(httpx.HTTPError):
                httpx.post(f"{url}/v1/chat/completions", json=ASKED | {"seed": number}, headers=key, timeout=60)

        with ThreadPoolExecutor(8) as clients:
            for number in range(16):
                clients.submit(ask, number)
            time.sleep(0.3)
            adding = process(f"keys add --data {tmp_path / 'data'}", tmp_path)
            assert serving.end(signal.SIGKILL) == -signal.SIGKILL
            added = adding.communicate()[0].strip()
        assert keys.find(added.encode()) is not None
        assert keys.find(key["authorization"].removeprefix("Bearer ").encode()) is not None
    for name in halka.AdapterStore(store).names():
        halka.AdapterStore(store).get(name).open().verify()


def test_a_first_key_closes_a_running_server(base, store, tmp_path):
    serving = Serving(base, store, tmp_path)
    assert httpx.get(f"{serving.url}/v1/models").status_code == 200
    adding = process(f"keys add --data {tmp_path / 'data'}", tmp_path)
    text = adding.communicate()[0].strip()
    assert httpx.get(f"{serving.url}/v1/models").status_code == 401
    assert httpx.get(f"{serving.url}/v1/models", headers={"authorization": f"Bearer {text}"}).status_code == 200
    assert serving.end(signal.SIGTERM) == 0


def test_what_others_can_reach_needs_a_key_before_anything_is_loaded(base, tmp_path):
    flags = f"--base {base} --data {tmp_path / 'data'} --host 0.0.0.0 --port 0"
    refused = process(f"serve {flags}", tmp_path, PYTHONPROFILEIMPORTTIME="1")
    _, errors = refused.communicate(timeout=60)
    assert refused.returncode == 2
    assert "host is '0.0.0.0', which others can reach, and there are no keys" in errors
    assert re.search(r"\| +halka\.cli$", errors, flags=re.M)
    assert not re.search(r"\| +torch$", errors, flags=re.M)
