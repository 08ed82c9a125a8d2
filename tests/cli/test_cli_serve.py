"""`halka serve` says where it listens, answers there, and ends when it is told to."""

from __future__ import annotations

import json
import re
import shlex
import signal
import socket
import subprocess
import sys

import httpx
import pytest

from commands import failure, halka
from serving_for_tests import make_store, serving


@pytest.mark.slow
def test_it_says_where_it_listens_and_answers_there(here, base_folder):
    """Where keys are needed its example has a variable for one, and names none."""
    make_store(here / "stored", base_folder)
    key = halka("keys add --data data").stdout.strip()
    with serving("--base base --store stored --data data --dtype float32 --new-tokens 5", here) as (server, text):
        assert "base, with bottleneck, lora, prefix, answers at http://127.0.0.1:" in text
        assert key not in text
        (curl,) = re.findall(r"^  curl (.*)$", text, flags=re.MULTILINE)
        url, *_, body, _, needed = shlex.split(curl)
        name, _, value = needed.replace("$HALKA_API_KEY", key).partition(": ")
        refused = httpx.post(url, json=json.loads(body), timeout=60)
        assert refused.status_code == 401
        answer = httpx.post(url, json=json.loads(body), headers={name: value}, timeout=60)
        assert answer.status_code == 200, answer.text
        assert answer.json()["model"] == "bottleneck"
        assert answer.json()["usage"]["completion_tokens"] <= 5
        server.send_signal(signal.SIGINT)
        server.wait(30)


def test_settings_come_from_file_environment_and_flags(here, monkeypatch):
    (here / "serve.yaml").write_text("base: nowhere\nrows: 0\n")
    assert "rows is 0: it is 1 or more" in failure("serve --config serve.yaml")
    monkeypatch.setenv("HALKA_SERVE_ROWS", "-1")
    assert "rows is -1" in failure("serve --config serve.yaml")
    assert "rows is -2" in failure("serve --config serve.yaml --rows -2")
    assert "base is missing" in failure("serve")
    monkeypatch.setenv("HALKA_SERVE_ROW", "1")
    assert "HALKA_SERVE_ROW: there is no such setting; did you mean HALKA_SERVE_ROWS?" in failure("serve --base base")


def test_a_port_that_is_taken(here):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        error = failure(f"serve --base base --port {taken.getsockname()[1]}")
    assert "address already in use" in error
    assert "--port" in error


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "reason"),
    [
        ("fastapi", "fastapi is missing: pip install 'halka[server]'"),
        ("fcntl", "a server needs Linux or macOS (Python has no fcntl here): on Windows use WSL"),
    ],
)
def test_without_what_it_needs_it_says_what_to_do(tmp_path, module, reason):
    code = f"import sys; sys.modules['{module}'] = None; from halka.cli import main; main()"
    command = [sys.executable, "-W", "ignore", "-c", code, "serve", "--base", "nowhere"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == f"Error: {reason}\n"
