"""`halka serve` in a process of its own: SIGTERM ends what has begun, SIGKILL loses nothing that is stored."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

import halka
from commands import process

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


def adding(folder: Path) -> subprocess.Popen[str]:
    """A process that adds a key."""
    return process(f"keys add --data {folder / 'data'}", folder)


def added(adding: subprocess.Popen[str]) -> dict[str, str]:
    """The headers of who has the key that this process adds."""
    return {"authorization": f"Bearer {adding.communicate()[0].strip()}"}


def models(serving: Serving, key: Mapping[str, str]) -> int:
    """The status of a request for the models."""
    return httpx.get(f"{serving.url}/v1/models", headers=key, timeout=60).status_code


def test_a_server_is_closed_by_its_first_key_loses_nothing_killed_and_ends_what_has_begun(base, store, tmp_path):
    """Killed while clients ask and another process adds a key; the server after it knows both, and is terminated."""
    serving = Serving(base, store, tmp_path)
    assert models(serving, {}) == 200
    first = added(adding(tmp_path))
    assert (models(serving, {}), models(serving, first)) == (401, 200)

    def ask(number: int, url: str = serving.url) -> None:
        with suppress(httpx.HTTPError):
            httpx.post(f"{url}/v1/chat/completions", json=ASKED | {"seed": number}, headers=first, timeout=60)

    with ThreadPoolExecutor(8) as clients:
        for number in range(16):
            clients.submit(ask, number)
        time.sleep(0.3)
        beside = adding(tmp_path)
        assert serving.end(signal.SIGKILL) == -signal.SIGKILL
        second = added(beside)
    for name in halka.AdapterStore(store).names():
        halka.AdapterStore(store).get(name).open().verify()

    serving, events = Serving(base, store, tmp_path), []
    assert [models(serving, key) for key in (first, second, {})] == [200, 200, 401]
    asked = ASKED | {"n": 24, "max_tokens": 400, "temperature": 1.0}  # four at a time: some seconds
    with httpx.stream("POST", f"{serving.url}/v1/chat/completions", json=asked, headers=first, timeout=60) as response:
        lines = response.iter_lines()
        events.append(next(lines))
        serving.process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        refused = httpx.get(f"{serving.url}/v1/models", headers=first, timeout=60)
        ready = httpx.get(f"{serving.url}/readyz", timeout=60)
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


def test_what_others_can_reach_needs_a_key_before_anything_is_loaded(base, tmp_path):
    flags = f"--base {base} --data {tmp_path / 'data'} --host 0.0.0.0 --port 0"
    refused = process(f"serve {flags}", tmp_path, PYTHONPROFILEIMPORTTIME="1")
    _, errors = refused.communicate(timeout=60)
    assert refused.returncode == 2
    assert "host is '0.0.0.0', which others can reach, and there are no keys" in errors
    assert re.search(r"\| +halka\.cli$", errors, flags=re.M)
    assert not re.search(r"\| +torch$", errors, flags=re.M)
