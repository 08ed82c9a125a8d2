"""Run the command line in this process or in another, and read what it prints."""

from __future__ import annotations

import functools
import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import typer
import typer.main
import typer.testing
from typer.testing import CliRunner, Result

from halka.cli import app

ROOT = Path(__file__).parents[1]
typer.testing._get_command = functools.cache(typer.main.get_command)  # as a process does: it reads all signatures
TRAIN = "--base base --data data.jsonl --dtype float32 --batch-size 4 --rank 4"
"""Flags of `halka train` in the folders of tests/cli/conftest.py."""


def halka(
    command: str, folder: Path | None = None, code: int = 0, *, commands: typer.Typer = app, **more: Any
) -> Result:
    """The result of a command, run in `folder`, that ends with this exit code. A ␣ is a space inside an argument.

    Its terminal is wide: nothing is wrapped, however long a path is.
    """
    before = Path.cwd()
    os.chdir(folder or before)
    try:
        arguments = [part.replace("␣", " ") for part in command.split()]
        result = CliRunner(env={"COLUMNS": "10000"}).invoke(commands, arguments, **more)
    finally:
        os.chdir(before)
    assert result.exit_code == code, result.output
    return result


def parsed(command: str) -> Any:
    """What a command prints with --json."""
    return json.loads(halka(f"{command} --json").stdout)


def failure(command: str, code: int = 2, **more: Any) -> str:
    """The one line that a command ends with when it fails, besides those that say what is loaded and read."""
    result = halka(command, code=code, **more)
    assert result.stdout == ""
    lines = [line for line in result.stderr.splitlines() if not re.match("loading |.* examples?, read as ", line)]
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("Error: ")
    return lines[0].removeprefix("Error: ")


def process(command: str, folder: Path, **environment: str) -> subprocess.Popen[str]:
    """The command in a process of its own, with these variables in its environment."""
    own = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src"), "TOKENIZERS_PARALLELISM": "false"}
    return subprocess.Popen(
        [sys.executable, "-m", "halka", *command.split()],
        cwd=folder,
        env={**os.environ, **own, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def stopped(command: str, at: str, times: int = 1, by: signal.Signals = signal.SIGINT) -> str:
    """What a command prints on stderr that a signal stops, sent so many times once this text stands there."""
    output, messages = io.StringIO(), _Interrupting(at, times, by)
    with _interruptible(), redirect_stdout(output), redirect_stderr(messages), pytest.raises(SystemExit) as ended:
        app(command.split())
    assert messages.times == 0, f"{at} was never printed"
    assert ended.value.code == 130
    assert output.getvalue() == ""
    return messages.getvalue()


@contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C interrupts, also where a shell started the tests in the background, which ignores it."""
    own = signal.getsignal(signal.SIGINT)
    if own is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, own)


class _Interrupting(io.StringIO):
    """Sends a signal to this process, so many times, when a text is written."""

    def __init__(self, at: str, times: int, by: signal.Signals):
        super().__init__()
        self.at, self.times, self.by = at, times, by

    def write(self, text: str) -> int:
        written = super().write(text)
        while self.at in text and self.times:
            self.times -= 1
            signal.raise_signal(self.by)  # its handler runs here, and not wherever the main thread happens to be
        return written
